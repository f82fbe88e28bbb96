"""What stays for each session besides its command: processes, memory, wake-ups."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from . import load
from .rig import START_LIMIT
from .session import by_parent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .rig import Figure, Rig
    from .session import Process, Session
    from .ways import Way

GROUP = "What stays for each session besides the command"
KILOBYTES_PER_MEGABYTE = 1000
KEEPER = "portwrap-keeper"
SLEEP = ("sleep", "100000")
PYTHON = ("{python}", "-I", "-S", "-c", "import signal; signal.pause()")
DRIVERS = ("slirp4netns", "pasta", "passt")


def measure(rig: Rig) -> None:
    """Memory of sessions, then an idle minute."""
    processes = rig.figure(GROUP, "processes", "")
    one = rig.figure(GROUP, "PSS, 1 session", "MB")
    shared = rig.figure(GROUP, "PSS, 1 session of a server in the same interpreter", "MB")
    rss = rig.figure(GROUP, "RSS, 1 session", "MB")
    own = rig.figure(GROUP, "memory that no file backs, 1 session", "MB")
    keeper = rig.figure(GROUP, "memory that no file backs, keeper of 1 session", "MB")
    crowds = {
        number: rig.figure(GROUP, f"PSS, each of {number} sessions", "MB")
        for number in rig.size.crowd
        if number > 1
    }
    for way in (*rig.ways, *rig.byte_code_ways):
        if way.is_bare:
            continue
        rig.say(f"memory: {way.name}")
        try:
            with _sessions(rig, way, PYTHON, 1) as sessions:
                _note(shared, way, _memory(sessions)[0])
            for number in sorted({1, *crowds}):
                with _sessions(rig, way, SLEEP, number) as sessions:
                    pss, resident, written, count = _memory(sessions)
                    kept = _memory([_keepers(found) for found in sessions])[2]
                _note(crowds.get(number, one), way, pss / number)
                if number == 1:
                    _note(rss, way, resident)
                    _note(own, way, written)
                    _note(processes, way, count)
                    if way.is_ours:
                        _note(keeper, way, kept)
        except (load.LoadError, OSError) as error:
            rig.say(f"{way.name}: {error}")
            one.failures[way.name] = str(error)
    _idle(rig)


def _keepers(processes: Sequence[Process]) -> list[Process]:
    return [each for each in processes if each.name == KEEPER]


def _note(figure: Figure, way: Way, value: float) -> None:
    figure.samples[way.name] = [value]


@contextlib.contextmanager
def _sessions(rig: Rig, way: Way, command: Sequence[str], count: int):  # type: ignore[no-untyped-def]
    """Yields so many sessions, each as the processes that it has besides its command."""
    with contextlib.ExitStack() as stack:
        started: list[Session] = []
        for _ in range(count):
            rig.start_more(started, stack, way, command)
        yield settled(started, rig.filled(command))


def settled(sessions: Sequence[Session], command: Sequence[str]) -> list[list[Process]]:
    """Their processes without the commands, once all run and nothing comes or goes any more."""
    until = time.monotonic() + START_LIMIT
    before: list[list[Process]] = []
    while time.monotonic() < until:
        children = by_parent()
        now = [session.processes(children) for session in sessions]
        if now == before:
            staying = [[each for each in found if not each.runs(command)] for found in now]
            if all(len(rest) < len(found) for rest, found in zip(staying, now)):
                return staying
        before = now
        time.sleep(0.3)
    over = [session.said().strip().splitlines()[-1:] for session in sessions if session.is_over()]
    raise load.LoadError(f"the sessions do not settle; {len(over)} have ended: {over[:1]}")


def _memory(sessions: Sequence[Sequence[Process]]) -> tuple[float, float, float, int]:
    """(PSS, RSS, PSS of what no file backs, processes) of all that stays, in MB."""
    staying = [process for found in sessions for process in found]
    sums = map(sum, zip((0, 0, 0), *map(kilobytes, staying)))
    pss, rss, own = (kilobyte / KILOBYTES_PER_MEGABYTE for kilobyte in sums)
    return pss, rss, own, len(staying)


def kilobytes(process: Process) -> tuple[int, int, int]:
    """(PSS, RSS, PSS of what no file backs) of a process. Raises OSError where the kernel does
    not tell us.

    PSS divides each page among all that have mapped it: that of a lone session depends on what
    else runs in the same interpreter. Pages that were written to are the session's own.
    """
    lines = (process.folder / "smaps_rollup").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines[1:])
    # Linux 5.4; before, what is shared across fork is counted more than once.
    anonymous = found.get("Pss_Anon", found["Anonymous"])
    pss, rss, own = (int(value.split()[0]) for value in (found["Pss"], found["Rss"], anonymous))
    return pss, rss, own


def _idle(rig: Rig) -> None:
    """One session of each way, left alone: how often its processes come to run, and how long."""
    wakes = rig.figure(GROUP, "wake-ups a minute when idle", "")
    own = rig.figure(GROUP, "wake-ups a minute when idle, without slirp4netns or pasta", "")
    busy = rig.figure(GROUP, "processor time a minute when idle", "ms")
    rig.say(f"idle for {rig.size.idle:g} s")
    with contextlib.ExitStack() as stack:
        staying: dict[str, list[Process]] = {}
        for way in rig.ways:
            if way.is_bare or way.name in rig.failures:
                continue
            session = stack.enter_context(rig.start(way, SLEEP)[0])
            try:
                staying[way.name] = settled([session], SLEEP)[0]
            except load.LoadError as error:
                wakes.failures[way.name] = str(error)
        before = _counted(staying)
        time.sleep(rig.size.idle)
        after = _counted(staying)
    for name, counts in after.items():
        figures = (wakes, own, busy)
        for figure, now, then in zip(figures, counts, before[name]):
            figure.samples[name] = [(now - then) * 60 / rig.size.idle]


def _counted(staying: Mapping[str, Sequence[Process]]) -> dict[str, tuple[int, int, float]]:
    """(wake-ups, those of others than the network drivers, milliseconds run) so far, by way."""
    counted = {}
    for name, found in staying.items():
        switches = {process: _switches(process) for process in found}
        own = sum(n for process, n in switches.items() if not process.name.startswith(DRIVERS))
        counted[name] = (sum(switches.values()), own, sum(map(_milliseconds, found)))
    return counted


def _switches(process: Process) -> int:
    """How often a process has left the processor: each wake-up ends with that."""
    return sum(
        int(line.split()[1])
        for task in (process.folder / "task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if "ctxt_switches" in line
    )


def _milliseconds(process: Process) -> float:
    """How long a process has run: the first number of schedstat, in nanoseconds."""
    tasks = (process.folder / "task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6
