"""The host port: bound before anything else, so that nobody slips in front of the server."""

from __future__ import annotations

import errno
import os
import socket

from ..diagnostics.errors import Failure, PortwrapError, failure_of
from ..kernel.addresses import BACKLOG, MAPPED, parse_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Place = tuple[Any, ...]  # what bind(2) takes

HIGHEST = 65535
EVERY_IPV4 = "0.0.0.0"
EVERY_ADDRESS = "::"
HOST_PORT, PUBLISHED = "host port", "published port"
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""This node does not have the address, or no address of its family: a name may have others."""


class HostPort:
    """A TCP port of the host: sockets of its network namespace.

    `listeners` are to be accepted from. `reserved` keep every other address of the port from
    everybody else, and the listeners' own addresses whenever a listener is shut down. They never
    listen, so the kernel refuses who connects there.
    """

    def __init__(self, number: int, address: str) -> None:
        self.number = number
        self.address = address
        self.listeners: list[socket.socket] = []
        self.reserved: list[socket.socket] = []

    def close(self) -> None:
        """Let go of the port."""
        for sock in self.listeners + self.reserved:
            sock.close()


def parse_port(text: str) -> int | None:
    """Return the number if this is a TCP port, 1 to 65535, in plain ASCII digits; else None."""
    if text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= HIGHEST and len(text) <= 5:
        return int(text)
    return None


def parse_networks(text: str) -> list[tuple[int, int, int]]:
    """Return the networks that a list like "198.18.0.1,2001:db8::/32" means, as the relay compares
    them: the bytes of an address, its bits to ignore, and the rest of it as a number.

    Raises ValueError, which says what is wrong.
    """
    return [_parse_network(item) for item in text.split(",")]


def _parse_network(text: str) -> tuple[int, int, int]:
    address, slash, bits = text.partition("/")
    packed = parse_address(address)
    if not packed:
        raise ValueError(f"{text!r} is neither an IP address nor a CIDR network")
    longest = 8 * len(packed)
    if slash and not (bits.isascii() and bits.isdigit() and len(bits) <= 3):
        raise ValueError(f"{text!r}: the number of bits must be from 0 to {longest}")
    fixed = int(bits) if slash else longest
    if fixed > longest:
        raise ValueError(f"{text!r}: the number of bits must be from 0 to {longest}")
    if packed.startswith(MAPPED) and fixed >= 8 * len(MAPPED):
        packed, fixed, longest = packed[12:], fixed - 8 * len(MAPPED), 32
    ignored = longest - fixed
    number = int.from_bytes(packed, "big")
    if number & ((1 << ignored) - 1):
        raise ValueError(f"{text!r}: the address has bits beyond its first {bits}")
    return len(packed), ignored, number >> ignored


def bind(address: str, number: int, role: str = HOST_PORT) -> HostPort:
    """Bind and listen on TCP port `number` of the host's `address`, and hold it everywhere else.

    "" and "::" mean every address of both families; a name means each of its addresses that this
    node has. `role` is for the message. Raises PortwrapError.
    """
    port = HostPort(number, address)
    try:
        _listen_at_each(port)
        _reserve(port)
    except OSError as error:
        port.close()
        raise _cannot_bind(error, port, role) from error
    return port


def _listen_at_each(port: HostPort) -> None:
    """Listen on each address that this node has. Raises OSError if it has none of them."""
    absent: OSError | None = None
    for family, place in _places_of(port.address, port.number):
        try:
            port.listeners.append(_listen(family, place))
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise
            absent = absent or error
    if absent is not None and not port.listeners:
        raise absent


def _places_of(address: str, number: int) -> list[tuple[int, Place]]:
    """Family and socket address of each place that this address or host name stands for."""
    if address in ("", EVERY_ADDRESS):
        v4, v6 = (EVERY_IPV4, number), (EVERY_ADDRESS, number)
        return [(socket.AF_INET, v4), (socket.AF_INET6, v6)]
    # As text it would have Python load its IDNA, at 2 ms of every start, names or not.
    host = address.encode() if address.isascii() else address
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
    except UnicodeError:  # an empty label, or one that is too long
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    places = [_as_ipv4(family, place) for family, _, _, _, place in found]
    return list(dict.fromkeys(places))  # a name may have an address twice in /etc/hosts


def _as_ipv4(family: int, place: Place) -> tuple[int, Place]:
    """An IPv4 address that is written as an IPv6 one is bound as what it is: an IPv6 socket takes
    it only if it takes both families."""
    if family == socket.AF_INET6:
        packed = socket.inet_pton(family, place[0].partition("%")[0])
        if packed.startswith(MAPPED):
            return socket.AF_INET, (socket.inet_ntoa(packed[len(MAPPED) :]), place[1])
    return family, place


def _listen(family: int, place: Place) -> socket.socket:
    """Listen, with SO_REUSEADDR only where the port is not free without it.

    Connections in TIME_WAIT make bind(2) fail without the option. With it a rival who has bound,
    but does not listen yet, lets us bind too; listen(2) then decides who has the port, and
    EADDRINUSE there means busy.
    """
    try:
        sock = _bind(family, place)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        sock = _bind(family, place, socket.SO_REUSEADDR)
    try:
        sock.listen(BACKLOG)
        # Accepted connections inherit it, and in their TIME_WAIT it lets the next server bind
        # (both sides of the comparison must have it). While we listen it opens nothing.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _reserve(port: HostPort) -> None:
    """Hold the port on every address of both families, by a socket that does not listen.

    Sockets of one user that all have SO_REUSEPORT may be bound to the same port (socket(7)): so
    it gets past our own listeners, and past nobody else's socket. It is the last one to be bound:
    Linux 6.1 to 6.8 may look no further than the newest socket of a wildcard address.
    """
    for listener in port.listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # For connections in TIME_WAIT, as above. Without it no rival gets in any more.
    reserved = _bind_everywhere(port.number)
    port.reserved.append(reserved)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    # Nor has one begun to listen before that, or this fails.
    _bind_everywhere(port.number).close()
    for listener in port.listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def _bind_everywhere(number: int) -> socket.socket:
    """A socket that is bound to every address of both families, as far as there are both."""
    options = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    try:
        return _bind(socket.AF_INET6, (EVERY_ADDRESS, number), *options, both=True)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:  # a kernel started with ipv6.disable=1
            raise
    return _bind(socket.AF_INET, (EVERY_IPV4, number), *options)


def _bind(family: int, place: Place, *options: int, both: bool = False) -> socket.socket:
    """A bound socket with these options of SOL_SOCKET; `both`: an IPv6 one for IPv4, too."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(place)
    except OSError:
        sock.close()
        raise
    return sock


def _cannot_bind(error: OSError, port: HostPort, role: str) -> PortwrapError:
    address = port.address or EVERY_ADDRESS
    where = f"[{address}]:{port.number}" if ":" in address else f"{address}:{port.number}"
    if isinstance(error, socket.gaierror):
        message = f"cannot look up the host address {address!r}: {error.strerror}"
        return PortwrapError(message, Failure.HOST_ADDRESS)
    failures = {
        errno.EADDRINUSE: Failure.HOST_PORT_BUSY,
        errno.EADDRNOTAVAIL: Failure.HOST_ADDRESS,
        errno.EACCES: Failure.PRIVILEGED_PORT,
    }
    failure = failures.get(error.errno or 0, failure_of(error, Failure.HOST_PORT))
    if failure == Failure.HOST_PORT_BUSY and role == PUBLISHED:
        failure = Failure.PUBLISHED_PORT_BUSY
    return PortwrapError(f"{role} {where}: {os.strerror(error.errno or 0)}", failure)
