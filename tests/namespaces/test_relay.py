"""What goes through the host port: the relay, against sockets of the test on both of its sides."""

from __future__ import annotations

import contextlib
import operator
import os
import random
import resource
import select
import socket
import struct
import subprocess
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, Sequence

import _socket

import hypothesis
import pytest
from hypothesis import strategies as st

from portwrap.keeper import pipes, streams
from portwrap.keeper.connector import GUESTS, Upstream
from portwrap.keeper.pipes import Pipe
from portwrap.keeper.reactor import Reactor
from portwrap.keeper.relay import Relay

from fuzzing import LONGER, examples
from helpers import OWNER, cannot, run_as, wait_until
from sessions import (
    Inside,
    Portwrap,
    assert_quiet,
    injected,
    port_without_a_past,
    seconds_in_queue,
    settle,
)

pytestmark = pytest.mark.namespaces
both_ways = pytest.mark.parametrize("forward", ["relay", "native"], indirect=True)
LINGER_RESET = struct.pack("ii", 1, 0)
MIB = 1 << 20


def receive(connection: socket.socket) -> bytes:
    """Everything until end of file."""
    chunks = iter(lambda: connection.recv(MIB), b"")
    return b"".join(chunks)


def reset(connection: socket.socket) -> None:
    """Close so that the other end sees a reset (socket(7), SO_LINGER with 0 seconds)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    connection.close()


COPYING = ("prlimit", "--nofile=64:64")
"""With so few descriptors the relay has none for pipes, and copies everything."""


def pipes_of(pid: int) -> int:
    """How many pipe ends a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    found = 0
    for name in os.listdir(folder):
        try:
            found += os.readlink(folder / name).startswith("pipe:")
        except FileNotFoundError:
            pass  # of the listing itself
    return found


def splices(portwrap: Portwrap) -> bool:
    """Whether the Python that is tested knows splice(2)."""
    text = "import posix; raise SystemExit(not hasattr(posix, 'splice'))"
    return subprocess.run([portwrap.python, "-c", text]).returncode == 0


@pytest.fixture
def listener(inside: Inside) -> Iterator[socket.socket]:
    """A server's listening socket on the guest port inside."""
    with inside.serve() as made:
        yield made


# ---- who listens where, who asks from where -----------------------------------------------------

REACHES = [  # listens inside on, host address asked for, asked through, answer?
    ("127.0.0.1", "", "127.0.0.1", True),
    ("0.0.0.0", "", "127.0.0.1", True),
    ("::1", "", "127.0.0.1", True),
    ("::", "", "127.0.0.1", True),
    ("127.0.0.1", "", "::1", False),
    ("127.0.0.1", "::", "127.0.0.1", True),
    ("127.0.0.1", "::", "::1", True),
    ("127.0.0.1", "127.0.0.1", "127.0.0.1", True),
    ("127.0.0.1", "127.0.0.1", "127.0.0.2", False),
    ("127.0.0.1", "127.0.0.2", "127.0.0.2", True),
    ("127.0.0.1", "127.0.0.2", "127.0.0.1", False),
    ("::1", "::1", "::1", True),
    ("::1", "::1", "127.0.0.1", False),
]


@both_ways
@pytest.mark.parametrize(("listens", "host", "asked", "answers"), REACHES)
def test_where_the_server_is_asked(
    portwrap: Portwrap, forward: str, listens: str, host: str, asked: str, answers: bool
) -> None:
    # With a past, a guard listens on the other family, and resets who asks.
    port = 0 if answers else port_without_a_past()
    with Inside(portwrap, host=host, forward=forward, port=port) as session, session.serve(
        listens
    ) as listener:
        if not answers:
            with pytest.raises(ConnectionRefusedError):
                session.client(asked)
            return
        with session.client(asked) as client, listener.accept()[0] as server:
            client.sendall(b"ping")
            assert server.recv(9) == b"ping"
            server.sendall(b"pong")
            assert client.recv(9) == b"pong"


# ---- what arrives -------------------------------------------------------------------------------


class Stream:
    """One direction of a large body: a block of random bytes over and over, compared to it."""

    def __init__(self, sender: socket.socket, receiver: socket.socket, size: int) -> None:
        self.sender, self.receiver, self.size = sender, receiver, size
        self.block = random.randbytes(MIB + 1)  # odd, so that chunks never line up with it
        self.received = 0
        self.is_exact = True
        self.threads = [threading.Thread(target=self.send), threading.Thread(target=self.receive)]

    def send(self) -> None:
        left = self.size
        while left:
            piece = memoryview(self.block)[: min(left, len(self.block))]
            self.sender.sendall(piece)
            left -= len(piece)
        self.sender.shutdown(socket.SHUT_WR)

    def receive(self) -> None:
        twice = 2 * self.block
        for chunk in iter(lambda: self.receiver.recv(MIB), b""):
            begin = self.received % len(self.block)
            self.is_exact = self.is_exact and chunk == twice[begin : begin + len(chunk)]
            self.received += len(chunk)


@pytest.mark.parametrize(
    ("forward", "size"),
    [
        pytest.param("relay", 1024 * MIB, id="relay-1GiB"),
        pytest.param("native", 64 * MIB, id="native-64MiB"),  # the kernel's own doing
    ],
    indirect=["forward"],
)
@pytest.mark.timeout(180)
def test_large_bodies_both_ways_at_once(inside: Inside, listener: socket.socket, size: int) -> None:
    exchange(*inside.pair(listener), size)


def exchange(client: socket.socket, server: socket.socket, size: int) -> None:
    """So many bytes both ways at once, with their ends, arrive as they were sent."""
    with client, server:
        streams = [Stream(client, server, size), Stream(server, client, size)]
        threads = [thread for stream in streams for thread in stream.threads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for stream in streams:
            assert (stream.is_exact, stream.received) == (True, size)


@pytest.mark.parametrize("before", [(), COPYING], ids=["pipes", "copying"])
def test_large_bodies_are_not_copied(portwrap: Portwrap, before: Sequence[str]) -> None:
    with Inside(portwrap, before=before) as session, session.serve() as listener:
        session.wait_until_served()
        keeper = session.keeper
        small = pipes_of(keeper)
        client, server = session.pair(listener)
        client.sendall(b"question")
        assert server.recv(9) == b"question"
        assert pipes_of(keeper) == small
        exchange(client, server, 256 * MIB)
        assert (pipes_of(keeper) > small) == (splices(portwrap) and not before)


def test_where_splice_is_refused(portwrap: Portwrap) -> None:
    before = portwrap.program("without.py", "splice")
    with Inside(portwrap, before=before) as session, session.serve() as listener:
        session.wait_until_served()
        small = pipes_of(session.keeper)
        exchange(*session.pair(listener), 64 * MIB)
        assert pipes_of(session.keeper) == small


@both_ways
@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close(inside: Inside, listener: socket.socket, first: str) -> None:
    client, server = inside.pair(listener)
    asking, answering = (client, server) if first == "client" else (server, client)
    answer = random.randbytes(300_000)
    with client, server:
        asking.sendall(b"question")
        asking.shutdown(socket.SHUT_WR)
        assert receive(answering) == b"question"
        answering.sendall(answer[:1000])
        got = asking.recv(1000, socket.MSG_WAITALL)
        answering.sendall(answer[1000:])
        answering.shutdown(socket.SHUT_WR)
        assert got + receive(asking) == answer


@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close_of_a_large_body(inside: Inside, listener: socket.socket, first: str) -> None:
    """The other direction stays open, and is as fast."""
    client, server = inside.pair(listener)
    asking, answering = (client, server) if first == "client" else (server, client)
    with client, server:
        for sender, receiver in ((asking, answering), (answering, asking)):
            stream = Stream(sender, receiver, 32 * MIB)
            for thread in stream.threads:
                thread.start()
            for thread in stream.threads:
                thread.join()
            assert (stream.is_exact, stream.received) == (True, stream.size)


@both_ways
@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("idle", [True, False])
def test_reset_is_passed_on(
    inside: Inside, listener: socket.socket, first: str, idle: bool
) -> None:
    client, server = inside.pair(listener)
    resetting, other = (client, server) if first == "client" else (server, client)
    with client, server:
        if not idle:
            for one, another in ((client, server), (server, client)):
                one.sendall(b"hello")
                assert another.recv(9) == b"hello"
        reset(resetting)
        with pytest.raises(ConnectionResetError):
            other.recv(1)


@both_ways
def test_an_answer_given_before_a_request_was_read_to_its_end(
    inside: Inside, listener: socket.socket
) -> None:
    """As a server does that finds a request too large: the client still learns why."""
    client, server = inside.pair(listener)
    with client, server:
        client.sendall(bytes(100_000))
        server.recv(10)
        server.sendall(b"413 too large")
        server.close()  # with unread data: a reset follows the answer
        assert client.recv(100) == b"413 too large"


def test_connections_that_are_there_outlive_the_listener(inside: Inside) -> None:
    listener = inside.serve()
    client, server = inside.pair(listener)
    with client, server:
        listener.close()
        client.sendall(b"still here")
        assert server.recv(100) == b"still here"
        with pytest.raises(ConnectionResetError):
            inside.client().recv(1)


# ---- servers that do not answer -----------------------------------------------------------------


def is_answered(session: Inside) -> bool:
    """Whether a client gets the server's greeting, rather than a reset."""
    try:
        with session.client() as client:
            return client.recv(9) == b"welcome"
    except ConnectionResetError:
        return False


def greet(listener: socket.socket) -> None:
    with listener.accept()[0] as server:
        server.sendall(b"welcome")
        server.shutdown(socket.SHUT_WR)
        server.recv(1)


def test_nobody_listens(inside: Inside) -> None:
    """At once, not after a time limit: the hub's probe tries again."""
    for _ in range(20):
        with pytest.raises(ConnectionResetError):
            inside.client().recv(1)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_that_listens_late(inside: Inside, address: str) -> None:
    assert not is_answered(inside)
    with inside.serve(address) as listener:
        greeter = threading.Thread(target=greet, args=[listener])
        greeter.start()
        assert is_answered(inside)
        greeter.join()
    assert not is_answered(inside)


@both_ways
def test_a_server_that_moves_to_the_other_family(inside: Inside) -> None:
    for address in ("127.0.0.1", "::1", "127.0.0.1"):
        with inside.serve(address) as listener:
            greeter = threading.Thread(target=greet, args=[listener])
            greeter.start()
            assert is_answered(inside)
            greeter.join()


def tcp_counters(pid: int) -> dict[str, int]:
    """What TCP has counted in the network namespace of this process."""
    found: dict[str, int] = {}
    for file, group in (("snmp", "Tcp"), ("netstat", "TcpExt")):
        lines = Path(f"/proc/{pid}/net/{file}").read_text().splitlines()
        names, values = (line.split()[1:] for line in lines if line.startswith(f"{group}:"))
        found.update(zip(names, map(int, values)))
    return found


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


ROUNDS = 40
MOST_ROUNDS = 20 * ROUNDS
DISTURBED = 0.01
"""Seconds. Linux delays an acknowledgement by 40 ms (TCP_DELACK_MIN): whoever has waited that long
for a processor in a round has not been seen to acknowledge, nor to wait for an acknowledgement."""


def one_round(client: socket.socket, server: socket.socket) -> None:
    """A question, and an answer in two messages."""
    client.sendall(b"question")
    assert server.recv(9) == b"question"
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # never its own
    server.sendall(b"first ")
    server.sendall(b"second")
    answer = b""
    while answer != b"first second":
        answer += client.recv(12) or pytest.fail("the connection was closed")


def delayed_acknowledgements(pid: int, *ends: socket.socket, among: Sequence[int] = ()) -> int:
    """In how many of `ROUNDS` rounds the namespace of this process sees one. Rounds in which we, or
    one of the processes `among` the two ends, have waited for a processor do not count."""
    found = counted = 0
    for _ in range(MOST_ROUNDS):
        before = [tcp_counters(pid)["DelayedACKs"], *map(seconds_in_queue, [os.getpid(), *among])]
        one_round(*ends)
        after = [tcp_counters(pid)["DelayedACKs"], *map(seconds_in_queue, [os.getpid(), *among])]
        delayed, *queued = map(operator.sub, after, before)
        if sum(queued) < DISTURBED:
            counted += 1
            found += bool(delayed)
        if counted == ROUNDS:
            return found
    pytest.fail(f"only {counted} of {MOST_ROUNDS} rounds were undisturbed")


def test_no_message_waits_for_an_acknowledgement(inside: Inside, listener: socket.socket) -> None:
    """By Nagle's algorithm the second message waits for that of the first, which Linux delays."""
    pair, among = inside.pair(listener), [inside.keeper]
    assert delayed_acknowledgements(inside.pid, *pair, among=among) < ROUNDS // 4
    client = inside.connect("127.0.0.1", inside.guest_port)
    with client, listener.accept()[0] as server:  # without the relay
        # not all of them: after a pause the kernel acknowledges the next ones at once by itself
        assert delayed_acknowledgements(inside.pid, client, server) > ROUNDS // 4


def many_at_once(session: Inside, listener: socket.socket) -> tuple[float, int]:
    """How long it takes until as many clients are accepted, in seconds, and how many connections
    the keeper has begun for that."""
    wait_until(lambda: open_descriptors(session.keeper) < 40, what="no connection")
    before, began = tcp_counters(session.pid), time.monotonic()
    clients = [session.client() for _ in range(MANY)]
    wait_until(lambda: open_descriptors(session.keeper) > 2 * MANY, what="all dialled inward")
    servers = [session.keep(listener.accept()[0]) for _ in clients]
    seconds, after = time.monotonic() - began, tcp_counters(session.pid)
    for client in clients:
        client.sendall(b"x")
    for server in servers:
        server.settimeout(10)
        assert server.recv(9) == b"x"
    for made in (*clients, *servers):
        made.close()
    return seconds, after["ActiveOpens"] - before["ActiveOpens"]


MANY = 60
MOST_TRIES = 10


def test_many_at_once_and_a_short_backlog(inside: Inside) -> None:
    """Linux drops what a full backlog cannot take, and the client sends again a second later. On a
    busy machine it may take that long anyway, but not each time."""
    with inside.serve(backlog=5) as listener:
        for _ in range(MOST_TRIES):
            seconds, begun = many_at_once(inside, listener)
            if seconds < 1:
                break
        assert seconds < 1
        # nor do those that wait keep the server from the processor, by trying all at once
        assert begun < 3 * MANY


# ---- a keeper that stays small and quiet --------------------------------------------------------


def resident(pid: int) -> int:
    """Resident memory in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def fill(connection: socket.socket, limit: int) -> int:
    """Send until nothing has been taken for a while, or `limit` bytes; return how many were."""
    block = bytes(range(256)) * 1024
    sent = 0
    connection.settimeout(0.3)
    try:
        while sent < limit:
            begin = sent % len(block)
            sent += connection.send(memoryview(block)[begin:])
    except TimeoutError:
        pass
    return sent


@pytest.mark.parametrize("slow", ["client", "server"])
def test_a_slow_reader_costs_little_memory(
    inside: Inside, listener: socket.socket, slow: str
) -> None:
    pairs = [inside.pair(listener) for _ in range(4)]
    keeper = inside.keeper
    before = resident(keeper)
    limit = 64 * MIB
    for client, server in pairs:
        reader, writer = (client, server) if slow == "client" else (server, client)
        sent = fill(writer, limit)
        assert 0 < sent < limit, "the writer was never made to wait"
        assert resident(keeper) - before < 4 * MIB
        writer.shutdown(socket.SHUT_WR)
        body = receive(reader)
        assert body == (bytes(range(256)) * (sent // 256 + 1))[:sent]


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for thousands of sockets, here and in what is started from here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, max(8192, before[1])))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_two_thousand_idle_connections(many_descriptors: None, portwrap: Portwrap) -> None:
    with Inside(portwrap) as session, session.serve() as listener:
        pairs = [session.pair(listener) for _ in range(2000)]
        keeper = session.keeper
        assert open_descriptors(keeper) > 4000
        client, server = session.pair(listener)
        with client, server:
            client.sendall(b"x")
            assert server.recv(9) == b"x"
        for client, server in pairs[:: 2 * len(pairs) // 100]:
            server.sendall(b"y")
            assert client.recv(9) == b"y"
        for client, server in pairs:
            client.close()
            server.close()
        wait_until(lambda: open_descriptors(keeper) < 40, what="descriptors given back")


@both_ways
def test_an_idle_keeper_never_wakes_up(inside: Inside, listener: socket.socket) -> None:
    pairs = [inside.pair(listener) for _ in range(3)]
    keeper = inside.keeper
    for client, server in pairs:
        client.sendall(b"x")
        assert server.recv(9) == b"x"
    pairs[1][0].shutdown(socket.SHUT_WR)
    assert pairs[1][1].recv(1) == b""
    settle(keeper)
    assert_quiet(keeper, 2.5, most=0)


def test_a_stuck_connection_does_not_keep_the_keeper_busy(
    inside: Inside, listener: socket.socket
) -> None:
    client, server = inside.pair(listener)
    with client, server:
        fill(server, 64 * MIB)
        fill(client, 64 * MIB)
        settle(inside.keeper)
        assert_quiet(inside.keeper, 1.0, most=0)


def waits(client: socket.socket) -> bool:
    """Whether nothing, not even an end, has come for this client."""
    client.settimeout(0.01)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_descriptors_exhausted_and_recovered(portwrap: Portwrap) -> None:
    before = ("prlimit", "--nofile=64:64")
    with Inside(portwrap, before=before) as session, session.serve() as listener:
        session.wait_until_served()
        keeper = session.keeper
        clients = [session.client() for _ in range(40)]
        settle(keeper)
        served = open_descriptors(keeper) // 2
        assert 10 < served < 32
        assert all(map(waits, clients))
        assert_quiet(keeper, 1.5, most=0)
        for client in clients:  # each that ends makes room for one that waits
            client.settimeout(10)
            client.sendall(b"x")
            with listener.accept()[0] as server:
                server.settimeout(10)
                assert server.recv(9) == b"x"
                server.sendall(b"y")
            assert receive(client) == b"y"
            client.close()


@pytest.mark.parametrize("which", [1, 2], ids=["client", "dial"])
def test_an_epoll_that_takes_no_more(inside: Inside, listener: socket.socket, which: int) -> None:
    """As where the account's epolls have all that fs.epoll.max_user_watches allows."""
    settle(inside.keeper)
    with injected(inside.keeper, f"epoll_ctl:error=ENOSPC:when={which}"):
        with pytest.raises(ConnectionResetError):
            inside.client().recv(1)
        if which == 2:  # the server was connected to
            listener.accept()[0].close()
        client, server = inside.pair(listener)  # when the keeper accepts again
        client.sendall(b"x")
        assert server.recv(9) == b"x"
    assert len(inside.others()) == 2


def test_more_connections_than_the_soft_limit_allows(portwrap: Portwrap) -> None:
    before = ("prlimit", "--nofile=64:512")
    with Inside(portwrap, before=before) as session, session.serve() as listener:
        pairs = [session.pair(listener) for _ in range(100)]
        for client, server in pairs:
            client.sendall(b"x")
            assert server.recv(9) == b"x"


def limit_descriptors(pid: int, soft: int, hard: int) -> None:
    """Set another process's limit: its account may, and root in a container may not."""
    result = run_as(OWNER, ["prlimit", "--pid", str(pid), f"--nofile={soft}:{hard}"])
    assert result.returncode == 0, result.stderr


def test_the_system_has_no_descriptor_for_the_keeper(
    inside: Inside, listener: socket.socket
) -> None:
    """accept(2) itself fails, as it does where the whole system has run out (ENFILE)."""
    keeper = inside.keeper
    first_client, first_server = inside.pair(listener)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit_descriptors(keeper, 5, hard)
    late = [inside.client() for _ in range(5)]
    settle(keeper)
    assert_quiet(keeper, 1.5, most=2)  # it looks again once a second
    first_client.sendall(b"x")
    assert first_server.recv(9) == b"x"
    assert all(map(waits, late))
    limit_descriptors(keeper, hard, hard)
    for client in late:
        client.sendall(b"x")
        with listener.accept()[0] as server:
            assert server.recv(9) == b"x"


# ---- any schedule, against two plain sockets ----------------------------------------------------

Step = tuple[str, str, int]  # who, what, how many bytes
WHO = ("client", "server")


class End:
    """One end of a connection, and what it has seen."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.sent = bytearray()
        self.got = bytearray()
        self.outcome = ""  # of reading: "end of file" or "reset"
        self.open = True  # for writing
        connection.setblocking(False)

    def look(self, size: int) -> None:
        """Read what is there, `size` bytes at most."""
        if self.outcome:
            return
        try:
            chunk = self.connection.recv(size)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self.outcome = "reset"
            return
        self.got += chunk
        if not chunk:
            self.outcome = "end of file"

    def write(self, data: memoryview) -> int:
        """Send what is taken of this; all of it where nobody will ever take it."""
        try:
            count = self.connection.send(data)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            self.open = False
            return len(data)
        self.sent += data[:count]
        return count


class Play:
    """A schedule of sends, half-closes and at most one reset, played on a connection."""

    def __init__(self, client: socket.socket, server: socket.socket, reading: int) -> None:
        self.ends = dict(zip(WHO, (End(client), End(server))))
        self.reading = reading
        self.resetter = ""

    def turn(self) -> None:
        for end in self.ends.values():
            end.look(self.reading)
        quiet = [end.connection for end in self.ends.values() if not end.outcome]
        select.select(quiet, [], [], 0.001)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            self.turn()
            assert time.monotonic() < deadline, what

    def step(self, who: str, what: str, size: int) -> None:
        end = self.ends[who]
        if what == "half-close" and end.open:
            end.connection.shutdown(socket.SHUT_WR)
            end.open = False
        elif what == "send" and end.open:
            data = memoryview(PATTERN)[len(end.sent) % 251 :][:size]
            while data:
                data = data[end.write(data) :]
                self.turn()
        elif what == "reset":
            self.resetter = who
            reset(end.connection)

    def play(self, schedule: list[Step]) -> None:
        for step in schedule:
            self.step(*step)
            if self.resetter:
                other = self.ends[WHO[1 - WHO.index(self.resetter)]]
                del self.ends[self.resetter]
                self.until(partial(self.has_noticed, other), "a reset is noticed")
                return
        for end in self.ends.values():
            if end.open:
                end.connection.shutdown(socket.SHUT_WR)
        self.until(lambda: all(end.outcome for end in self.ends.values()), "both ends")

    def has_noticed(self, other: End) -> bool:
        """A reset shows in reading; after an end of file only in writing, where that is open."""
        if other.outcome == "end of file" and other.open:
            other.write(memoryview(b"x"))
        return other.outcome == "reset" or not other.open

    def report(self) -> list[tuple[str, str, bytes]]:
        return [(who, end.outcome, bytes(end.got)) for who, end in self.ends.items()]


PATTERN = bytes(range(251)) * 8192
STEPS = st.one_of(
    st.tuples(st.sampled_from(WHO), st.just("send"), st.integers(1, 400_000)),
    st.tuples(st.sampled_from(WHO), st.just("send"), st.integers(1, 20)),
    st.tuples(st.sampled_from(WHO), st.just("half-close"), st.just(0)),
)
SCHEDULES = st.tuples(
    st.lists(STEPS, max_size=12),
    st.one_of(st.just([]), st.sampled_from([[(who, "reset", 0)] for who in WHO])),
).map(lambda parts: parts[0] + parts[1])


def plain_pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets without a relay between them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def check(schedule: list[Step], pair: tuple[socket.socket, socket.socket], reading: int) -> None:
    """What both ends see is what was sent to them, whole unless there was a reset."""
    with pair[0], pair[1]:
        play = Play(*pair, reading)
        ends = dict(play.ends)
        play.play(schedule)
        for who, outcome, got in play.report():
            sent = bytes(ends[WHO[1 - WHO.index(who)]].sent)
            if play.resetter:
                assert sent.startswith(got)
                # an end of file only if it was sent, or if this end has closed and stopped to look
                half_closed = (play.resetter, "half-close", 0) in schedule
                assert outcome != "end of file" or half_closed
            else:
                assert (outcome, got) == ("end of file", sent)


@pytest.mark.fuzz
@pytest.mark.timeout(180 * LONGER)
@both_ways
def test_any_schedule(inside: Inside, listener: socket.socket) -> None:
    # each failure takes a time limit to be seen: too long to look for the smallest
    @examples(250, phases=[hypothesis.Phase.generate])
    @hypothesis.given(SCHEDULES, st.sampled_from([1000, 65_536, MIB]))
    def run(schedule: list[Step], reading: int) -> None:
        check(schedule, plain_pair(), reading)
        check(schedule, inside.pair(listener), reading)

    run()


# ---- in this process ----------------------------------------------------------------------------


class Bench:
    """A relay that turns only when it is told to, and sockets on both of its sides."""

    def __init__(self, protocol: int = 0) -> None:
        self.stack = ExitStack()
        self.protocol = protocol
        self.host = self.keep(socket.socket(proto=protocol))
        self.host.bind(("127.0.0.1", 0))
        self.host.listen()
        self.guest = self.keep(socket.create_server(("127.0.0.1", 0)))
        self.reactor = Reactor()
        self.relay = Relay(self.reactor, 100)
        self.upstream = Upstream(self.guest.getsockname()[1], GUESTS)
        self.relay.serve(_socket.socket(fileno=os.dup(self.host.fileno())), self.upstream)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.relay.close()
        self.reactor.close()
        self.stack.close()

    def keep(self, made: socket.socket) -> socket.socket:
        return self.stack.enter_context(made)

    def client(self) -> socket.socket:
        made = self.keep(socket.socket(proto=self.protocol))
        made.settimeout(5)
        made.connect(self.host.getsockname())
        return made

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client and the server's end of its connection, with nothing left to do."""
        client = self.client()
        while not select.select([self.guest], [], [], 0)[0] or self.relay.connector.pending:
            self.reactor.run_once(5)
        return client, self.keep(self.guest.accept()[0])


@pytest.mark.parametrize("bound", [streams.MAX_UNSENT, 0], ids=["", "peeking"])
def test_messages_in_a_row_over_mptcp(monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    """A connection that cannot be told to acknowledge at once."""
    monkeypatch.setattr(streams, "MAX_UNSENT", bound)
    try:
        socket.socket(proto=socket.IPPROTO_MPTCP).close()
    except OSError as error:
        cannot(f"no MPTCP: {error.strerror}")
    with Bench(socket.IPPROTO_MPTCP) as bench:
        client, server = bench.pair()
        for word in (b"one", b"two", b"three"):
            client.sendall(word)
            while not select.select([server], [], [], 0)[0]:
                bench.reactor.run_once(5)
            assert server.recv(9) == word


def test_an_answer_before_the_reset_that_a_send_meets() -> None:
    with Bench() as bench:
        client, server = bench.pair()
        client.sendall(b"request")
        bench.reactor.run_once(5)
        client.sendall(b"more")  # is told of first
        server.sendall(b"too large")
        server.close()  # with unread data: a reset follows the answer
        bench.reactor.run_once(5)
        assert client.recv(100) == b"too large"


@pytest.mark.parametrize("most", [0, 1])
def test_the_end_is_told_together_with_room_for_more(
    soon: None, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Of the events of one turn those behind the end of the command are never looked at, and an
    edge is not told again."""
    monkeypatch.setattr(pipes, "MAX_PIPES", most)
    with Bench() as bench:
        narrow(bench.guest)
        narrow(bench.host)
        client, server = bench.pair()
        for endpoint in bench.relay.streams.endpoints.values():
            narrow(endpoint.socket)
        client.setblocking(False)
        server.setblocking(False)
        while not unsent(bench.relay):
            with contextlib.suppress(BlockingIOError):
                server.send(bytes(100_000))
            bench.reactor.run_once(1)
        before = unsent(bench.relay)
        reader, writer = os.pipe()

        def on_end() -> None:
            bench.reactor.unwatch(reader)
            bench.relay.finish(0.1)
            raise EOFError  # as the keeper, which ends

        try:
            bench.reactor.watch(reader, on_end)
            os.write(writer, b"x")
            drain(client)
            with pytest.raises(EOFError):
                bench.reactor.run_once(5)
            assert unsent(bench.relay) != before
        finally:
            os.close(reader)
            os.close(writer)


def unsent(relay: Relay) -> int:
    """Bytes that wait for the room that an event will tell of."""
    waiting = [
        (endpoint.unsent, endpoint.taken)
        for endpoint in relay.streams.endpoints.values()
        if endpoint.unsent
    ]
    return sum(
        unsent.held if isinstance(unsent, Pipe) else len(unsent) - taken
        for unsent, taken in waiting
    )


def drain(connection: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while connection.recv(MIB):
            pass


def test_an_event_of_the_past_meets_no_new_socket() -> None:
    """A descriptor number that was closed while events are dealt with is given out at once again;
    what is left of the events of its past must not be taken for the new socket's."""
    with Bench() as bench:
        reactor = bench.reactor
        first, server = bench.pair()
        bench.guest.close()
        moved = bench.keep(
            socket.create_server(("::1", bench.upstream.port), family=socket.AF_INET6)
        )

        # In the turn that dials for the second client, which is refused, the server resets the
        # first one's connection before, and the first client resets its own afterwards.
        pipe = os.pipe()
        for end in pipe:
            bench.stack.callback(os.close, end)

        def meanwhile() -> None:
            reactor.unwatch(pipe[0])
            reset(server)

        reactor.watch(pipe[0], meanwhile)
        os.write(pipe[1], b"x")
        second = bench.client()
        reactor.run_once(5)
        reset(first)
        bench.stack.enter_context(open(os.devnull))  # takes the lowest free number
        for _ in range(5):
            reactor.run_once(0.05)
        with moved.accept()[0] as late:
            late.sendall(b"hello")
            reactor.run_once(5)
            assert second.recv(9) == b"hello"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first bytes are taken for the beginning of a large body."""
    for name in ("MIN_CHUNK", "FIRST_CHUNK", "MAX_CHUNK"):
        monkeypatch.setattr(streams, name, 256)


def turn_until_idle(reactor: Reactor) -> None:
    while reactor.soon or select.select([reactor.epoll.fileno()], [], [], 0.1)[0]:
        reactor.run_once(0)


@pytest.mark.parametrize("ended", [False, True])
def test_urgent_data_in_a_large_body(soon: None, ended: bool) -> None:
    """splice(2) stops at it for good; recv(2) skips it."""
    with Bench() as bench:
        client, server = bench.pair()
        client.sendall(bytes(1000))
        turn_until_idle(bench.reactor)
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"tail")
        if ended:
            client.shutdown(socket.SHUT_WR)
        turn_until_idle(bench.reactor)
        server.settimeout(5)
        got = b""
        while len(got) < 1004:
            got += server.recv(9999) or pytest.fail("an end that nobody sent")
        assert got == bytes(1000) + b"tail"


def narrow(connection: _socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, 32_768)


@pytest.mark.parametrize("most", [0, 1, 2, 6])
def test_more_slow_readers_than_pipes(
    soon: None, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Those without one have their bytes copied, and everybody gets all, and the pipes back."""
    before = pipes_of(os.getpid())
    body = random.randbytes(500_000)
    monkeypatch.setattr(pipes, "MAX_PIPES", most)
    with Bench() as bench:
        narrow(bench.guest)
        narrow(bench.host)
        pairs = [bench.pair() for _ in range(4)]
        for endpoint in bench.relay.streams.endpoints.values():
            narrow(endpoint.socket)
        rests = {client: memoryview(body) for client, _ in pairs}
        got = {server: bytearray() for _, server in pairs}
        for connection in (*rests, *got):
            connection.setblocking(False)
        send_more(bench.reactor, rests)
        stuck = [
            endpoint.unsent
            for endpoint in bench.relay.streams.endpoints.values()
            if endpoint.unsent is not None
        ]
        assert len(stuck) == len(pairs), "some reader was not slow"
        made = min(most, len(pairs)) if pipes.splice else 0
        assert sum(isinstance(unsent, Pipe) for unsent in stuck) == made
        while any(len(some) < len(body) for some in got.values()):
            send_more(bench.reactor, rests)
            for server, some in got.items():
                try:
                    some += server.recv(5000)
                except BlockingIOError:
                    pass
        assert all(some == body for some in got.values())
        # One is kept, the others make room for the account's programs.
        assert len(bench.relay.pipes.idle) == min(made, 1)
        assert pipes_of(os.getpid()) == before + 2 * min(made, 1)
        assert len(bench.relay.pipes.idle) + bench.relay.pipes.to_make == most * bool(pipes.splice)


def test_a_reset_while_a_pipe_is_full(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds gets into no other connection, and the next one has a pipe again."""
    monkeypatch.setattr(pipes, "MAX_PIPES", 1)
    with Bench() as bench:
        narrow(bench.guest)
        before = pipes_of(os.getpid())
        for body in (b"x" * 1000, b"y" * 1000):
            client, server = bench.pair()
            for endpoint in bench.relay.streams.endpoints.values():
                narrow(endpoint.socket)
            client.sendall(body)
            turn_until_idle(bench.reactor)
            assert server.recv(1000) == body
            assert pipes_of(os.getpid()) == before + 2 * bool(pipes.splice)
            client.setblocking(False)
            send_more(bench.reactor, {client: memoryview(body * 10_000)})
            assert any(endpoint.unsent for endpoint in bench.relay.streams.endpoints.values())
            reset(server)
            turn_until_idle(bench.reactor)
            with pytest.raises(ConnectionResetError):
                client.send(b"x")
            assert not bench.relay.streams.endpoints
            assert pipes_of(os.getpid()) == before


def send_more(reactor: Reactor, rests: dict[socket.socket, memoryview]) -> None:
    """Send what is taken."""
    taken = 1
    while taken:
        taken = 0
        for client, rest in rests.items():
            try:
                count = client.send(rest) if len(rest) else 0
            except BlockingIOError:
                count = 0
            rests[client] = rest[count:]
            taken += count
        for _ in range(10):
            reactor.run_once(0)


def test_an_account_that_may_have_no_larger_pipe(
    soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "PIPE_SIZE", 1 << 31)  # more than the kernel gives anybody
    with Bench() as bench:
        before = pipes_of(os.getpid())
        client, server = bench.pair()
        client.sendall(bytes(1000))
        client.shutdown(socket.SHUT_WR)
        turn_until_idle(bench.reactor)
        assert receive(server) == bytes(1000)
        assert pipes_of(os.getpid()) == before
