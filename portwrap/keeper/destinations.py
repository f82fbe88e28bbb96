"""Where a connect(2) of the sandbox leads: to an address of the sandbox, or out of it.

The sandbox has its loopback and the network of its network driver. It has the node's own addresses
too, for what listens there. The ports of the host's loopback that are offered as host services are
out of it.
"""

from __future__ import annotations

import os
import sys

import _socket

from ..kernel import sock_diag, socket_tables
from ..kernel.addresses import pack, serves, unmapped
from .host_addresses import HostAddresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..kernel.addresses import BoundSocket
    from ..kernel.callers import Memory
    from ..kernel.netlink import NetlinkSocket
    from ..kernel.seccomp import Notification
    from ..protocol import Go

AF_INET, AF_INET6 = _socket.AF_INET, _socket.AF_INET6
STREAM = _socket.SOCK_STREAM
MAX_SIZE = 28
MAX_LENGTH = 128
"""sizeof(struct sockaddr_storage): connect(2) and bind(2) take no longer address."""
KINDS: dict[bytes, tuple[int, int, slice]] = {
    # the first two bytes of struct sockaddr_in and of sockaddr_in6, their sizes, and where the
    # address is
    AF_INET.to_bytes(2, sys.byteorder): (AF_INET, 16, slice(4, 8)),
    AF_INET6.to_bytes(2, sys.byteorder): (AF_INET6, MAX_SIZE, slice(8, 24)),
}
MAX_DECIDED = 256
"""Addresses of which is remembered whether they are inside."""
NO_KIND: tuple[int, int, slice] = (0, sys.maxsize, slice(0))
OUTSIDE, INSIDE, MISLED, REFUSED = "outside", "inside", "misled", "refused"
ALWAYS_INSIDE = (
    # Networks as `launch.ports.parse_networks` has them: the bytes of an address, its bits that do
    # not count, and the rest of it.
    (4, 24, 127),  # 127.0.0.0/8
    (4, 24, 0),  # 0.0.0.0/8, by which Linux connects to the loopback
    (4, 29, 0b111),  # 224.0.0.0/3: groups, and what is nobody's
    (16, 1, 0),  # :: and ::1
    (16, 118, 0xFE80 >> 6),  # fe80::/10: each interface has its own
    (16, 120, 0xFF),  # ff00::/8
)


class Destination:
    """An address that a program wants to connect to: the very bytes that were looked at."""

    __slots__ = ("address", "data", "family", "is_internet", "port")

    def __init__(self, data: bytes) -> None:
        self.family, size, place = KINDS.get(data[:2], NO_KIND)
        self.is_internet = size <= len(data)
        self.data = data[:size]
        self.port = int.from_bytes(data[2:4], "big")
        self.address = unmapped(data[place])


def read_destination(notification: Notification, memory: Memory) -> Destination | None:
    """The address that the caller of connect(2) or bind(2) gives; None: of no family of the
    Internet's. Raises OSError."""
    address, length = notification.arguments[1], notification.arguments[2] & 0xFFFFFFFF
    if length > MAX_LENGTH:
        return None
    data = memory.read(notification.thread, address, min(length, MAX_SIZE))
    destination = Destination(data)
    return destination if destination.is_internet else None


class Destinations:
    """Which of them are out of the sandbox."""

    def __init__(self, go: Go, diagnosis: NetlinkSocket | None = None) -> None:
        """`diagnosis` is a socket of the sandbox's, of NETLINK_SOCK_DIAG. Raises OSError."""
        self.diagnosis = diagnosis
        self.host = HostAddresses()
        inside = [*ALWAYS_INSIDE, *go.driver_networks]
        self.inside = {
            size: [(ignored, rest) for length, ignored, rest in inside if length == size]
            for size in (4, 16)
        }
        self.decided: dict[bytes, bool] = {}
        services = list(addresses_of(go.descriptors.services))
        self.services = {(address, port) for kind, address, port in services if kind == STREAM}
        self.served = {address for _, address, _ in services}
        self.own = frozenset(map(pack, go.own_addresses))
        self.routed = {(pack(address), port) for address, port in go.routed_ports}
        self.command = go.command

    def find(self, destination: Destination) -> str:
        """Where a TCP connection to it is to be made: OUTSIDE, INSIDE, or MISLED, which is inside
        though the sandbox's rules lead out of it; or REFUSED: outside there may be another user's
        server, and the owner's own, for every address, is inside, which has not got this one."""
        address, port = destination.address, destination.port
        if self.services and (address, port) in self.services:
            return OUTSIDE
        if self.is_inside(address):
            return INSIDE
        is_own = address in self.own
        if not (is_own or self.host.have(address)) or not self.listens(address, port):
            return OUTSIDE
        if not is_own:
            return REFUSED
        return MISLED if (address, port) in self.routed else INSIDE

    def is_inside(self, address: bytes) -> bool:
        """Whether it is of a network that only the sandbox has."""
        found = self.decided.get(address)
        if found is None:
            number = int.from_bytes(address, "big")
            networks = self.inside[len(address)]
            found = any(number >> ignored == rest for ignored, rest in networks)
            if len(self.decided) >= MAX_DECIDED:
                self.decided.clear()
            self.decided[address] = found
        return found

    def exists(self, destination: Destination) -> bool:
        """Whether something in the sandbox can be bound to it."""
        address = destination.address
        return address in self.own or address in self.served or self.is_inside(address)

    def listens(self, address: bytes, port: int) -> bool:
        """Whether something in the sandbox listens on this port of one of the node's addresses."""
        return any(
            port == each.port and serves(each.address, address) for each in self.listeners(port)
        )

    def listeners(self, port: int) -> list[BoundSocket]:
        """The sandbox's TCP sockets that listen on this port, and maybe others. Not from /proc
        where the kernel can be asked: the command may have gone on to another network namespace,
        and many connections make it slow."""
        if self.diagnosis is not None:
            try:
                return sock_diag.tcp_listeners(self.diagnosis, port)
            except OSError:
                self.diagnosis = None  # a kernel without sock_diag
        return socket_tables.tcp_listeners(self.command)


def addresses_of(listeners: Sequence[int]) -> Iterator[tuple[int, bytes, int]]:
    """Kind, address and port of each host service, from its socket in the sandbox."""
    for number in listeners:
        socket = _socket.socket(fileno=os.dup(number))
        address, port = socket.getsockname()[:2]
        yield socket.type, pack(address), port
        socket.close()
