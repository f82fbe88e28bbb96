"""The datagrams that the keeper hands on, in this process: who is remembered, and for how long."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Any, Iterator

import _socket

import pytest

from portwrap.keeper import datagrams
from portwrap.keeper.datagrams import Datagrams
from portwrap.keeper.reactor import Reactor


class Bench:
    """Datagrams between sockets of the test. The address of the host's service is another one than
    that of the service inside: here, both are in one network."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.service = self.udp()
        listener = self.udp()
        self.address = listener.getsockname()
        self.reactor = Reactor()
        self.datagrams = Datagrams(self.reactor, _socket.socket(fileno=os.dup(listener.fileno())))
        self.datagrams.service = self.service.getsockname()

    def udp(self) -> socket.socket:
        made = self.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind(("127.0.0.1", 0))
        made.settimeout(5)
        return made

    def ask(self, client: socket.socket, data: bytes) -> tuple[bytes, Any]:
        """What the service gets, and from whom."""
        client.sendto(data, self.address)
        self.reactor.run_once(5)
        return self.service.recvfrom(65536)

    def close(self) -> None:
        for client in list(self.datagrams.clients.values()):
            self.datagrams.forget(client)
        self.datagrams.listener.close()
        self.reactor.close()
        self.stack.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("size", [0, 1, 512, 65000])
def test_there_and_back(bench: Bench, size: int) -> None:
    first, second = bench.udp(), bench.udp()
    data = os.urandom(size)
    places = [bench.ask(client, data) for client in (first, second)]
    assert [got for got, _ in places] == [data, data]
    for client, (_, place) in zip((second, first), reversed(places)):
        bench.service.sendto(data[::-1], place)
        bench.reactor.run_once(5)
        assert client.recvfrom(65536) == (data[::-1], bench.address)


def test_one_client_keeps_its_socket(bench: Bench) -> None:
    client = bench.udp()
    assert len({bench.ask(client, b"x") for _ in range(5)}) == 1


def test_nobody_but_the_service_is_heard(bench: Bench) -> None:
    client, stranger = bench.udp(), bench.udp()
    _, place = bench.ask(client, b"x")
    stranger.sendto(b"false", place)
    bench.service.sendto(b"true", place)
    bench.reactor.run_once(5)
    assert client.recv(9) == b"true"
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(9)


def test_a_service_that_is_not_there(bench: Bench) -> None:
    client = bench.udp()
    gone = bench.udp()
    bench.datagrams.service = gone.getsockname()
    gone.close()
    for _ in range(3):
        client.sendto(b"x", bench.address)
        bench.reactor.run_once(5)
    bench.reactor.run_once(0.05)  # told that it is refused
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
        back.bind(bench.datagrams.service)
        back.settimeout(5)
        client.sendto(b"y", bench.address)
        bench.reactor.run_once(5)
        assert back.recv(9) == b"y"


def test_a_bounded_number_of_clients(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "MAX_CLIENTS", 3)
    clients = [bench.udp() for _ in range(4)]
    for client in (*clients[:3], clients[0], clients[3]):
        bench.ask(client, b"x")
    known = [entry.address for entry in bench.datagrams.clients.values()]
    # the second one was silent for longest
    assert known == [clients[n].getsockname() for n in (2, 0, 3)]
    assert len(bench.reactor.handlers) == 4


def test_silent_clients_are_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("portwrap.keeper.datagrams.time.monotonic", lambda: now[0])
    first, second = bench.udp(), bench.udp()
    bench.ask(first, b"x")
    now[0] += 10
    bench.ask(second, b"x")
    assert bench.reactor.timeout(-1) == datagrams.CLIENT_TIMEOUT - 10
    bench.datagrams.forget_silent()
    assert len(bench.datagrams.clients) == 2
    now[0] += datagrams.CLIENT_TIMEOUT - 10
    assert bench.reactor.timeout(-1) == 0
    bench.reactor.run_once()
    assert list(bench.datagrams.clients) == [second.getsockname()]
    now[0] += 10
    bench.reactor.run_once()
    assert not bench.datagrams.clients and len(bench.reactor.handlers) == 1
    assert bench.reactor.timeout(-1) == -1


def test_a_refusal_is_of_the_one_before(bench: Bench) -> None:
    """The kernel reports it with the next one, which it does not send then (udp(7))."""
    place = bench.service.getsockname()
    bench.service.close()
    client = bench.datagrams.client_at(("127.0.0.1", 9))
    bench.datagrams.send(client, memoryview(b"lost"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(place)
        service.settimeout(5)
        bench.datagrams.send(client, memoryview(b"sent"))
        assert service.recv(99) == b"sent"
