"""A virtual machine under qemu's software emulation, and what the tests do in it.

Its disk is never changed: what it writes is gone with it. It has no network but its loopback
interface and what a test makes in it. Nothing waits for time: it boots as long as it boots.
"""

from __future__ import annotations

import base64
import itertools
import json
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from conftest import TEST_ROOT
from helpers import end

IMAGES = TEST_ROOT / "vm"
KERNEL_WORDS = "console=ttyS0 root=/dev/vda rw panic=-1 quiet systemd.show_status=no"
PATIENCE = 120
"""Seconds for a condition: everything is about ten times as slow in there."""


@dataclass
class Result:
    """What a command has come to."""

    argv: Sequence[str]
    status: int
    output: str
    errors: str


class Machine:
    """A booted machine. Close it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers = itertools.count()
        self.received = b""
        self.console = tempfile.TemporaryFile()
        ours, theirs = socket.socketpair()
        with theirs:
            self.qemu = subprocess.Popen(
                self._words(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=self.console,
                stderr=self.console,
                pass_fds=[theirs.fileno()],
            )
        self.agent = ours
        try:
            self.kernel = str(self._answer()["ready"])
        except BaseException:
            self.close()
            raise

    def _words(self, agent: int) -> list[str]:
        return [
            *("setpriv", "--pdeathsig", "KILL", "nice", "-n5", "qemu-system-x86_64"),
            *("-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max", "-m", "2G"),
            *("-display", "none", "-no-reboot", "-nic", "none", "-serial", "stdio"),
            *("-drive", f"file={IMAGES}/{self.name}.img,if=virtio,format=raw,snapshot=on"),
            *("-kernel", f"{IMAGES}/{self.name}.kernel", "-append", KERNEL_WORDS),
            *("-initrd", f"{IMAGES}/{self.name}.initrd"),
            *("-chardev", f"socket,id=agent,fd={agent}", "-device", "virtio-serial"),
            *("-device", "virtserialport,chardev=agent,name=tests"),
        ]

    def close(self) -> None:
        """Switch it off."""
        end(self.qemu)
        self.agent.close()
        self.console.close()

    def log(self) -> str:
        """The end of what it wrote on its console."""
        self.console.seek(0)
        return self.console.read()[-4000:].decode(errors="replace")

    # -- requests ----------------------------------------------------------------------------

    def _answer(self) -> dict[str, Any]:
        while b"\n" not in self.received:
            more = self.agent.recv(65536)
            assert more, f"the machine has ended: {self.log()}"
            self.received += more
        line, _, self.received = self.received.partition(b"\n")
        return dict(json.loads(line))

    def _request(self, **facts: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.agent.sendall(json.dumps({"id": number, **facts}).encode() + b"\n")
        answer = self._answer()
        while answer["id"] != number:  # of a test that was given up
            answer = self._answer()
        return answer

    def run(
        self, *argv: str | Path, account: str = "root", environ: Mapping[str, str] | None = None
    ) -> Result:
        """Run a command to its end."""
        words = [str(word) for word in argv]
        facts = self._request(argv=words, account=account, environ=dict(environ or {}))
        return Result(words, facts["status"], facts["output"], facts["errors"])

    def do(self, *argv: str | Path, **kw: Any) -> str:
        """The output of a command. A failure of it fails the test."""
        result = self.run(*argv, **kw)
        assert result.status == 0, result
        return result.output

    def shell(self, script: str, **kw: Any) -> str:
        """The output of a script of bash's."""
        return self.do("bash", "-euc", script, **kw)

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        data = content.encode() if isinstance(content, str) else content
        encoded = base64.b64encode(data).decode()
        self._request(path=path, content=encoded, mode=mode)
