"""slirp4netns: a TCP/IP stack in user space, with a network of its own. IPv4 only."""

from __future__ import annotations

from ...diagnostics.errors import Failure
from .driver import NetworkDriver
from .routes import DEVICE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import ClassVar

    from ...diagnostics.diagnostic import Diagnostic


class Slirp4netns(NetworkDriver):
    """It reports that it is ready by a byte to the descriptor of --ready-fd (slirp4netns(1))."""

    name = "slirp4netns"
    ready_descriptor = 3
    packages: ClassVar[Mapping[str, str]] = {
        "debian": "apt-get install slirp4netns",
        "rhel": "dnf install slirp4netns",
    }
    by_hand = "slirp4netns --configure $! tap0"

    def argv(self, pid: int) -> list[str]:
        return [
            self.path,
            "--configure",
            "--mtu=65520",
            f"--cidr={self.subnet}.0/24",
            # without it its router is the host's 127.0.0.1, with every service of every user there
            "--disable-host-loopback",
            f"--ready-fd={self.ready_descriptor}",
            str(pid),
            DEVICE,
        ]

    @property
    def hidden(self) -> list[str]:
        """It takes all of its own subnet for the host's loopback."""
        return [f"{self.subnet}.0/24"]

    @property
    def warning(self) -> str:
        if not self.clashes:
            return ""
        found = ", ".join(dict.fromkeys(map(str, self.clashes)))
        return (
            f"slirp4netns hides {self.hidden[0]} from the session, and this node's {found}:"
            " only native TCP connections reach hosts there"
        )

    @classmethod
    def own_diagnostics(cls) -> Sequence[Diagnostic]:
        from ...diagnostics.diagnostic import Diagnostic  # nothing of it is needed to start

        return (
            Diagnostic(
                Failure.DRIVER_TOO_OLD,
                "slirp4netns: unrecognized option '--…'",
                "This slirp4netns is too old: 0.4.0 or newer is required.",
                "Install a newer one, or use --network pasta.",
                words=r"^slirp4netns.*unrecognized option",
                recorded=True,
            ),
            Diagnostic(
                Failure.DRIVER_CONFINED,
                "/proc/…/ns/net: Permission denied",
                "AppArmor or SELinux forbids slirp4netns to enter the sandbox.",
                "See 'ausearch -c slirp4netns' or 'journalctl -k --grep DENIED' as root;"
                " work around it with --network pasta.",
                words=r"^slirp4netns.*/ns/(net|user).*Permission denied",
                recorded=True,
            ),
        )
