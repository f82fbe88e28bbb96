"""Datagrams: a UDP port inside that is answered by the same port of the host's loopback.

They are in the keeper's epoll with the relay's sockets.
Each client inside has a socket of its own towards the host, so that an answer finds its way back.
"""

from __future__ import annotations

import time

import _socket

from .relay import MSG_DONTWAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .relay import Relay

MOST_CLIENTS = 256
"""Clients that an answer can still reach; one more, and the one that waits longest is forgotten."""
PATIENCE = 30.0
"""Seconds without a word after which a client is forgotten: the longest that the C library waits
for an answer (resolv.conf(5), timeout)."""
BURST = 32
"""Datagrams of one socket in a row before others have their turn."""


class Client:
    """A client inside, and our socket towards the host for it."""

    def __init__(self, address: Any, socket: _socket.socket) -> None:
        self.address = address
        self.socket = socket
        self.last = time.monotonic()  # when it last asked or was answered


class Datagrams:
    """Hands datagrams on from a socket inside to the same address and port of the host, and back.

    Where one cannot be handed on it is lost, as the network itself may lose it.
    """

    def __init__(self, relay: Relay, listener: _socket.socket) -> None:
        self.relay = relay
        self.listener = listener
        self.place = listener.getsockname()
        self.clients: dict[Any, Client] = {}  # the one that has been silent longest comes first
        relay.watch(listener.fileno(), self.on_question)

    def on_question(self) -> None:
        """Hand on what clients have sent."""
        for _ in range(BURST):
            try:
                count, address = self.listener.recvfrom_into(self.relay.view, 0, MSG_DONTWAIT)
            except OSError:
                return  # EAGAIN, or a client that did not wait for its answer
            try:
                client = self.client_at(address)
                self.send(client, self.relay.view[:count])
            except OSError:
                continue  # no descriptor for it, or nobody answers on the host

    def client_at(self, address: Any) -> Client:
        """The client at this address, new or known, as the one that was heard last.

        Raises OSError.
        """
        client = self.clients.get(address)
        if client is None:
            if len(self.clients) >= MOST_CLIENTS:
                self.forget(next(iter(self.clients.values())))
            client = self.connect(address)
        self.touch(client)
        return client

    def connect(self, address: Any) -> Client:
        """A new client. Its socket takes datagrams from the host's service only (connect(2))."""
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
        socket = _socket.socket(self.listener.family, kind)
        try:
            socket.connect(self.place)
        except OSError:
            socket.close()
            raise
        client = Client(address, socket)
        self.relay.watch(socket.fileno(), lambda: self.on_answer(client))
        return client

    def send(self, client: Client, data: memoryview) -> None:
        """Send to the host. Raises OSError."""
        try:
            client.socket.send(data, MSG_DONTWAIT)
        except ConnectionRefusedError:
            client.socket.send(data, MSG_DONTWAIT)  # that was the answer to the one before (udp(7))

    def on_answer(self, client: Client) -> None:
        """Hand the host's answers on to the client that they are for."""
        for _ in range(BURST):
            try:
                count = client.socket.recv_into(self.relay.view, 0, MSG_DONTWAIT)
            except OSError:
                return  # EAGAIN, or nobody answers on the host
            self.touch(client)
            try:
                self.listener.sendto(self.relay.view[:count], MSG_DONTWAIT, client.address)
            except OSError:
                continue  # it is gone

    # -- clients that are done --------------------------------------------------------------

    def touch(self, client: Client) -> None:
        """This client has just asked or been answered."""
        client.last = time.monotonic()
        self.clients.pop(client.address, None)
        self.clients[client.address] = client

    def forget(self, client: Client) -> None:
        del self.clients[client.address]
        self.relay.unwatch(client.socket.fileno())
        client.socket.close()

    def look(self) -> None:
        """Forget the clients that have been silent for too long."""
        limit = time.monotonic() - PATIENCE
        while self.clients:
            client = next(iter(self.clients.values()))
            if client.last > limit:
                return
            self.forget(client)

    def patience(self) -> float:
        """Seconds until the next look is due, where there are clients; else none is."""
        oldest = next(iter(self.clients.values()))
        return max(0.0, oldest.last + PATIENCE - time.monotonic())
