"""Where a connect(2) of the sandbox leads: to an address of the sandbox, or out of it.

The sandbox has its loopback and the network of its network driver. It has the node's own addresses
too, for what listens there. The ports of the host's loopback that are offered as host services are
out of it.
"""

from __future__ import annotations

import os
import sys

import _socket

from ..kernel import procfs
from ..kernel.sockets import MAPPED, pack, serves

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..protocol import Go

AF_INET, AF_INET6 = _socket.AF_INET, _socket.AF_INET6
STREAM = _socket.SOCK_STREAM
SIZES = {AF_INET: 16, AF_INET6: 28}
"""Bytes of struct sockaddr_in and of sockaddr_in6."""
MAX_SIZE = 28
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
        self.family = int.from_bytes(data[:2], sys.byteorder)
        size = SIZES.get(self.family, 0)
        self.is_internet = 0 < size <= len(data)
        self.data = data[:size]
        self.port = int.from_bytes(data[2:4], "big")
        self.address = data[4:8] if self.family == AF_INET else data[8:24]
        if self.address[:12] == MAPPED:
            self.address = self.address[12:]


class Destinations:
    """Which of them are out of the sandbox."""

    def __init__(self, go: Go) -> None:
        """Raises OSError."""
        inside = [*ALWAYS_INSIDE, *go.driver_networks]
        self.inside = {
            size: [(ignored, rest) for length, ignored, rest in inside if length == size]
            for size in (4, 16)
        }
        services = list(addresses_of(go.descriptors.services))
        self.services = {(address, port) for kind, address, port in services if kind == STREAM}
        self.served = {address for _, address, _ in services}
        self.own = frozenset(map(pack, go.own_addresses))
        self.routed = {(pack(address), port) for address, port in go.routed_ports}
        self.command = go.command

    def is_outside(self, destination: Destination) -> bool:
        """Whether a TCP connection to it leaves the sandbox."""
        address = destination.address
        if (address, destination.port) in self.services:
            return True
        if self.is_inside(address):
            return False
        return address not in self.own or not self.listens(address, destination.port)

    def is_routed_out(self, destination: Destination) -> bool:
        """Whether the sandbox's rules lead there out of it, whatever listens in it."""
        return (destination.address, destination.port) in self.routed

    def is_inside(self, address: bytes) -> bool:
        """Whether it is of a network that only the sandbox has."""
        number = int.from_bytes(address, "big")
        for ignored, rest in self.inside[len(address)]:  # noqa: SIM110 (any() takes twice as long)
            if number >> ignored == rest:
                return True
        return False

    def exists(self, destination: Destination) -> bool:
        """Whether something in the sandbox can be bound to it."""
        address = destination.address
        return address in self.own or address in self.served or self.is_inside(address)

    def listens(self, address: bytes, port: int) -> bool:
        """Whether something in the sandbox listens on this port of one of the node's addresses."""
        return any(
            port == each.port and serves(each.address, address)
            for each in procfs.tcp_listeners(self.command)
        )


def addresses_of(listeners: Sequence[int]) -> Iterator[tuple[int, bytes, int]]:
    """Kind, address and port of each host service, from its socket in the sandbox."""
    for number in listeners:
        socket = _socket.socket(fileno=os.dup(number))
        address, port = socket.getsockname()[:2]
        yield socket.type, pack(address), port
        socket.close()
