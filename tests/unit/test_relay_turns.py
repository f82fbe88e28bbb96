"""The relay's turns: who always has more to read starves nobody, and is itself not forgotten; what
is kept for slow readers is bounded, and goes with their connections."""

from __future__ import annotations

import fcntl
import gc
import os
import select
import socket
import struct
import termios
from typing import Iterator

import _socket

import pytest

from portwrap.keeper import pipes, streams
from portwrap.keeper.connector import GUESTS, PendingConnection, Upstream
from portwrap.keeper.reactor import Reactor
from portwrap.keeper.relay import Relay
from portwrap.keeper.streams import Endpoint

from helpers import wait_until

FIRST_CHUNK, MAX_READS = 1024, 2
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
        self.reactor = Reactor()
        self.relay = Relay(self.reactor, 100)
        listener = _socket.socket(fileno=os.dup(self.host.fileno()))
        self.relay.serve(listener, Upstream(self.guest.getsockname()[1], GUESTS))
        self.made: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, Endpoint, socket.socket]:
        """A client, the relay's socket for it, and the server's end."""
        client = socket.create_connection(self.host.getsockname())
        self.made.append(client)
        while not (is_readable(self.guest) and not self.relay.connector.pending):
            self.reactor.run_once(0.001)
        server = self.guest.accept()[0]
        self.made.append(server)
        name = client.getsockname()
        [endpoint] = [
            s for s in self.relay.streams.endpoints.values() if s.socket.getpeername() == name
        ]
        return client, endpoint, server

    def end(self) -> None:
        for made in [*self.made, self.host, self.guest]:
            made.close()
        self.relay.close()
        self.reactor.close()


@pytest.fixture
def relayed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relayed]:
    """With turns so short that the kernel's buffers hold several of them."""
    monkeypatch.setattr(streams, "FIRST_CHUNK", FIRST_CHUNK)
    monkeypatch.setattr(streams, "MAX_READS", MAX_READS)
    made = Relayed()
    try:
        yield made
    finally:
        made.end()


def test_a_client_tries_every_target_whichever_answers_another_meanwhile() -> None:
    """A server on [::1], two clients: the first one is served while nobody has refused the second
    yet. It had begun at 127.0.0.1, and goes on from there."""
    reactor = Reactor()
    relay = Relay(reactor, 100)
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as guest:
        upstream = Upstream(guest.getsockname()[1], GUESTS)
        ours, theirs = socket.socketpair()
        client = _socket.socket(fileno=theirs.detach())
        with ours:
            relay.connector.connect(client, upstream)
            upstream.last = 1  # as `Connector.on_event` sets it
            while relay.connector.pending:
                reactor.run_once(0.01)
            assert is_readable(guest)
    relay.close()
    reactor.close()


def test_a_client_of_an_upstream_without_targets_is_let_go() -> None:
    """Of an ephemeral port, on a node that has no address but the loopback's."""
    reactor = Reactor()
    relay = Relay(reactor, 100)
    ours, theirs = socket.socketpair()
    with ours:
        with pytest.raises(ConnectionRefusedError):
            relay.connector.connect(_socket.socket(fileno=theirs.detach()), Upstream(1, ()))
        assert ours.recv(1) == b""
    relay.close()
    reactor.close()


def is_readable(made: socket.socket) -> bool:
    return bool(select.select([made], [], [], 0)[0])


def unread(endpoint: Endpoint) -> int:
    """How many bytes wait at a socket of the relay (tcp(7), SIOCINQ)."""
    answer = fcntl.ioctl(endpoint.descriptor, termios.FIONREAD, bytes(4))
    return int(struct.unpack("=i", answer)[0])


def send(client: socket.socket, endpoint: Endpoint, data: bytes) -> None:
    """Send, and wait until all of it waits at the relay's socket."""
    client.sendall(data)
    wait_until(lambda: unread(endpoint) == len(data), LIMIT, "what was sent")


def test_nobody_waits_for_one_that_has_more(relayed: Relayed) -> None:
    """Both had sent before the turn. In it the greedy one comes first, and not to its end."""
    greedy, greedy_endpoint, _ = relayed.connect()
    modest, modest_endpoint, server = relayed.connect()
    send(greedy, greedy_endpoint, bytes(MUCH))
    send(modest, modest_endpoint, b"hello")
    relayed.reactor.run_once(LIMIT)
    assert unread(modest_endpoint) == 0
    assert 0 < unread(greedy_endpoint) < MUCH
    server.settimeout(LIMIT)
    assert server.recv(100) == b"hello"


def test_one_that_has_more_goes_on_by_itself(relayed: Relayed) -> None:
    """No event tells that something is left: all of it came before the first turn."""
    client, endpoint, server = relayed.connect()
    send(client, endpoint, bytes(MUCH))
    relayed.reactor.run_once(LIMIT)
    turns = 1
    while unread(endpoint):
        assert relayed.reactor.timeout(-1.0) == 0.0, "it would wait for an event"
        relayed.reactor.run_once(0.0)
        turns += 1
    assert turns > 1
    server.settimeout(LIMIT)
    got = 0
    while got < MUCH:
        got += len(server.recv(MUCH))


# ---- what is kept for slow readers --------------------------------------------------------------

PATTERN = bytes(range(251)) * 4000


def narrow(connection: socket.socket | _socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, 4096)


def fill(relayed: Relayed) -> tuple[socket.socket, socket.socket, int]:
    """A client, and a server that reads nothing until its client's bytes find no more room."""
    narrow(relayed.guest)
    narrow(relayed.host)
    client, endpoint, server = relayed.connect()
    narrow(endpoint.peer.socket)
    narrow(client)
    client.setblocking(False)
    sent = quiet = 0
    while quiet < 3:
        try:
            sent += client.send(PATTERN[sent:])
            quiet = 0
        except BlockingIOError:
            quiet += 1
        relayed.reactor.run_once(0.01)
    assert endpoint.peer.full and sent < len(PATTERN)
    return client, server, sent


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pipes: what they hold is the kernel's."""
    monkeypatch.setattr(pipes, "MAX_PIPES", 0)


def kept_objects() -> list[object]:
    return [each for each in gc.get_objects() if isinstance(each, (Endpoint, PendingConnection))]


@pytest.mark.parametrize("who", ["client", "server"])
def test_what_a_connection_holds_goes_with_it(copying: None, relayed: Relayed, who: str) -> None:
    """At once: until the collector of cycles runs, connections may come by the thousand."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            client, server, _ = fill(relayed)
            assert len(kept_objects()) == 2 and relayed.relay.streams.kept > 0
            reset(client if who == "client" else server)
            for _ in range(3):
                relayed.reactor.run_once(0.01)
            assert relayed.relay.streams.kept == 0
            assert not kept_objects()
    finally:
        gc.enable()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_bound_for_all_connections_together(
    copying: None, relayed: Relayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it whoever reads is served as before, and whoever reads late gets all."""
    monkeypatch.setattr(streams, "MAX_UNSENT", 1)
    late = [fill(relayed) for _ in range(4)]
    kept = [
        endpoint.unsent
        for endpoint in relayed.relay.streams.endpoints.values()
        if endpoint.unsent is not None
    ]
    assert len(kept) == 1 and isinstance(kept[0], memoryview)
    assert kept[0].nbytes == relayed.relay.streams.kept
    client, endpoint, server = relayed.connect()
    send(client, endpoint, PATTERN[:1000])
    while unread(endpoint):
        relayed.reactor.run_once(0.01)
    server.settimeout(LIMIT)
    assert server.recv(5000, socket.MSG_WAITALL) == PATTERN[:1000]
    for client, server, sent in late:
        client.shutdown(socket.SHUT_WR)
        assert receive(relayed.reactor, server) == PATTERN[:sent]
    assert relayed.relay.streams.kept == 0


def receive(reactor: Reactor, connection: socket.socket) -> bytes:
    """Everything until end of file, while the relay is turned."""
    connection.setblocking(False)
    got = bytearray()
    while True:
        reactor.run_once(0.01)
        try:
            data = connection.recv(1 << 20)
        except BlockingIOError:
            continue
        if not data:
            return bytes(got)
        got += data
