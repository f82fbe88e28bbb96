"""Datagrams: a UDP port in the sandbox that is served by the same port of the host's loopback.

Each client in the sandbox has a socket of its own towards the host, so that a reply finds its way
back.
"""

from __future__ import annotations

import time

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .reactor import Reactor, Timer

MAX_CLIENTS = 256
"""Clients that a reply can still reach; one more, and the one that waits longest is forgotten."""
CLIENT_TIMEOUT = 30.0
"""Seconds of silence after which a client is forgotten: the longest that the C library waits for a
reply (resolv.conf(5), timeout)."""
MAX_DATAGRAMS = 32
"""Datagrams of one socket in a row before others have their turn."""
MSG_DONTWAIT = _socket.MSG_DONTWAIT


class Client:
    """A client in the sandbox, and our socket towards the host for it."""

    def __init__(self, address: Any, socket: _socket.socket) -> None:
        self.address = address
        self.socket = socket
        self.last = time.monotonic()  # when something came from it or for it


class Datagrams:
    """Forwards datagrams from a socket in the sandbox to the same address and port of the host, and
    back.

    Where one cannot be forwarded it is lost, as the network itself may lose it.
    """

    def __init__(self, reactor: Reactor, listener: _socket.socket) -> None:
        self.reactor = reactor
        self.listener = listener
        self.service = listener.getsockname()
        self.clients: dict[Any, Client] = {}  # the one that has been silent longest comes first
        self.timer: Timer | None = None  # of the next look for silent ones, while there are any
        reactor.watch(listener.fileno(), self.on_requests)

    def on_requests(self) -> None:
        """Forward what clients have sent."""
        buffer = self.reactor.buffer
        for _ in range(MAX_DATAGRAMS):
            try:
                count, address = self.listener.recvfrom_into(buffer, 0, MSG_DONTWAIT)
            except OSError:
                return  # EAGAIN, or a client that did not wait for its reply
            try:
                client = self.client_at(address)
                self.send(client, buffer[:count])
            except OSError:
                continue  # no descriptor for it, or nobody listens on the host

    def client_at(self, address: Any) -> Client:
        """The client at this address, new or known, as the one that was heard last.

        Raises OSError.
        """
        client = self.clients.get(address)
        if client is None:
            if len(self.clients) >= MAX_CLIENTS:
                self.forget(next(iter(self.clients.values())))
            client = self.connect(address)
        self.touch(client)
        return client

    def connect(self, address: Any) -> Client:
        """A new client. Its socket takes datagrams from the host's service only (connect(2)).

        Raises OSError.
        """
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
        socket = _socket.socket(self.listener.family, kind)
        client = Client(address, socket)
        try:
            socket.connect(self.service)
            self.reactor.watch(socket.fileno(), lambda: self.on_replies(client))
        except OSError:
            socket.close()
            raise
        return client

    def send(self, client: Client, data: memoryview) -> None:
        """Send to the host. Raises OSError."""
        try:
            client.socket.send(data, MSG_DONTWAIT)
        except ConnectionRefusedError:
            client.socket.send(data, MSG_DONTWAIT)  # that was about the one before (udp(7))

    def on_replies(self, client: Client) -> None:
        """Forward the host's replies to the client that they are for."""
        buffer = self.reactor.buffer
        for _ in range(MAX_DATAGRAMS):
            try:
                count = client.socket.recv_into(buffer, 0, MSG_DONTWAIT)
            except OSError:
                return  # EAGAIN, or nobody listens on the host
            self.touch(client)
            try:
                self.listener.sendto(buffer[:count], MSG_DONTWAIT, client.address)
            except OSError:
                continue  # it is gone

    # -- clients that are done --------------------------------------------------------------

    def touch(self, client: Client) -> None:
        """Something has just come from this client or for it."""
        client.last = time.monotonic()
        self.clients.pop(client.address, None)
        self.clients[client.address] = client
        if self.timer is None:
            self.timer = self.reactor.call_in(CLIENT_TIMEOUT, self.forget_silent)

    def forget(self, client: Client) -> None:
        del self.clients[client.address]
        self.reactor.unwatch(client.socket.fileno())
        client.socket.close()

    def forget_silent(self) -> None:
        """Forget the clients that have been silent for too long."""
        self.timer = None
        limit = time.monotonic() - CLIENT_TIMEOUT
        while self.clients:
            client = next(iter(self.clients.values()))
            if client.last > limit:
                self.timer = self.reactor.call_in(client.last - limit, self.forget_silent)
                return
            self.forget(client)
