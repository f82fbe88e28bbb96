"""The host port: bound before anything else, so that nobody slips in front of the server."""

from __future__ import annotations

import errno
import os

import _socket  # the C half of `socket`: the other half costs 5 ms of every start

from .errors import PortwrapError, hint_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BACKLOG = 4096
"""Connections the kernel keeps for us while we are busy; it lowers this to net.core.somaxconn."""

HIGHEST = 65535
EVERY_IPV4 = "0.0.0.0"
EVERY_ADDRESS = "::"
MAPPED = 10 * b"\0" + b"\xff\xff"
"""What an IPv4 address begins with where it is written as an IPv6 one (RFC 4291, 2.5.5.2)."""
HOST_PORT, PUBLISHED = "host port", "published port"


class HostPort:
    """Listening sockets of the host's network namespace.

    `serving` are to be accepted from. `guards` only keep the other address family of the port out
    of a neighbour's hands: the kernel refuses what connects to them, or, where one had to listen
    to get the port, it is to be reset.
    """

    def __init__(self, number: int, address: str) -> None:
        self.number = number
        self.address = address
        self.serving: list[_socket.socket] = []
        self.guards: list[_socket.socket] = []

    def close(self) -> None:
        """Let go of the port."""
        for socket in self.serving + self.guards:
            socket.close()


def parse_port(text: str) -> int | None:
    """Return the number if this is a TCP port, 1 to 65535, in plain ASCII digits; else None."""
    if text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= HIGHEST and len(text) <= 5:
        return int(text)
    return None


def parse_pairs(text: str) -> list[tuple[int, int]] | None:
    """Return the pairs of ports that a list like "8787,9000:80,30000-30010:40000-40010" means:
    each port with itself where there is no second one. None if it is no such list."""
    pairs = []
    for item in text.split(","):
        first, colon, second = item.partition(":")
        firsts = parse_range(first)
        seconds = parse_range(second) if colon else firsts
        if firsts is None or seconds is None or len(firsts) != len(seconds):
            return None
        pairs += list(zip(firsts, seconds))
    return pairs


def parse_range(text: str) -> range | None:
    """Return the ports that "30000" or "30000-30010" means; None if it is neither."""
    first, dash, last = text.strip().partition("-")
    start = parse_port(first)
    end = parse_port(last) if dash else start
    return None if start is None or end is None or end < start else range(start, end + 1)


def parse_networks(text: str) -> list[tuple[int, int, int]]:
    """Return the networks that a list like "198.18.0.1,2001:db8::/32" means, as the relay compares
    them: the bytes of an address, its bits to ignore, and the rest of it as a number.

    Raises ValueError, which says what is wrong.
    """
    return [_parse_network(item) for item in text.split(",")]


def _parse_network(text: str) -> tuple[int, int, int]:
    address, slash, bits = text.partition("/")
    try:
        packed = _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is no address, nor a network ADDRESS/BITS") from None
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


def describe_pairs(pairs: Sequence[tuple[int, int]]) -> str:
    """The text that `parse_pairs` makes these pairs of, as short as it can be."""
    runs: list[tuple[int, int, int]] = []  # first, its other port, how many
    for one, other in pairs:
        if runs and (one, other) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((one, other, 1))
    return ", ".join(
        _describe_range(one, count) + ("" if one == other else f":{_describe_range(other, count)}")
        for one, other, count in runs
    )


def _describe_range(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def bind(address: str, number: int, role: str = HOST_PORT) -> HostPort:
    """Bind and listen on TCP port `number` of the host's `address`.

    "" and "::" mean every address of both families; "0.0.0.0" every IPv4 address, and then the
    IPv6 side of the port is held without being served: a neighbour who binds [::] would otherwise
    be asked by whoever looks the node up by IPv6. `role` is for the message. Raises PortwrapError.
    """
    port = HostPort(number, address)
    try:
        if address in ("", EVERY_ADDRESS):
            _bind_every_address(port)
        elif address == EVERY_IPV4:
            port.serving.append(_listen(_socket.AF_INET, EVERY_IPV4, number))
            _guard_ipv6(port)
        else:
            port.serving.append(_listen(*_resolve(address), number))
    except OSError as error:
        port.close()
        raise _cannot_bind(error, address or EVERY_ADDRESS, number, role) from error
    return port


def _bind_every_address(port: HostPort) -> None:
    port.serving.append(_listen(_socket.AF_INET, EVERY_IPV4, port.number))
    if _has_ipv6():
        port.serving.append(_listen(_socket.AF_INET6, EVERY_ADDRESS, port.number))


def _guard_ipv6(port: HostPort) -> None:
    """Hold [::]:PORT. Bound alone is enough, and a client that tries IPv6 first goes on to IPv4."""
    if not _has_ipv6():
        return
    try:
        guard = _bind_once(_socket.AF_INET6, EVERY_ADDRESS, port.number)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        guard = _listen(_socket.AF_INET6, EVERY_ADDRESS, port.number)
    port.guards.append(guard)


def _has_ipv6() -> bool:
    """Whether there is any IPv6: a kernel started with ipv6.disable=1 makes no socket of it."""
    try:
        _socket.socket(_socket.AF_INET6, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC).close()
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return False
    return True


def _resolve(address: str) -> tuple[int, str]:
    """Return the family and the numeric form of an address or host name; IPv4 where it has both."""
    try:
        found = _socket.getaddrinfo(address, None, type=_socket.SOCK_STREAM)
    except UnicodeError:  # an empty label, or one that is too long
        raise _socket.gaierror(_socket.EAI_NONAME, "not a host name") from None
    family, _, _, _, where = min(found, key=lambda entry: entry[0] != _socket.AF_INET)
    return family, str(where[0])


def _listen(family: int, address: str, number: int) -> _socket.socket:
    """Listen, with SO_REUSEADDR only where the port is not free without it.

    Connections in TIME_WAIT make bind(2) fail without the option. With it a rival who has bound,
    but does not listen yet, lets us bind too; listen(2) then decides who has the port, and
    EADDRINUSE there means busy.
    """
    for reuse in (False, True):
        try:
            socket = _bind_once(family, address, number, reuse)
        except OSError as error:
            if reuse or error.errno != errno.EADDRINUSE:
                raise
        else:
            break
    try:
        socket.listen(BACKLOG)
        # Accepted connections inherit it, and in their TIME_WAIT it lets the next server bind
        # (both sides of the comparison must have it). While we listen it opens nothing.
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    except OSError:
        socket.close()
        raise
    return socket


def _bind_once(family: int, address: str, number: int, reuse: bool = False) -> _socket.socket:
    socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        if family == _socket.AF_INET6:
            socket.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        if reuse:
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        socket.bind((address, number))
    except OSError:
        socket.close()
        raise
    return socket


def _cannot_bind(error: OSError, address: str, number: int, role: str) -> PortwrapError:
    where = f"[{address}]:{number}" if ":" in address else f"{address}:{number}"
    message = f"{role} {where}: {os.strerror(error.errno or 0)}"
    if isinstance(error, _socket.gaierror):
        message = f"cannot look up the host address {address!r}: {error.strerror}"
    return PortwrapError(message, hint_for(message))
