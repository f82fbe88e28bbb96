"""A node whose administrator has configured ssh, and a real ssh server on another one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from networks import SERVER, Host

from conftest import TEST_ROOT
from helpers import OWNER, as_user, cannot, end, environment, find_tool, identity, needs, run_as
from sessions import Portwrap, Session, unused_port

SERVER_ROOT = TEST_ROOT / "openssh-server"
"""Where tests/setup.sh puts an ssh server if none is installed."""


def ssh_server() -> tuple[Path, dict[str, str]]:
    """The program and what its environment needs."""
    fetched = SERVER_ROOT / "usr" / "sbin" / "sshd"
    if fetched.exists():
        libraries = next((SERVER_ROOT / "usr" / "lib").glob("*/libwrap.so.0")).parent
        return fetched, {"LD_LIBRARY_PATH": str(libraries)}
    installed = find_tool("sshd")
    if installed is None:
        cannot("no ssh server; tests/setup.sh gets one")
    return Path(installed), {}


class Site:
    """A node whose administrator has configured ssh, and an ssh server on another one.

    `files` are those of /etc/ssh, and of `extra`, a directory elsewhere that they may include.
    """

    def __init__(self, host: Host, folder: Path) -> None:
        needs("ssh", "ssh-keygen", "git", "unshare")
        self.folder = folder
        self.port = unused_port()
        self.etc_ssh, self.extra, self.mine = (folder / name for name in ("etc", "extra", "mine"))
        for made in (self.etc_ssh, self.etc_ssh / "ssh_config.d", self.extra, self.mine):
            made.mkdir()
        owner = identity(OWNER)
        os.chown(self.mine, owner["user"], owner["group"])
        for name in ("client", "server"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.mine / name)]
            assert run_as(OWNER, key).returncode == 0
        public = (self.mine / "client.pub").read_text()
        (self.mine / "authorized").write_text(public)
        host_key = (self.mine / "server.pub").read_text().rsplit(" ", 1)[0]
        (folder / "known").write_text(f"[{SERVER}]:{self.port} {host_key}\n")
        with host.entered(host.server):
            self.server = self._start()

    def _start(self) -> subprocess.Popen[str]:
        program, variables = ssh_server()
        settings = {
            "Port": str(self.port),
            "ListenAddress": SERVER,
            "HostKey": str(self.mine / "server"),
            "AuthorizedKeysFile": str(self.mine / "authorized"),
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
        }
        words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        argv = [str(program), "-D", "-e", "-f", "/dev/null", *words]
        server = as_user(OWNER, argv, extra_env=variables, stderr=subprocess.PIPE)
        assert server.stderr is not None
        line = server.stderr.readline()
        assert "Server listening" in line, line
        return server

    def close(self) -> None:
        end(self.server)

    @property
    def settings(self) -> str:
        """What makes `ssh site` work, in the words of ssh_config(5)."""
        lines = [
            "Host site",
            f"HostName {SERVER}",
            f"Port {self.port}",
            f"UserKnownHostsFile {self.folder}/known",
            f"IdentityFile {self.mine}/client",
            "BatchMode yes",
        ]
        return "\n  ".join(lines) + "\n"

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True, parents=True)
            text = text.replace("SETTINGS", self.settings).replace("EXTRA", str(self.extra))
            path.write_text(text)

    def before(self, command: str = "true") -> list[str]:
        """Words that run what follows as the owner where /etc/ssh is that of this site."""
        ids = identity(OWNER)
        back = f"setpriv --reuid={ids['user']} --regid={ids['group']} --init-groups"
        mounts = f"mount --make-rprivate / && mount --bind {self.etc_ssh} /etc/ssh && {command}"
        return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec {back} "$@"', "sh"]

    def run(self, portwrap: Portwrap, command: list[str], **options: Any) -> tuple[str, str, int]:
        """Run a command in a sandbox of the owner on this node."""
        env = environment(OWNER)
        settings: dict[str, Any] = {"account": "root", "before": self.before(), "extra_env": env}
        with Session(portwrap, command, **{**settings, **options}) as session:
            stdout, stderr = session.process.communicate(timeout=30)
            return stdout, stderr, session.process.returncode
