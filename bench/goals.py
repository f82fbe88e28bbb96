"""What we have set ourselves, and whether this run has reached it."""

from __future__ import annotations

from fnmatch import fnmatchcase as fnmatch
from typing import TYPE_CHECKING, NamedTuple

from .growth import STARTS, curve
from .ways import ANY_FILTER, BARE, BYTE_CODE, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .results import Results
    from .rig import Figure


class Goal(NamedTuple):
    """Figures, by patterns of their group and title, and the limit of each of them, compared with
    bare or another way or by itself."""

    text: str
    group: str
    title: str
    limit: float
    at_least: bool = False
    alone: bool = False  # the figure by itself
    other: str = BARE  # what it is compared with
    byte_code: bool | None = None  # only of an archive with byte code, or without


KEEPER = "memory*keeper of 1 *"
GOALS = (
    Goal("added to a start, plain: at most 39 ms", "Start", "*a small*", 39, byte_code=False),
    Goal("the same from byte code: at most 25 ms", "Start", "*a small*", 25, byte_code=True),
    Goal(
        "added to a start by batchspawner: at most 33 ms",
        *("Start under*", "*a small*", 33),
        byte_code=False,
    ),
    Goal(
        "the same from byte code: at most 15 ms",
        *("Start under*", "*a small*", 15),
        byte_code=True,
    ),
    Goal("the keeper's memory: at most 4.5 MB", "What*", KEEPER, 4.5, alone=True, byte_code=False),
    Goal(
        "the same from byte code: at most 3.3 MB", "What*", KEEPER, 3.3, alone=True, byte_code=True
    ),
    Goal("download, of bare: at least 0.95", "Streams*", "*download*", 0.95, at_least=True),
    Goal("requests/s, of bare: at least 0.9", "Requests*", "*requests/s*", 0.9, at_least=True),
    Goal("p99, of bare: at most 1.3", "Requests*", "*p99,*", 1.3),
    Goal("added to a kernel's reply: at most 0.2 ms", "Round*", "*kernel*", 0.2),
    Goal(
        "dd of single bytes, of what any seccomp filter costs: at most 1.03",
        *("Programs*", "*dd*", 1.03),
        other=ANY_FILTER,
    ),
    Goal("memory, a session alone: at most 5 MB", "What*", "PSS, 1*", 5, alone=True),
    Goal("memory, each of many sessions: at most 5 MB", "What*", "PSS, each*", 5, alone=True),
    Goal("outbound, of bare: at least 0.95", "Outbound", "*load*", 0.95, at_least=True),
    Goal("added to a connect to the loopback: at most 20 µs", "Outbound", "*loopback", 20),
    Goal("added to a connect to a Unix socket: at most 0.5 µs", "Outbound", "*Unix*", 0.5),
    Goal("a connect to another host: at most 100 µs", "Outbound", "*another*", 100, alone=True),
    Goal(
        "a connect to another host, of slirp4netns's: at most 1",
        *("Outbound", "*another*", 1),
        other="slirp4netns",
    ),
    Goal("1,000 connections at once: at most 150 ms", "Outbound", "1,000*", 150, alone=True),
    Goal("added to epoll_create1: at most 25 µs", "Outbound", "epoll*", 25),
    Goal("added to the start of a kernel: at most 1.05 of bare", "Outbound", "*kernel*", 1.05),
    Goal(
        "memory that native outbound adds to the keeper: at most 0.2 MB",
        *("Outbound", "memory*", 0.2),
        other=f"{OURS} slirp4netns",
    ),
    Goal("wake-ups when idle, but the helper's: none", "What*", "*without*", 0, alone=True),
)
FLAT = 1.2
WAIT = "fixed wait"
LESS_WAITING = 40


def lines(results: Results) -> list[str]:
    """A table: a line for each goal, a column for each of our ways, the worst figure in each."""
    ours = {way.name for way in results.ways if way.name.startswith(OURS)}
    names = [name for name in results.names if name in ours or name == BYTE_CODE]
    found = [(text, judge) for text, judge in _judged(results) if any(map(judge, names))]
    if not found:
        return []
    table = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    table += [f"| {text} | {' | '.join(judge(n) or '-' for n in names)} |" for text, judge in found]
    return table


def _judged(results: Results) -> Iterator[tuple[str, Callable[[str], str]]]:
    for goal in GOALS:
        yield goal.text, lambda name, goal=goal: _worst(results.figures, name, goal)  # type: ignore[misc]
    text = f"added to the start, less than the fixed wait adds: at least {LESS_WAITING} times"
    yield text, lambda name: _less_than_waiting(results.figures, name)
    text = f"start among the most sessions, of that of the first: at most {FLAT}"
    yield text, lambda name: _flatness(results.figures, name)


def _worst(figures: Sequence[Figure], name: str, goal: Goal) -> str:
    if goal.byte_code not in (None, name == BYTE_CODE):
        return ""
    matching = [f for f in figures if fnmatch(f.group, goal.group) and fnmatch(f.title, goal.title)]
    if any(name in figure.failures for figure in matching):
        return "failed"
    values = [f.median(name) if goal.alone else f.compared(name, goal.other) for f in matching]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    worst = min(known) if goal.at_least else max(known)
    return _verdict(worst, worst >= goal.limit if goal.at_least else worst <= goal.limit)


def _less_than_waiting(figures: Sequence[Figure], name: str) -> str:
    for figure in figures:
        ours, waiting = figure.compared(name), figure.compared(WAIT)
        if figure.added and ours and waiting:
            return _verdict(waiting / ours, waiting / ours >= LESS_WAITING)
    return ""


def _flatness(figures: Sequence[Figure], name: str) -> str:
    points = sorted(curve(figures, STARTS, name))
    if len(points) < 2:
        return ""
    ratio = points[-1][1] / points[0][1]
    return _verdict(ratio, ratio <= FLAT)


def _verdict(value: float, reached: bool) -> str:
    return f"{value:.3g}" if reached else f"**{value:.3g}, missed**"
