"""The reactor: what is called, when, and in which order."""

from __future__ import annotations

import os
import select
from typing import Iterator

import pytest

from portwrap.keeper.reactor import READABLE, Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    """Three pipes; those that a test has closed are not closed again."""
    made = [os.pipe() for _ in range(3)]
    try:
        yield made
    finally:
        for descriptor in sum(made, ()):
            try:
                os.close(descriptor)
            except OSError:
                pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until a test changes it."""
    now = [100.0]
    monkeypatch.setattr("portwrap.keeper.reactor.time.monotonic", lambda: now[0])
    return now


# ---- file descriptors ---------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [False, True])
def test_what_is_readable(reactor: Reactor, pipes: list[tuple[int, int]], edge: bool) -> None:
    (reader, writer), *_ = pipes
    calls: list[str] = []
    reactor.watch(reader, lambda: calls.append("x"), edge)
    assert reactor.is_watched(reader)
    reactor.run_once(0)
    assert calls == []
    os.write(writer, b"x")
    reactor.run_once(5)
    reactor.run_once(0)
    assert len(calls) == (1 if edge else 2)
    reactor.unwatch(reader)
    assert not reactor.is_watched(reader)
    reactor.run_once(0)
    assert len(calls) == (1 if edge else 2)


def test_a_handler_gets_descriptor_and_events(
    reactor: Reactor, pipes: list[tuple[int, int]]
) -> None:
    (reader, writer), *_ = pipes
    calls: list[tuple[int, int]] = []
    others: list[int] = []
    reactor.register(reader, lambda *call: calls.append(call), 0)
    os.write(writer, b"x")
    reactor.run_once(0)
    assert calls == []
    reactor.modify(reader, READABLE)
    reactor.run_once(5)
    assert calls == [(reader, select.EPOLLIN)]
    reactor.set_handler(reader, lambda _, events: others.append(events))
    os.close(writer)
    reactor.run_once(5)
    assert (len(calls), others) == (1, [select.EPOLLIN | select.EPOLLHUP])


def test_one_that_is_closed(reactor: Reactor, pipes: list[tuple[int, int]]) -> None:
    (reader, writer), *_ = pipes
    reactor.watch(reader, lambda: pytest.fail("it is closed"))
    os.write(writer, b"x")
    reactor.forget(reader)
    os.close(reader)
    reactor.run_once(0)
    assert not reactor.is_watched(reader)


def test_events_of_a_past_descriptor(reactor: Reactor, pipes: list[tuple[int, int]]) -> None:
    """Two are ready. The first that is called closes the other, and gets its number again for a
    new one, which has nothing to read."""
    (first, first_end), (second, second_end), (third, third_end) = pipes
    calls: list[str] = []

    def replace(other: int) -> None:
        calls.append("first")
        for each in (first, second):
            reactor.forget(each)
        os.dup2(third, other)
        reactor.watch(other, lambda: calls.append("new"))

    reactor.watch(first, lambda: replace(second))
    reactor.watch(second, lambda: replace(first))
    os.write(first_end, b"x")
    os.write(second_end, b"x")
    reactor.run_once(5)
    reactor.run_once(0)
    assert calls == ["first"]
    os.write(third_end, b"x")
    reactor.run_once(5)
    assert calls == ["first", "new"]


# ---- moments ------------------------------------------------------------------------------------


def test_timers_in_their_order(reactor: Reactor, clock: list[float]) -> None:
    calls: list[int] = []
    for seconds in (3, 1, 2):
        reactor.call_in(seconds, lambda seconds=seconds: calls.append(seconds))  # type: ignore
    assert reactor.timeout(-1.0) == 1.0 and reactor.timeout(0.5) == 0.5
    reactor.run_once(0)
    assert calls == []
    clock[0] += 2
    assert reactor.timeout(-1.0) == 0.0
    reactor.run_once()
    assert calls == [1, 2]
    clock[0] += 5
    reactor.run_once()
    assert calls == [1, 2, 3] and reactor.timeout(-1.0) == -1.0


def test_a_timer_that_is_cancelled(reactor: Reactor, clock: list[float]) -> None:
    timer = reactor.call_in(1, lambda: pytest.fail("it was cancelled"))
    for _ in range(2):
        reactor.cancel(timer)
    reactor.cancel(None)
    assert reactor.timeout(-1.0) == -1.0
    clock[0] += 2
    reactor.run_once(0)


def test_a_timer_that_starts_another(reactor: Reactor, clock: list[float]) -> None:
    calls: list[float] = []

    def again() -> None:
        calls.append(clock[0])
        reactor.call_in(1, again)

    again()
    for _ in range(3):
        clock[0] += 1
        reactor.run_once()
    assert calls == [100, 101, 102, 103]


def test_a_timer_ends_a_wait(reactor: Reactor) -> None:
    calls: list[str] = []
    reactor.call_in(0.01, lambda: calls.append("x"))
    reactor.run_once()
    while not calls:  # the wait may end a little earlier
        reactor.run_once()


def test_soon_comes_after_the_events_at_hand(
    reactor: Reactor, pipes: list[tuple[int, int]]
) -> None:
    (reader, writer), *_ = pipes
    calls: list[str] = []

    def on_event() -> None:
        calls.append("event")
        if len(calls) == 1:
            reactor.call_soon(lambda: calls.append("soon"))

    reactor.watch(reader, on_event)
    os.write(writer, b"x")
    reactor.run_once(5)
    assert calls == ["event"] and reactor.timeout(-1.0) == 0.0
    reactor.run_once()
    assert calls == ["event", "event", "soon"] and reactor.timeout(-1.0) == -1.0
