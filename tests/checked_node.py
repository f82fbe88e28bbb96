"""A node of a cluster, from which the tests take things away: a network with a nameserver and a hub
in it, and mounts of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from http.server import HTTPServer
from pathlib import Path
from typing import Any, Sequence

from launches import batchspawner_portwrap
from networks import SERVER, Host, HubApi

from helpers import OWNER, as_user, end, environment, run_as
from sessions import Portwrap

OWN_DEVICES = "mount -t tmpfs -o dev,mode=0755 tmpfs /dev/net"
HIDE = "for each in /usr/bin /usr/local/bin /usr/sbin; do [ ! -e $each/{0} ] ||"
HIDE += " mount --bind /dev/null $each/{0}; done"


class Node:
    """A node of a cluster: a network with a nameserver and a hub in it, and mounts of its own."""

    def __init__(self, portwrap: Portwrap, folder: Path, preparation: Sequence[str]) -> None:
        self.portwrap = portwrap
        self.network = Host()
        self.names: dict[bytes, str] = {}  # IPv4 addresses, by names as DNS writes them
        with self.network.entered(self.network.server):
            self.resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.resolver.bind((SERVER, 53))
            self.hub = HTTPServer((SERVER, 0), HubApi)
        self.hub_url = f"http://{SERVER}:{self.hub.server_address[1]}/hub/api"
        self.threads = [threading.Thread(target=self.hub.serve_forever, args=(0.05,))]
        self.threads.append(threading.Thread(target=self.resolve))
        for thread in self.threads:
            thread.start()
        file = folder / "resolv.conf"
        file.write_text(f"nameserver {SERVER}\n")
        lines = [f"mount --bind {file} /etc/resolv.conf", *preparation, "echo ready", "read _"]
        try:
            self.holder = self.hold(lines)
            assert self.holder.stdout and self.holder.stdout.readline() == "ready\n"
        except BaseException:
            self.close()
            raise

    def hold(self, lines: Sequence[str]) -> subprocess.Popen[str]:
        """A process that keeps the mounts."""
        words = ["unshare", "-m", "sh", "-ec", "\n".join(lines)]
        return as_user("root", words, stdin=subprocess.PIPE, stderr=None)

    def resolve(self) -> None:
        """Answer every question, with "no such name" but for those that are known; end at an empty
        one."""
        while True:
            question, where = self.resolver.recvfrom(512)
            if not question:
                return
            name, _, kind = question[12:].partition(b"\0")
            known = self.names.get(name)
            if known is None:
                answer = question[:2] + b"\x81\x83" + question[4:]
            else:  # RFC 1035, 4.1: an answer is the name, as a pointer, type, class, age, address
                record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(known)
                found = record if kind.startswith(b"\0\1") else b""
                counts = bytes([0, 1, 0, bool(found), 0, 0, 0, 0])
                end = 12 + len(name) + 5
                answer = question[:2] + b"\x81\x80" + counts + question[12:end] + found
            self.resolver.sendto(answer, where)

    def close(self) -> None:
        self.hub.shutdown()
        with self.network.entered(self.network.server):
            last = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with last:
            last.sendto(b"", (SERVER, 53))
        for thread in self.threads:
            thread.join()
        self.hub.server_close()
        self.resolver.close()
        if hasattr(self, "holder"):
            assert self.holder.stdin
            self.holder.stdin.close()  # it ends with its standard input, and what it holds
            self.holder.wait(10)
            end(self.holder)
        self.network.close()

    def enter(self, *words: str | Path) -> list[str]:
        """Words that run others among the mounts of this node, as root."""
        return ["nsenter", "-t", str(self.holder.pid), "-m", "--", *map(str, words)]

    def as_owner(self, *words: str | Path) -> list[str]:
        become = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--init-groups", "--"]
        return self.enter(*become, *words)

    def program(self, *words: str) -> list[str]:
        return [self.portwrap.python, str(batchspawner_portwrap(self.portwrap)), *words]

    def run(self, words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run words in the network of this node."""
        options.setdefault("env", environment(OWNER))
        with self.network.entered(self.network.host):
            return run_as("root", words, **options)

    def check(
        self, *options: str, before: Sequence[str] = (), **popen: Any
    ) -> tuple[int, dict[str, Any]]:
        """The status and the answer of --check --json as the owner."""
        words = [*before, *self.program("--check", "--json", *options)]
        result = self.run(self.as_owner(*words), **popen)
        assert result.stderr == "" and result.stdout.count("\n") == 1, result
        return result.returncode, json.loads(result.stdout)

    def check_when_it_is_good(self, *options: str, **popen: Any) -> tuple[int, dict[str, Any]]:
        """The same; asked again if something was late. Each look has a second, and what answers it
        may have to wait for a processor."""
        for _ in range(3):
            status, answer = self.check(*options, **popen)
            if all(check["status"] == "ok" for check in answer["checks"]):
                break
        return status, answer

    def mend(self, command: str) -> None:
        """What an administrator does: the command as it stands."""
        result = self.run(self.enter("sh", "-c", command))
        assert result.returncode == 0, result


class LimitedNode(Node):
    """A node whose limits of namespaces are its own: in a user namespace that the owner made."""

    def hold(self, lines: Sequence[str]) -> subprocess.Popen[str]:
        words = ["unshare", "-Urm", "sh", "-ec", "\n".join(lines)]
        return as_user(OWNER, words, stdin=subprocess.PIPE, stderr=None)

    def enter(self, *words: str | Path) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-U", "-m", "--", *map(str, words)]

    def as_owner(self, *words: str | Path) -> list[str]:
        return self.enter(*words)
