"""Growth: how much slower it becomes with the sessions on the node, and with open connections."""

from __future__ import annotations

import contextlib
import resource
import statistics
from typing import TYPE_CHECKING

from . import load
from .rig import JUPYTER, RAW, START_LIMIT
from .starts import start_small
from .staying import SLEEP, settled
from .ways import BARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rig import Figure, Rig
    from .session import Session
    from .ways import Way

STARTS, LATENCY = "start", "latency"
CONNECTIONS = "connections"
"""The curves of the chart."""
GROWING = (BARE, "slirp4netns", "pasta")
"""Whose growth is measured besides ours."""


def measure(rig: Rig) -> None:
    """Both curves, way after way: all at once they would be in each other's way."""
    ways = [way for way in rig.ways if way.name in GROWING or way.is_ours]
    _sessions(rig, ways)
    _connections(rig, ways)


def _sessions(rig: Rig, ways: list[Way]) -> None:
    group = "Growth: sessions of the same kind on the node"
    starts = {
        number: rig.figure(
            *(group, f"first answer of a small server, the session number {number}", "ms"),
            added=True,
            point=(STARTS, number),
        )
        for number in rig.size.node
    }
    trips = {
        number: rig.figure(
            *(group, f"a request to it, among {number}", "ms"), point=(LATENCY, number)
        )
        for number in rig.size.node
    }
    for way in ways:
        rig.say(f"growth: sessions, {way.name}")
        with contextlib.ExitStack() as stack:
            others: list[Session] = []
            for number in rig.size.node:
                while len(others) < number - 1:
                    rig.start_more(others, stack, way, SLEEP)
                rig.sample([starts[number]], way.name, _start_beside, rig, way, others)
                rig.sample([trips[number]], way.name, _request, rig, way)


def _start_beside(rig: Rig, way: Way, others: list[Session]) -> list[float]:
    """Milliseconds to the first answer of one more session, once all others run."""
    settled(others, SLEEP)
    times = [start_small(rig, way)[1] for _ in range(max(1, rig.size.starts // 3))]
    return [statistics.median(times)]


def _request(rig: Rig, way: Way) -> list[float]:
    """The middle of some requests over one connection, in milliseconds."""
    session, port = rig.start(way, RAW)
    with session:
        load.first_answer(port, "/", START_LIMIT, session.is_over)
        with load.Client(port, "/") as client:
            return [statistics.median(client.ask() for _ in range(rig.size.trips))]


def _connections(rig: Rig, ways: list[Way]) -> None:
    group = "Growth: open connections of one session, jupyter_server"
    trips = {
        number: rig.figure(
            *(group, f"a request, beside {number - 1} connections", "ms"),
            point=(CONNECTIONS, number),
        )
        for number in rig.size.connections
    }
    _raise_limit()
    for way in ways:
        rig.say(f"growth: connections, {way.name}")
        session, port = rig.start(way, JUPYTER)
        with session, contextlib.ExitStack() as stack:
            load.first_answer(port, "/api", START_LIMIT, session.is_over)
            held: list[load.Client] = []
            for number, figure in trips.items():
                rig.sample([figure], way.name, _among, rig, port, number, held, stack)
                if way.name in figure.failures:
                    break


def _among(
    rig: Rig, port: int, number: int, held: list[load.Client], stack: contextlib.ExitStack
) -> list[float]:
    """Open connections until there are so many, each answered once; then ask on the last one."""
    while len(held) < number:
        held.append(stack.enter_context(load.Client(port, "/api", rig.token)))
        held[-1].ask()
    return [statistics.median(held[-1].ask() for _ in range(rig.size.trips))]


def _raise_limit() -> None:
    """Sessions inherit it: as many descriptors as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def curve(figures: Sequence[Figure], name: str, way: str) -> list[tuple[int, float]]:
    """What a way reached along a curve."""
    points = []
    for figure in figures:
        value = figure.median(way)
        if figure.point and figure.point[0] == name and value is not None:
            points.append((figure.point[1], value))
    return points
