"""Listening sockets that one part of the keeper watches after another: each lets go of its own."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Iterator, cast

import pytest

from portwrap.keeper.connector import GUESTS, Upstream
from portwrap.keeper.guest_port import GuestPort
from portwrap.keeper.host_sockets import Holder
from portwrap.keeper.lookout import Lookout
from portwrap.keeper.reactor import Reactor
from portwrap.keeper.relay import Relay
from portwrap.keeper.unserved import Unserved


class NeverReported:
    """Clients find a server."""

    def on_served(self) -> None:
        pass

    def on_client(self) -> None:
        pass


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def relay(reactor: Reactor) -> Iterator[Relay]:
    made = Relay(reactor, 10)
    yield made
    made.close()


@pytest.fixture
def host() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def other() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def lookout_of(reactor: Reactor, *hosts: socket.socket) -> Lookout:
    unserved = cast(Unserved, NeverReported())
    return Lookout(reactor, unserved, hosts, lambda: False, lambda _: None)


def test_a_lookout_leaves_to_the_relay_what_it_serves(
    reactor: Reactor, relay: Relay, host: socket.socket, other: socket.socket
) -> None:
    lookout = lookout_of(reactor, host, other)
    lookout.begin()
    lookout.end()
    relay.serve(other, Upstream(1, GUESTS))
    lookout.begin()  # of the one that is left
    lookout.end()
    assert not reactor.is_watched(host.fileno())
    assert reactor.is_watched(other.fileno())
    relay.release(other)
    assert not reactor.is_watched(other.fileno())


def test_a_lookout_begins_again(reactor: Reactor, host: socket.socket) -> None:
    lookout = lookout_of(reactor, host)
    for _ in range(2):
        lookout.begin()
        lookout.begin()
        assert reactor.is_watched(host.fileno())
        lookout.end()
        lookout.end()
        assert not reactor.is_watched(host.fileno())


class Full:
    """An epoll of an account that has no room for one more entry (epoll_ctl(2))."""

    def register(self, descriptor: int, events: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_guest_port_that_there_is_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
    reactor: Reactor,
    relay: Relay,
    host: socket.socket,
    other: socket.socket,
) -> None:
    guest_port = GuestPort(other.getsockname()[1], relay, [host])
    with monkeypatch.context() as full:
        full.setattr(reactor, "epoll", cast(select.epoll, Full()))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            guest_port.keep(other, host)
    guest_port.let_go()
    assert other.fileno() == -1


def test_a_holder_that_there_is_no_room_for(
    monkeypatch: pytest.MonkeyPatch, reactor: Reactor
) -> None:
    holder = Holder(reactor, lambda: None)
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as full:
        full.setattr(reactor, "epoll", cast(select.epoll, Full()))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            holder.watch(os.getpid())
    assert os.listdir("/proc/self/fd") == before
    holder.forget()
    assert holder.watch(os.getpid())  # the control
    holder.forget()
