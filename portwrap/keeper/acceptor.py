"""The acceptor: takes clients from listening sockets, as long as there is room for them."""

from __future__ import annotations

import _socket

from ..kernel.addresses import unmapped
from ..kernel.sockets import OUT_OF_RESOURCES, accept, reset
from .reactor import READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .connector import Connector, Upstream
    from .reactor import Reactor, Timer
    from .streams import Endpoint, Streams

MAX_ACCEPTS = 64
"""Connections accepted in a row before those that are there have their turn."""
RESUME_PAUSE = 1.0
"""Seconds until accepting goes on after the system had no descriptor or memory for us."""


class Acceptor:
    """Accepts on listening sockets, and has each client connected to its listener's upstream."""

    def __init__(
        self, reactor: Reactor, streams: Streams, connector: Connector, max_connections: int
    ) -> None:
        self.reactor = reactor
        self.streams = streams
        self.connector = connector
        self.max_connections = max_connections
        self.listeners: dict[int, tuple[_socket.socket, Upstream]] = {}
        self.paused = False
        self.timer: Timer | None = None  # of the end of the pause; None: it ends with a connection
        streams.on_drop.append(self.on_drop)

    def serve(self, listener: _socket.socket, upstream: Upstream) -> None:
        """Forward every connection that this listening socket takes. Raises OSError."""
        # Sockets from accept(2) inherit it (tcp(7)): small messages must not wait for an answer.
        listener.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        self.reactor.register(listener.fileno(), self.on_clients, 0 if self.paused else READABLE)
        self.listeners[listener.fileno()] = listener, upstream

    def release(self, listener: _socket.socket) -> None:
        """Undo `serve`; connections that are there go on."""
        self.reactor.unwatch(listener.fileno())
        del self.listeners[listener.fileno()]

    def on_clients(self, descriptor: int, _events: int) -> None:
        """Take what waits at this listening socket, as far as there is room for it."""
        listener, upstream = self.listeners[descriptor]
        for _ in range(MAX_ACCEPTS):
            if self.paused or not self.has_room():
                self.pause()
                return
            try:
                client, address = accept(listener)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self.pause(RESUME_PAUSE)
                continue  # else ECONNABORTED and its like: this client is gone (accept(2))
            if upstream.allowed and not is_among(client.family, address, upstream.allowed):
                reset(client)
            else:
                self.connect(client, upstream)

    def connect(self, client: _socket.socket, upstream: Upstream) -> None:
        """Have this client connected to its upstream, or reset it."""
        try:
            self.connector.connect(client, upstream)
        except OSError as error:
            reset(client)
            if error.errno in OUT_OF_RESOURCES:
                self.pause(RESUME_PAUSE)

    # -- room ------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether there are descriptors for one more connection."""
        return len(self.streams.endpoints) + 2 <= 2 * self.max_connections

    def pause(self, seconds: float = 0.0) -> None:
        """Accept nothing for so many seconds; 0: until there is room, when a connection ends."""
        if not self.paused:
            self.paused = True
            self.timer = self.reactor.call_in(seconds, self.resume) if seconds else None
            self.listen_to(0)

    def on_drop(self, _: Endpoint) -> None:
        if self.paused and self.timer is None:
            self.resume()

    def resume(self) -> None:
        """Accept again, if there is room."""
        self.timer = None
        if self.has_room():
            self.paused = False
            self.listen_to(READABLE)

    def listen_to(self, events: int) -> None:
        for descriptor in self.listeners:
            self.reactor.modify(descriptor, events)


def is_among(family: int, address: Any, networks: Sequence[tuple[int, int, int]]) -> bool:
    """Whether the address of a client is one of these networks."""
    packed = unmapped(_socket.inet_pton(family, address[0]))  # of an IPv4 client, too
    number = int.from_bytes(packed, "big")
    return any(
        len(packed) == length and number >> ignored == rest for length, ignored, rest in networks
    )
