"""The relay in this process, turned by hand: any order of what clients and servers do, with chunks
so small that each of them counts. What arrives is what two sockets without it would have seen."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import _socket

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from portwrap.keeper import pipes, streams
from portwrap.keeper.connector import GUESTS, Upstream
from portwrap.keeper.reactor import Reactor
from portwrap.keeper.relay import Relay
from portwrap.keeper.streams import Endpoint, Streams

from fuzzing import LONGER, examples

if TYPE_CHECKING:
    from portwrap.keeper.reactor import Handler

pytestmark = pytest.mark.fuzz

LINGER_RESET = struct.pack("ii", 1, 0)
PATTERN = bytes(range(251)) * 160
CHUNKS = st.sampled_from(
    [(2, 8, 16, 4096), (64, 64, 64, 65536), (8, 64, 4096, 4096), (8192, 65536, 262144, 1048576)]
)
"""MIN_CHUNK, FIRST_CHUNK, MAX_CHUNK and PIPE_SIZE of the relay: it doubles the first up to the
third, and goes on with pipes."""
LIMIT = 20.0
"""Seconds after which what has not arrived never will."""
BUFFER = 4096
"""Bytes that the kernel is to keep for each socket: with little, the relay must wait and resume."""


class End:
    """One end of a relayed connection: what it has done, and what it has seen."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.setblocking(False)
        self.sent = 0
        self.got = bytearray()
        self.half_closed = False
        self.gone = ""  # "closed" or "reset"
        self.saw = ""  # "end of file" or "reset"
        self.cannot_send = False
        self.other: End

    def __repr__(self) -> str:
        return f"<sent {self.sent}, got {len(self.got)}, {self.gone or 'here'}, saw {self.saw}>"

    def send(self, size: int) -> None:
        if self.half_closed or self.gone or self.cannot_send:
            return
        begin = self.sent % 251
        try:
            self.sent += self.connection.send(PATTERN[begin : begin + size])
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.cannot_send = True

    def read(self, size: int) -> None:
        if self.gone or self.saw:
            return
        try:
            data = self.connection.recv(size)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self.saw = "reset"
            return
        begin = len(self.got) % 251
        assert data == PATTERN[begin : begin + len(data)], "other bytes than were sent"
        self.got += data
        if not data:
            self.saw = "end of file"

    def half_close(self) -> None:
        if self.half_closed or self.gone:
            return
        self.half_closed = True
        try:
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:
            self.cannot_send = True

    def leave(self, how: str) -> None:
        if self.gone:
            return
        self.gone = how
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self.connection.close()


class NarrowStreams(Streams):
    """With little room in the kernel."""

    def add(self, endpoint: Endpoint, handler: Handler | None = None) -> None:
        endpoint.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        super().add(endpoint, handler)


class Wire(RuleBasedStateMachine):
    """Clients, a relay, and a server."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        names = ("MIN_CHUNK", "FIRST_CHUNK", "MAX_CHUNK", "MAX_READS", "MAX_UNSENT")
        places = [(streams, name) for name in names] + [(pipes, "PIPE_SIZE")]
        self.constants = [(*place, getattr(*place)) for place in places]
        self.ends: list[End] = []

    @initialize(
        chunks=CHUNKS,
        turn=st.sampled_from([1, 2, 16]),
        unsent=st.sampled_from([0, 1000, streams.MAX_UNSENT]),
        most=st.sampled_from([2, 100]),
    )
    def begin(self, chunks: tuple[int, int, int, int], turn: int, unsent: int, most: int) -> None:
        *sizes, pipe_size = chunks
        values = (*sizes, turn, unsent, pipe_size)
        for (module, name, _), value in zip(self.constants, values):
            setattr(module, name, value)
        self.host = socket.create_server(("127.0.0.1", 0))
        self.port = 0
        self.guest = self.serve()
        self.port = self.guest.getsockname()[1]
        self.reactor = Reactor()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("portwrap.keeper.relay.Streams", NarrowStreams)
            self.relay = Relay(self.reactor, most)
        self.most = most
        listener = _socket.socket(fileno=os.dup(self.host.fileno()))
        self.relay.serve(listener, Upstream(self.port, GUESTS))
        self.connect()

    def serve(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", self.port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        return listener

    # -- what may happen --

    def can_connect(self) -> bool:
        there = sum(not (end.gone and end.other.gone) for end in self.ends) // 2
        return there < min(self.most, 5)

    @precondition(can_connect)
    @rule()
    def connect(self) -> None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        client.connect(self.host.getsockname())
        self.turn_until(lambda: select.select([self.guest], [], [], 0)[0], "a connection inside")
        one, other = End(client), End(self.guest.accept()[0])
        one.other, other.other = other, one
        self.ends += [one, other]

    @precondition(can_connect)
    @rule()
    def connect_where_nobody_listens(self) -> None:
        self.guest.close()
        with socket.create_connection(self.host.getsockname()) as client:
            self.turn_until(lambda: select.select([client], [], [], 0)[0], "a refusal")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        self.guest = self.serve()

    def pick(self, which: int) -> End:
        return self.ends[which % len(self.ends)]

    def has_ends(self) -> bool:
        return bool(self.ends)

    WHICH = st.integers(0, 9)
    SIZE = st.sampled_from([1, 7, 600, 9_000, len(PATTERN) - 251])

    @precondition(has_ends)
    @rule(which=WHICH, size=SIZE)
    def send(self, which: int, size: int) -> None:
        self.pick(which).send(size)

    @precondition(has_ends)
    @rule(which=WHICH, size=SIZE)
    def read(self, which: int, size: int) -> None:
        self.pick(which).read(size)

    @precondition(has_ends)
    @rule(which=WHICH)
    def half_close(self, which: int) -> None:
        self.pick(which).half_close()

    @precondition(has_ends)
    @rule(which=WHICH, how=st.sampled_from(["", "", "closed", "reset"]))
    def leave(self, which: int, how: str) -> None:
        if how:
            self.pick(which).leave(how)

    @rule(count=st.integers(1, 30))
    def turn(self, count: int) -> None:
        for _ in range(count):
            self.reactor.run_once(0)

    # -- what must hold --

    @invariant()
    def nothing_ends_by_itself(self) -> None:
        for end in self.ends:
            assert len(end.got) <= end.other.sent, "more than was sent"
            if end.saw == "end of file" and not end.other.gone:
                assert end.other.half_closed, "an end of file that nobody sent"
            if end.saw == "end of file" and not end.other.gone:
                assert len(end.got) == end.other.sent, "bytes are missing"
            if end.saw == "reset" or end.cannot_send:
                assert end.other.gone or end.half_closed, "a reset that nobody sent"

    def turn_until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}; {self.ends}"
            self.reactor.run_once(0.001)

    def deliver(self) -> bool:
        """Read everything; whether all whose other end is there have seen their end of file."""
        waiting = [end for end in self.ends if not end.gone]
        for end in waiting:
            end.read(1 << 20)
        return all(end.saw for end in waiting)

    def teardown(self) -> None:
        if not hasattr(self, "relay"):
            return
        try:
            for end in self.ends:
                end.half_close()
            self.turn_until(self.deliver, "the end of everything")
            self.nothing_ends_by_itself()
            for end in self.ends:
                if not (end.gone or end.other.gone):
                    assert (end.saw, len(end.got)) == ("end of file", end.other.sent)
                end.leave("closed")
            self.turn_until(lambda: not self.relay.streams.endpoints, "every connection let go")
            self.reactor.run_once(0)
            relay = self.relay
            left = (relay.connector.pending, relay.acceptor.paused, relay.streams.kept)
            assert left == ({}, False, 0)
            assert (self.reactor.soon, self.reactor.timers) == ([], [])
            given = len(relay.pipes.idle) + relay.pipes.to_make
            assert relay.acceptor.max_connections + given == self.most, "pipes that are lost"
        finally:
            for end in self.ends:
                end.leave("closed")
            self.relay.close()
            self.reactor.close()
            self.host.close()
            self.guest.close()
            for module, name, value in self.constants:
                setattr(module, name, value)
        assert len(os.listdir("/proc/self/fd")) == self.descriptors


# Each failure takes a time limit to be seen: too long to look for the smallest.
SETTINGS = examples(80, stateful_step_count=40, phases=[Phase.generate])


@pytest.mark.timeout(60 * LONGER)
def test_any_order_of_events() -> None:
    run_state_machine_as_test(Wire, settings=SETTINGS)
