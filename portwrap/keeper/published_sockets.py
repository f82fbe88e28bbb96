"""The host's sockets of a published port: made when a server listens, and gone when it ends.

A server is given one that nobody else has, so that its clients are refused as soon as it closes it,
as they are without us. The port stays the session's all the time: by a socket that never listens
(`launch/ports.py`), beside which only sockets of this account that have SO_REUSEPORT can be bound.
"""

from __future__ import annotations

import errno

import _socket

from ..kernel import procfs
from ..kernel.addresses import is_loopback, parse_address, unmapped
from ..kernel.sockets import OpenFile, bind_to_reserved
from .host_sockets import Holder, listen_again

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .reactor import Reactor

ONLY_IPV6 = _socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY
EVERY_IPV4, EVERY_ADDRESS = "0.0.0.0", "::"
IN_IPV6 = "::ffff:"
"""What an IPv4 address begins with that is written as an IPv6 one."""
NOT_THE_NODES = (errno.EADDRNOTAVAIL, errno.EINVAL)
"""Errors of bind(2) for an address of another host; EINVAL: a link-local one without interface."""


class PublishedSockets:
    """Makes them. A server that has one is watched for its end."""

    def __init__(
        self, descriptors: Sequence[int], reactor: Reactor, on_end: Callable[[], None]
    ) -> None:
        """`descriptors` are of sockets that are bound where the port is published."""
        self.holder = Holder(reactor, self.on_process_end)
        self.on_end = on_end  # called when a server's process has ended, and its socket with it
        self.places: list[tuple[str, int]] = []
        for number in descriptors:
            bound = _socket.socket(fileno=number)
            self.places.append(name_of(bound))
            bound.close()
        self.sockets: list[_socket.socket] = []  # those that we have
        self.given: OpenFile | None = None  # the one that only a server has
        self.link = ""  # as /proc names it

    def for_server(self, server: _socket.socket) -> _socket.socket | None:
        """A new one that can be in the place of this socket. None: there is no address for it.
        Raises OSError."""
        self.close()
        only_ipv6 = server.family == _socket.AF_INET6 and bool(server.getsockopt(*ONLY_IPV6))
        for address, port in sorted(self.places, reverse=True):  # [::] before 0.0.0.0
            place = in_family(server.family, address)
            if place and not (only_ipv6 and place.startswith(IN_IPV6)):
                self.sockets.append(bound_as(server, place, port, only_ipv6))
                return self.sockets[0]
        return None

    def open_others(self) -> list[OSError]:
        """Listen where the one that was made last does not; returns why some could not be made: an
        address may have gone from the host."""
        errors = []
        for address, port in self.places:
            if not any(takes_clients_of(each, address, port) for each in self.sockets):
                family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
                try:
                    self.sockets.append(bound(family, address, port, True))
                    listen_again(self.sockets[-1])
                except OSError as error:
                    errors.append(error)
        return errors

    def find(self, socket: _socket.socket) -> _socket.socket | None:
        """The same if a server has it from us."""
        is_given = self.given is not None and self.given.any_is_open()
        return socket if is_given and procfs.link_of(socket.fileno()) == self.link else None

    def are_served(self) -> bool:
        """Whether somebody has the given one, and it listens."""
        return self.given is not None and self.given.listens()

    def watch(self, process: int, _: int) -> None:
        """The one that was made last is this process's alone from now on."""
        host = self.sockets.pop(0)
        self.given, self.link = OpenFile(host.fileno()), procfs.link_of(host.fileno())
        host.close()
        self.holder.watch(process)  # if it has ended, the next call of bind will show that

    def on_process_end(self) -> None:
        """Another process that has it may serve on."""
        self.holder.forget()
        if self.are_served():
            self.holder.watch_any((self.link,))
        else:
            self.on_end()

    def close(self) -> None:
        """Have clients refused, but where a server has one of these."""
        for socket in self.sockets:
            socket.close()
        self.sockets.clear()
        if self.given is not None:
            self.given.close()
            self.given = None


def name_of(socket: _socket.socket) -> tuple[str, int]:
    """Its address and port. A link-local address names its interface, without which it is none."""
    address, port, *rest = socket.getsockname()
    return (f"{address}%{rest[1]}" if rest and rest[1] else address), port


def takes_clients_of(socket: _socket.socket, address: str, port: int) -> bool:
    """Whether it is for clients of this address and port, too."""
    own, own_port = name_of(socket)
    if own == EVERY_ADDRESS and address == EVERY_IPV4:
        return own_port == port and not socket.getsockopt(*ONLY_IPV6)
    return (own, own_port) == (address, port) or (own, own_port) == (IN_IPV6 + address, port)


def in_family(family: int, address: str) -> str:
    """This address as one of that address family; "" if it has none."""
    if family == _socket.AF_INET6:
        return address if ":" in address else IN_IPV6 + address
    if address.startswith(IN_IPV6):
        return address[len(IN_IPV6) :]
    return "" if ":" in address else address


def bound_as(server: _socket.socket, place: str, port: int, only_ipv6: bool) -> _socket.socket:
    """A socket that is bound to the server's own address if that is the node's, too, and the port
    published there; else where it is published. Raises OSError.

    Programs look at where their socket is bound, and announce that address.
    """
    own = server.getsockname()[0]
    prefix = place[: -len(EVERY_IPV4)] if place.endswith(EVERY_IPV4) else ""
    everywhere = place in (EVERY_ADDRESS, prefix + EVERY_IPV4)
    if everywhere and own.startswith(prefix) and not is_every_hosts(own):
        try:
            return bound(server.family, own, port, only_ipv6)
        except OSError as error:
            if error.errno not in NOT_THE_NODES:
                raise
    return bound(server.family, place, port, only_ipv6)


def is_every_hosts(address: str) -> bool:
    """Whether every host has this address, and so none can announce it."""
    number = unmapped(parse_address(address.partition("%")[0]))
    return is_loopback(number) or not any(number)


def bound(family: int, address: str, port: int, only_ipv6: bool) -> _socket.socket:
    """A socket that is bound there, beside the one that reserves the port. Raises OSError."""
    made = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        if family == _socket.AF_INET6:
            made.setsockopt(*ONLY_IPV6, only_ipv6)
        host, _, interface = address.partition("%")
        name = (host, port, 0, int(interface)) if interface else (host, port)
        bind_to_reserved(made, name)
    except OSError:
        made.close()
        raise
    return made
