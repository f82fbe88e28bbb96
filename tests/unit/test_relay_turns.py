"""The relay's turns: who always has more to read starves nobody, and is itself not forgotten."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
from typing import Iterator

import _socket

import pytest

from portwrap.keeper import relay as module
from portwrap.keeper.relay import GUESTS, Place, Relay, Side

from helpers import wait_until

FIRST_CHUNK, TURN = 1024, 2
"""A turn moves 3 kB, the next one of the connection 12 kB: a read that was filled doubles it."""
MUCH = 32 * FIRST_CHUNK
"""More than that, but the receiving socket takes it at once: no event comes when it is read."""
LIMIT = 20.0
"""Seconds within which what is on its way on loopback has arrived."""


class Relayed:
    """A relay in this process, turned by hand, before a server of this process."""

    def __init__(self) -> None:
        self.guest = socket.create_server(("127.0.0.1", 0))
        self.host = socket.create_server(("127.0.0.1", 0))
        self.relay = Relay(100)
        listener = _socket.socket(fileno=os.dup(self.host.fileno()))
        self.relay.serve(listener, Place(self.guest.getsockname()[1], GUESTS))
        self.made: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, Side, socket.socket]:
        """A client, the relay's socket for it, and the server's end."""
        client = socket.create_connection(self.host.getsockname())
        self.made.append(client)
        while not (is_readable(self.guest) and not self.relay.dials):
            self.relay.turn(0.001)
        server = self.guest.accept()[0]
        self.made.append(server)
        name = client.getsockname()
        [side] = [s for s in self.relay.sides.values() if s.socket.getpeername() == name]
        return client, side, server

    def end(self) -> None:
        for made in [*self.made, self.host, self.guest]:
            made.close()
        for side in list(self.relay.sides.values()):
            side.socket.close()
        self.relay.stop_listening()
        self.relay.epoll.close()


@pytest.fixture
def relayed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relayed]:
    """With turns so short that the kernel's buffers hold several of them."""
    monkeypatch.setattr(module, "FIRST_CHUNK", FIRST_CHUNK)
    monkeypatch.setattr(module, "TURN", TURN)
    made = Relayed()
    try:
        yield made
    finally:
        made.end()


def is_readable(made: socket.socket) -> bool:
    return bool(select.select([made], [], [], 0)[0])


def unread(side: Side) -> int:
    """How many bytes wait at a socket of the relay (tcp(7), SIOCINQ)."""
    answer = fcntl.ioctl(side.descriptor, termios.FIONREAD, bytes(4))
    return int(struct.unpack("=i", answer)[0])


def send(client: socket.socket, side: Side, data: bytes) -> None:
    """Send, and wait until all of it waits at the relay's socket."""
    client.sendall(data)
    wait_until(lambda: unread(side) == len(data), LIMIT, "what was sent")


def test_nobody_waits_for_one_that_has_more(relayed: Relayed) -> None:
    """Both had sent before the turn. In it the greedy one comes first, and not to its end."""
    greedy, greedy_side, _ = relayed.connect()
    modest, modest_side, server = relayed.connect()
    send(greedy, greedy_side, bytes(MUCH))
    send(modest, modest_side, b"hello")
    relayed.relay.turn(LIMIT)
    assert unread(modest_side) == 0
    assert 0 < unread(greedy_side) < MUCH
    server.settimeout(LIMIT)
    assert server.recv(100) == b"hello"


def test_one_that_has_more_goes_on_by_itself(relayed: Relayed) -> None:
    """No event tells that something is left: all of it came before the first turn."""
    client, side, server = relayed.connect()
    send(client, side, bytes(MUCH))
    relayed.relay.turn(LIMIT)
    turns = 1
    while unread(side):
        assert relayed.relay.patience(-1.0) == 0.0, "it would wait for an event"
        relayed.relay.turn(0.0)
        turns += 1
    assert turns > 1
    server.settimeout(LIMIT)
    got = 0
    while got < MUCH:
        got += len(server.recv(MUCH))
