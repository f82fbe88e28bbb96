"""What the relay keeps of clients that never read, abort and reset: any account of the node can be
one, as often as it likes, and the keeper's memory and descriptors are the session's."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import time
from pathlib import Path
from typing import Iterator

import pytest

from helpers import wait_until
from sessions import Inside, Portwrap, settle

pytestmark = pytest.mark.namespaces

MIB = 1 << 20
LINGER_RESET = struct.pack("ii", 1, 0)
CONNECTIONS = 300
"""Each left 30 kB in the keeper's memory before what a connection keeps went with it."""
ROUNDS = 3
ROOM = 4 * MIB
"""More than the relay keeps unsent for all connections together."""
SETTLED = 40
"""Descriptors that a keeper without connections has at most."""


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, max(8192, before[1])))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(params=["", "127.0.0.1"], ids=["all", "allow-from"])
def session(portwrap: Portwrap, request: pytest.FixtureRequest) -> Iterator[Inside]:
    """A session that is relayed, to all clients or to those of some networks."""
    extra = {"PORTWRAP_ALLOW_FROM": request.param} if request.param else {}
    with Inside(portwrap, extra_env=extra) as made:
        made.wait_until_up()
        yield made


def resident(pid: int) -> int:
    """Resident memory in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def make_slow(reader: socket.socket) -> None:
    """Small segments and buffers, so that a few hundred kB are enough to make a sender wait."""
    reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


class Connection:
    """One connection through the host port, of which one end reads nothing."""

    def __init__(self, session: Inside, listener: socket.socket, direction: str) -> None:
        self.client = session.keep(socket.socket())
        if direction == "download":
            make_slow(self.client)
        self.client.connect(("127.0.0.1", session.port))
        self.server = session.keep(listener.accept()[0])
        self.writer = self.server if direction == "download" else self.client
        self.writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        self.writer.setblocking(False)

    def send(self) -> int:
        """Send what is taken at once, and return how much that was."""
        sent = 0
        try:
            while True:
                sent += self.writer.send(bytes(MIB // 4))
        except BlockingIOError:
            return sent


def reset(connection: socket.socket) -> None:
    """Close so that the other end sees a reset (socket(7), SO_LINGER with 0 seconds)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    connection.close()


def fill(connections: list[Connection]) -> None:
    """Send until every writer waits for its reader."""
    quiet = 0
    while quiet < 3:
        moved = sum(connection.send() for connection in connections)
        quiet = 0 if moved else quiet + 1
        time.sleep(0.05)  # that nothing more is taken can only be seen by waiting


@pytest.mark.parametrize("how", ["reset", "closed"])
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_rounds_of_clients_that_leave(session: Inside, direction: str, how: str) -> None:
    keeper = session.keeper
    before = resident(keeper)
    with session.serve() as listener:
        if direction == "upload":
            make_slow(listener)  # and so what it accepts
        for _ in range(ROUNDS):
            connections = [Connection(session, listener, direction) for _ in range(CONNECTIONS)]
            fill(connections)
            assert descriptors_of(keeper) > 2 * CONNECTIONS
            assert resident(keeper) - before < ROOM
            for connection in connections:
                if how == "reset":
                    reset(connection.client)
                else:  # the kernel makes it a reset where anything is unread
                    connection.client.close()
            if direction == "download" or how == "reset":
                # The server has neither read nor ended: it may be stuck.
                wait_until(lambda: descriptors_of(keeper) < SETTLED, what="descriptors given back")
            for connection in connections:
                connection.server.close()
            wait_until(lambda: descriptors_of(keeper) < SETTLED, what="all descriptors given back")
            assert resident(keeper) - before < ROOM


def test_clients_that_reset_before_the_server_takes_them(session: Inside) -> None:
    """What its backlog has no room for is tried again and again, until the client goes."""
    keeper = session.keeper
    with session.serve(backlog=1) as listener:
        clients = [session.client() for _ in range(50)]
        wait_until(lambda: descriptors_of(keeper) > 100, what="all clients taken")
        for client in clients:
            client.sendall(b"x")
            reset(client)
        wait_until(lambda: descriptors_of(keeper) < SETTLED, what="descriptors given back")
        listener.settimeout(10)
        with session.client() as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: is_next(listener), what="the next client")


def is_next(listener: socket.socket) -> bool:
    """Whether the next that is accepted is no client of the past."""
    with listener.accept()[0] as server:
        server.settimeout(10)
        try:
            return server.recv(9) == b"hello"
        except ConnectionResetError:
            return False


def test_clients_that_end_and_a_server_that_does_not_read(session: Inside) -> None:
    """Each keeps its two descriptors as long as the server has its one, as it does without us: a
    client that has ended its sending may wait for an answer, and by TCP alone one that has gone
    looks the same."""
    keeper = session.keeper
    with session.serve() as listener:
        pairs = [session.pair(listener) for _ in range(50)]
        for client, _ in pairs:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
        waiting, server = pairs.pop()
        for client, _ in pairs:
            client.close()
        settle(keeper)
        assert descriptors_of(keeper) > 100
        server.sendall(b"answer")
        assert waiting.recv(9) == b"answer"
        for _, each in [*pairs, (waiting, server)]:
            each.close()
        wait_until(lambda: descriptors_of(keeper) < SETTLED, what="descriptors given back")


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_reset_reaches_who_does_not_read(session: Inside, direction: str) -> None:
    with session.serve() as listener:
        if direction == "upload":
            make_slow(listener)
        connection = Connection(session, listener, direction)
        fill([connection])
        reader = connection.client if direction == "download" else connection.server
        assert error_of(reader) == 0
        reset(connection.writer)
        wait_until(lambda: error_of(reader) == errno.ECONNRESET, what="the reset")
        wait_until(lambda: descriptors_of(session.keeper) < SETTLED, what="descriptors given back")


def error_of(connection: socket.socket) -> int:
    """What poll(2) announces without anything being read; it is told once (socket(7), SO_ERROR)."""
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
