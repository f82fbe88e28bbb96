"""The way out of the sandbox: a network helper on its tap device. Inbound never goes through it."""

from __future__ import annotations

import os

from .errors import PortwrapError, hint_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

READY_LIMIT = 10.0
"""Seconds that a network helper may take until it says that it is ready."""


class Slirp4netns:
    """slirp4netns: a TCP/IP stack in user space with 10.0.2.0/24 of its own.

    Says that it is ready by writing a byte to the descriptor of --ready-fd (slirp4netns(1)).
    """

    name = "slirp4netns"

    def __init__(self, path: str) -> None:
        self.path = path

    def command(self, pid: int, ready: int) -> list[str]:
        """The command line for the namespaces of process `pid`; `ready` is a descriptor number."""
        return [
            self.path,
            "--configure",
            "--mtu=65520",
            # without it 10.0.2.2 is the host's 127.0.0.1, with every service of every user there
            "--disable-host-loopback",
            f"--ready-fd={ready}",
            str(pid),
            "tap0",
        ]


def choose(environ: Mapping[str, str]) -> Slirp4netns:
    """The network helper to use, looked up on PATH. Raises PortwrapError where there is none."""
    path = find_executable(Slirp4netns.name, environ)
    if path is None:
        message = "slirp4netns is not on PATH, and without it the sandbox has no way out"
        raise PortwrapError(message, hint_for(message))
    return Slirp4netns(path)


def find_executable(name: str, environ: Mapping[str, str]) -> str | None:
    """Absolute path of an executable file on PATH, then in the places where packages put them."""
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    for folder in [*folders, "/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"]:
        path = os.path.join(folder, name)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
