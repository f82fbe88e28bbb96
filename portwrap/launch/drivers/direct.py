"""direct: no network driver. TCP leaves natively, names are relayed, and all else fails at once.

Nothing has to be installed on the node, and there need be no tun device. Every address is one of
the sandbox's own loopback, so that programs find a source address (by connect(2) of a UDP socket,
which sends nothing), and what they send by UDP is refused there: an ICMP error has a local source.
TCP of sockets that cannot be replaced, and ping, are unreachable by rule: else they would wait for
minutes. To bind to such an address fails (`keeper/outbound.py`).
"""

from __future__ import annotations

import socket

from ...diagnostics.errors import Failure, PortwrapError
from ...kernel.addresses import pack
from ...kernel.netlink import family_of
from ...kernel.rtnetlink import TABLE_LOCAL, Netlink
from ..services import is_loopback
from .driver import DIRECT, WITHOUT, NetworkDriver
from .routes import ADDRESS6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from .routes import Route

RESOLVERS, OWN, TCP, PING, ALL = 5, 10, 20, 21, 30
"""Priorities of the rules: what there is in the sandbox is found before what is unreachable."""
ICMP: dict[int, int] = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
FAR = ("192.0.2.1", "2001:db8::1")
"""Addresses of nobody (RFC 5737, RFC 3849), to which a default route leads."""


class Direct(NetworkDriver):
    """What is in place of a network driver. It runs no program."""

    name = DIRECT

    def __init__(
        self,
        routes: Sequence[Route] = (),
        needed: Iterable[str] = (),
        instead_of: PortwrapError | None = None,
    ) -> None:
        super().__init__("", routes, needed)
        self.instead_of = instead_of  # why there is no network driver, if one was wanted
        self.sources = list(map(source_towards, FAR))

    @classmethod
    def find(
        cls, environ: Mapping[str, str], routes: Sequence[Route], needed: Iterable[str] = ()
    ) -> NetworkDriver:
        return cls(routes, needed)

    @property
    def warning(self) -> str:
        if self.instead_of is None:
            return ""
        reason = self.instead_of.message.replace(WITHOUT, "")
        return f"{reason}: only TCP connections and names leave the session (--network direct)"

    def refuse_without_native(self, reason: str) -> None:
        if self.instead_of is not None:
            raise self.instead_of
        message = f"--network direct is not possible: {reason}"
        raise PortwrapError(message, Failure.NATIVE_OUTBOUND)

    def configure(self, resolvers: Collection[str], own_addresses: Collection[str]) -> None:
        # Programs tell others the address that they find to be their own.
        own = [
            source if source in own_addresses else address
            for source, address in zip(self.sources, (f"{self.subnet}.100", ADDRESS6))
        ]
        netlink = Netlink()
        try:
            loopback = next(
                index for index, (name, _) in netlink.interfaces().items() if name == "lo"
            )
            far = [pack(each) for each in resolvers if not is_loopback(each)]
            for address in map(pack, own):
                try:
                    configure_family(netlink, loopback, address, far)
                except OSError:
                    if family_of(address) == socket.AF_INET:
                        raise
                    # else there is no IPv6 in the sandbox
        finally:
            netlink.close()


def source_towards(address: str) -> str:
    """The address that this host's packets to another one leave from; "" if none leads there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def configure_family(
    netlink: Netlink, loopback: int, own: bytes, resolvers: Sequence[bytes]
) -> None:
    """The addresses, routes and rules of one address family. Raises OSError."""
    family = family_of(own)
    add_if_missing(netlink, loopback, own)
    netlink.add_local_default(loopback, own)
    netlink.add_rule_without_default(family, OWN, TABLE_LOCAL)
    netlink.add_rule(family, ALL, TABLE_LOCAL)
    for resolver in resolvers:
        if family_of(resolver) == family:
            # The sandbox answers there by UDP; to ping it would be to ping oneself.
            netlink.add_unreachable(family, RESOLVERS, ICMP[family], resolver)
            add_if_missing(netlink, loopback, resolver)
    netlink.add_unreachable(family, TCP, socket.IPPROTO_TCP)
    netlink.add_unreachable(family, PING, ICMP[family])
    netlink.delete_rule(family, 0, TABLE_LOCAL)


def add_if_missing(netlink: Netlink, loopback: int, address: bytes) -> None:
    """An address that may be one of the node's own. Raises OSError."""
    try:
        netlink.add_address(loopback, address)
    except FileExistsError:
        pass
