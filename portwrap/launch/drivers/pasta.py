"""pasta: forwards packets of the sandbox through sockets of the host. IPv4, and IPv6 where there
is."""

from __future__ import annotations

import os

from ...diagnostics.errors import Failure, PortwrapError
from .driver import NetworkDriver
from .routes import ADDRESS6, DEVICE, ROUTER6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import ClassVar

    from ...diagnostics.diagnostic import Diagnostic
    from .routes import Route


class Pasta(NetworkDriver):
    """In the foreground it reports that it is ready by writing its pid file, here its standard
    output (passt(1))."""

    name = "pasta"
    has_ipv6 = True
    ready_descriptor = 1
    packages: ClassVar[Mapping[str, str]] = {
        "debian": "apt-get install passt",
        "rhel10": "dnf install passt",
    }
    by_hand = "pasta --config-net $!"

    def __init__(self, path: str, routes: Sequence[Route] = (), needed: Iterable[str] = ()) -> None:
        super().__init__(path, routes, needed)
        self.interface = _template_interface(routes)

    @classmethod
    def find(
        cls, environ: Mapping[str, str], routes: Sequence[Route], needed: Iterable[str] = ()
    ) -> NetworkDriver:
        if os.geteuid() == 0:
            raise PortwrapError("pasta does not run for root", Failure.DRIVER_NOT_FOR_ROOT)
        return super().find(environ, routes, needed)

    def argv(self, pid: int) -> list[str]:
        return [
            self.path,
            "--foreground",
            "--quiet",
            f"--pid=/proc/self/fd/{self.ready_descriptor}",
            "--config-net",
            # By default every port that is open inside is open on the host too, and vice versa.
            *("--tcp-ports=none", "--udp-ports=none", "--tcp-ns=none", "--udp-ns=none"),
            # without it its router is the host's 127.0.0.1, with every service of every user there
            "--no-map-gw",
            # By default it takes the host's address, and hides the host's servers with that.
            f"--address={self.subnet}.100",
            "--netmask=24",
            f"--gateway={self.subnet}.2",
            f"--address={ADDRESS6}",
            f"--gateway={ROUTER6}",
            f"--ns-ifname={DEVICE}",
            *([f"--interface={self.interface}"] if self.interface else []),
            str(pid),
        ]

    @classmethod
    def own_diagnostics(cls) -> Sequence[Diagnostic]:
        from ...diagnostics.diagnostic import Diagnostic  # nothing of it is needed to start

        return (
            Diagnostic(
                Failure.DRIVER_NOT_FOR_ROOT,
                "pasta does not run for root",
                "pasta gives up root's privileges, and with them its rights over the sandbox.",
                "As root use slirp4netns, or --network none for loopback only.",
                {"debian": "apt-get install slirp4netns", "rhel": "dnf install slirp4netns"},
            ),
            Diagnostic(
                Failure.DRIVER_TOO_OLD,
                "pasta: unrecognized option '--…'",
                "This pasta is too old: 2022_07_14 or newer is required.",
                "Install a newer one, or use --network slirp4netns.",
                words=r"^pasta.*unrecognized option",
                recorded=True,
            ),
            Diagnostic(
                Failure.DRIVER_CONFINED,
                "pasta …: netns dir open: Permission denied",
                "SELinux or AppArmor forbids pasta to enter the sandbox: see 'ausearch -c pasta'.",
                "Work around it with --network slirp4netns.",
                {"rhel": "dnf upgrade passt-selinux", "rhel10": "dnf upgrade passt-selinux"},
                words=r"^pasta.*(netns dir open|/ns/.*): Permission denied",
                recorded=True,
            ),
            Diagnostic(
                Failure.DRIVER_INTERFACE,
                "pasta …: External interface not usable",
                "This pasta needs an interface with a route, and the node has none.",
                "Use --network slirp4netns, or --network none for loopback only.",
                words=r"^pasta.*External interface not usable",
            ),
        )


def _template_interface(routes: Sequence[Route]) -> str:
    """The interface that pasta is to take as its template, or "" where it finds one by itself.

    Older ones do where there is a default route, and give up where there is none, as on nodes of
    a closed network. What the sandbox sends is bound to no interface either way.
    """
    if any(route.mask == 0 for route in routes):
        return ""
    return next((route.interface for route in routes), "")
