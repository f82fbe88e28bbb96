"""Host services: ports of the host's loopback that answer inside, under the same address.

The sandbox's loopback is another one than the host's. For each service the launching process
listens inside, on the very address and port that the service has on the host, and gives the
listening socket to the keeper, which stays outside and connects there. Nothing else is reachable.
"""

from __future__ import annotations

import errno
import os
import socket

from ..diagnostics.errors import Failure, PortwrapError, failure_of
from ..kernel import addresses, sock_diag
from ..kernel.addresses import BACKLOG, pack, parse_address, unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_SOCKETS = 200
"""Sockets at most, two for a port: each takes a descriptor, of which a job may have 1,024."""
TCP = socket.SOCK_STREAM
UDP = socket.SOCK_DGRAM
LOOPBACK_IPV4, LOOPBACK_IPV6 = "127.0.0.1", "::1"


class Service:
    """A service of the host's loopback: a TCP or UDP port of one address."""

    def __init__(self, address: str, port: int, kind: int = TCP) -> None:
        self.address = address
        self.port = port
        self.kind = kind

    @property
    def family(self) -> int:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    @property
    def key(self) -> tuple[str, int, int]:
        """The same for two that are the same."""
        return self.address, self.port, self.kind

    def __str__(self) -> str:
        place = f"[{self.address}]" if ":" in self.address else self.address
        return f"{place}:{self.port}" + ("" if self.kind == TCP else "/udp")

    def listen(self) -> socket.socket:
        """A socket on the service's address in the network namespace of this process.

        Raises OSError.
        """
        made = socket.socket(self.family, self.kind | socket.SOCK_CLOEXEC)
        try:
            if self.family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((self.address, self.port))
            if self.kind == TCP:
                made.listen(BACKLOG)
        except OSError:
            made.close()
            raise
        return made


def of_port(port: int) -> list[Service]:
    """The services that are the host's port: of 127.0.0.1, and of ::1 where something listens.

    A client that asks `localhost` tries both addresses, and goes on to the second one only if
    nobody at all listens on the first.
    """
    services = [Service(LOOPBACK_IPV4, port)]
    if is_held("tcp6", LOOPBACK_IPV6, port):
        services.append(Service(LOOPBACK_IPV6, port))
    return services


def of_name(name: str, port: int) -> list[Service]:
    """The services that this host of a URL stands for; none if it is not on the host's loopback.

    Only this host's own name is looked up, which Debian puts on 127.0.1.1.
    """
    if name.lower() == "localhost":
        return of_port(port)
    if name.lower() in own_names():
        try:
            found = socket.getaddrinfo(name, port, type=TCP)
        except OSError:
            return []
        named = [str(entry[4][0]) for entry in found]
    else:
        named = [name]
    asked = [asked_at(address) for address in named]
    return [Service(address, port) for address in asked if is_loopback(address)]


def own_names() -> set[str]:
    """This host's name, with its domain and without."""
    name = os.uname().nodename.lower()
    return {name, name.partition(".")[0]} - {""}


def asked_at(address: str) -> str:
    """Where a client ends up that connects to this address: "every address" is the loopback, and
    an IPv4 address that is written as an IPv6 one is itself."""
    number = unmapped(parse_address(address))
    if len(number) == 4:
        address = socket.inet_ntoa(number)
    return {"0.0.0.0": LOOPBACK_IPV4, "::": LOOPBACK_IPV6}.get(address, address)


def is_loopback(address: str) -> bool:
    """Whether this is a numeric address of the loopback."""
    return addresses.is_loopback(parse_address(address))


def distinct(services: Iterable[Service]) -> list[Service]:
    """The same services, each of them once."""
    return list({service.key: service for service in services}.values())


def listen(services: Iterable[Service]) -> list[socket.socket]:
    """Sockets inside for these services. Raises PortwrapError.

    Call it in the sandbox, with the capabilities of a new user namespace: they allow low ports.
    """
    made = []
    for service in distinct(services):
        try:
            made.append(service.listen())
        except OSError as error:
            if service.family == socket.AF_INET6 and error.errno in NO_IPV6:
                continue
            raise PortwrapError(
                f"host service {service}: cannot listen in the sandbox:"
                f" {os.strerror(error.errno or 0)}",
                failure_of(error, Failure.HOST_SERVICE_LISTEN),
            ) from error
    return made


NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def check(
    services: Sequence[Service], guest_port: int, published: Iterable[tuple[int, int]]
) -> None:
    """Raise PortwrapError where a host service has a port that is forwarded into the sandbox.

    It would be published to the whole network, and the command could not listen there.
    """
    if len(services) > MAX_SOCKETS:
        raise PortwrapError(
            f"{len(services)} sockets for host services are more than {MAX_SOCKETS}",
            Failure.HOST_SERVICES_MAX,
        )
    taken = {service.port for service in services if service.kind == TCP}
    for port in (guest_port, *(inner for _, inner in published)):
        if port in taken:
            raise PortwrapError(
                f"sandbox port {port} cannot be both a host service and a forwarding target",
                Failure.HOST_SERVICE_FORWARDED,
            )


def is_held(table: str, address: str, port: int) -> bool:
    """Whether the host has a socket on this port and address, or on every address (proc(5)).

    `table` is tcp, tcp6, udp or udp6; TCP sockets count that listen.
    """
    packed = pack(address)
    return any(
        each.port == port and each.address in (packed, bytes(len(packed)))
        for each in sock_diag.waiting_sockets(table)
    )
