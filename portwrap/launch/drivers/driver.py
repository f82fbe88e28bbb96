"""What the network drivers have in common."""

from __future__ import annotations

import errno
import os

from ...diagnostics.errors import Failure, PortwrapError
from ...kernel.interfaces import TUN, open_tun
from .routes import SUBNET6, free_subnet, overlapping, routes_to, used_addresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import ClassVar

    from ...diagnostics.diagnostic import Diagnostic
    from .routes import Route

PACKAGE_FOLDERS = ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin")
"""Where packages install programs: batch jobs may have a shorter PATH than it takes."""
DIRECT = "direct"
"""The name of what is in place of a driver (`direct.py`)."""
WITHOUT = ": the session would have no outbound network"
TUN_FAILURES = {
    errno.ENOENT: Failure.TUN_MISSING,
    errno.EACCES: Failure.TUN_MODE,
    errno.EPERM: Failure.TUN_FORBIDDEN,  # of a device cgroup; a mode is refused with EACCES
}
INSTALL_EVERYWHERE = (
    "Install it on every node; the PATH of batch jobs may be shorter than that of your shell."
)


class NetworkDriver:
    """A program that provides outbound connections by a tap device in the sandbox."""

    name = ""
    has_ipv6 = False
    ready_descriptor = 0
    """The file descriptor to which it writes when it is ready."""
    packages: ClassVar[Mapping[str, str]] = {}
    """The commands that install it, by system (`diagnostics.diagnostic.SYSTEMS`)."""
    by_hand = ""
    """How to run it on the namespaces of the process $!."""

    def __init__(self, path: str, routes: Sequence[Route] = (), needed: Iterable[str] = ()) -> None:
        self.path = path
        used = [*routes, *routes_to(needed)]
        self.subnet = free_subnet(used)
        self.clashes = overlapping(used, self.subnet)  # with hosts of the real network
        # its addresses in the sandbox
        self.networks = [*used_addresses(self.subnet), f"{SUBNET6}/64"]

    @classmethod
    def find(
        cls, environ: Mapping[str, str], routes: Sequence[Route], needed: Iterable[str] = ()
    ) -> NetworkDriver:
        """The driver as it is installed on this node. Its own network has none of the `needed`
        addresses. Raises PortwrapError."""
        path = find_executable(cls.name, environ)
        if path is None:
            raise PortwrapError(f"{cls.name} not found", Failure.DRIVER_NOT_FOUND, subject=cls.name)
        return cls(path, routes, needed)

    @property
    def hidden(self) -> list[str]:
        """The networks of which it reaches no real host."""
        return used_addresses(self.subnet)

    @property
    def warning(self) -> str:
        """What users have to know of a session with it, or nothing."""
        return ""

    def argv(self, pid: int) -> list[str]:
        """Its command line for the namespaces of process `pid`."""
        raise NotImplementedError

    def configure(self, resolvers: Collection[str], own_addresses: Collection[str]) -> None:
        """Make of the sandbox's network, which this process is in, what no program makes of it.
        `resolvers` are to be found there; the node's own addresses that it has already are among
        `own_addresses`. Raises OSError."""

    def refuse_without_native(self, reason: str) -> None:
        """Raise PortwrapError if it is of no use because outbound is not native."""

    @classmethod
    def diagnostics(cls) -> Sequence[Diagnostic]:
        """The causes and remedies of its failures; of those at its start the first that fits
        counts."""
        from ...diagnostics.diagnostic import Diagnostic  # nothing of it is needed to start

        return (
            *cls.own_diagnostics(),
            Diagnostic(
                Failure.DRIVER_NOT_FOUND,
                f"{cls.name} not found",
                f"This node lacks {cls.name}, and --network {cls.name} was requested.",
                INSTALL_EVERYWHERE,
                cls.packages,
                subject=cls.name,
            ),
            Diagnostic(
                Failure.DRIVER_START,
                f"{cls.name} ended before it was ready",
                f"{cls.name} does not work on this node.",
                "Run it by hand to see the cause:"
                f" 'unshare -Urn sleep 60 & sleep 1; {cls.by_hand}'",
                words=rf"^{cls.name}\b",
            ),
        )

    @classmethod
    def own_diagnostics(cls) -> Sequence[Diagnostic]:
        """Those that only this driver has."""
        return ()


def find_executable(name: str, environ: Mapping[str, str]) -> str | None:
    """Absolute path of an executable file on PATH, or where packages put it."""
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    for folder in [*folders, *PACKAGE_FOLDERS]:
        path = os.path.join(folder, name)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def why_no_tun() -> PortwrapError | None:
    """Why no network driver can work here, if the tun device is the reason."""
    try:
        os.close(open_tun())
    except OSError as error:
        failure = TUN_FAILURES.get(error.errno or 0, Failure.TUN_BROKEN)
        return PortwrapError(f"{TUN}: {error.strerror}", failure)
    return None
