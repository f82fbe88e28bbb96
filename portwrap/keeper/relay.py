"""The relay: carries connections from listening sockets in one network namespace into another one.

The acceptor takes a client, the connector finds its server, and the streams move the bytes. All of
them are called by the reactor.
"""

from __future__ import annotations

import time

from .acceptor import Acceptor
from .connector import Connector
from .pipes import Pipes
from .streams import EVENTS, Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from .connector import Upstream
    from .reactor import Reactor


class Relay:
    """Relays from listening sockets, each to its upstream."""

    def __init__(self, reactor: Reactor, max_connections: int) -> None:
        self.reactor = reactor
        self.pipes = Pipes(max_connections)
        self.streams = Streams(reactor, self.pipes)
        self.connector = Connector(reactor, self.streams)
        room = max_connections - self.pipes.to_make
        self.acceptor = Acceptor(reactor, self.streams, self.connector, room)

    def serve(self, listener: _socket.socket, upstream: Upstream) -> None:
        """Relay every connection that this listening socket takes. Raises OSError."""
        self.acceptor.serve(listener, upstream)

    def serves(self, listener: _socket.socket) -> bool:
        return listener.fileno() in self.acceptor.listeners

    def release(self, listener: _socket.socket) -> None:
        """Undo `serve`; connections that are there go on."""
        self.acceptor.release(listener)

    def stop_serving(self, listener: _socket.socket) -> None:
        """Undo `serve` and close the socket."""
        self.acceptor.release(listener)
        listener.close()

    def stop_listening(self, inward: bool = False) -> None:
        """Undo every `serve` and close its socket; with `inward` of those that lead into the
        sandbox only."""
        for listener, upstream in list(self.acceptor.listeners.values()):
            if upstream.inward or not inward:
                self.stop_serving(listener)

    def finish(self, timeout: float) -> None:
        """Deliver what has been sent already: `timeout` seconds at most."""
        self.stop_listening(inward=True)
        for descriptor in list(self.acceptor.listeners):
            # a client in the sandbox may have sent all that it had to, and gone
            self.acceptor.on_clients(descriptor, 0)
        self.stop_listening()
        until = time.monotonic() + timeout
        for descriptor in self.streams.endpoints:
            # What is reported once only may have been reported together with the end of the
            # command: so it is reported again (epoll_ctl(2), EPOLL_CTL_MOD).
            self.reactor.modify(descriptor, EVENTS)
        while time.monotonic() < until and self.is_undelivered():
            self.reactor.run_once(until - time.monotonic())

    def is_undelivered(self) -> bool:
        """Whether anything is left that the sandbox has sent. The end of file of a process that
        has gone comes after all that it has sent, part of which may still be on its way."""
        return any(
            endpoint.unsent is not None or (endpoint.inward and not endpoint.ended)
            for endpoint in self.streams.endpoints.values()
        )

    def close(self) -> None:
        """Let go of everything."""
        self.stop_listening()
        for endpoint in list(self.streams.endpoints.values()):
            self.streams.drop(endpoint)
        self.pipes.close()
