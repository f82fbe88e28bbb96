"""Programs inside that make many system calls: little else, or as programs of users do."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

from .load import LoadError
from .rig import await_word
from .ways import LEAN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .rig import Figure, Rig
    from .ways import Way

GROUP = "Programs inside of many system calls"
COPY = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "status=none")
ASK = (*LEAN, "{programs}/getppid.py")
ASKED = r"nanoseconds: (\S+)"
LISTEN = (*LEAN, "{programs}/listen.py")
LISTENED = r"microseconds: (\S+)"
TREE = "{temporary}/tree"
MAKE = (*LEAN, "{programs}/make_tree.py", TREE)
BEST = (*LEAN, "{programs}/best_of.py")
TOOK = r"seconds: (\S+)"
TIMEOUT = 6.0
"""Many rows: longer than what has a few."""


class Row(NamedTuple):
    """What is run, and what it says about itself."""

    figure: Figure
    command: Sequence[str]
    pattern: str


def measure(rig: Rig) -> None:
    """The least that a call can do; listen, which our filter passes on; and what users run.

    Processor time, for a filter costs nothing else: it says the same on a busy machine.
    """
    rig.say("system calls")
    rows = [*_hardly_else(rig), *_real(rig)]
    ways = {way.name: way for way in (*rig.ways, *rig.ways_calls) if not way.waits}
    for name in rig.in_turn(rig.size.rounds, list(ways), TIMEOUT):
        for figure, command, pattern in rows:
            rig.sample([figure], name, _said, rig, ways[name], command, pattern)


def _hardly_else(rig: Rig) -> Iterator[Row]:
    """Programs that do hardly anything else."""
    ask = rig.figure(GROUP, "getppid(), in Python", "ns", added=True)
    yield Row(ask, ASK, ASKED)
    listen = rig.figure(GROUP, "listen() on another port than the server's", "µs", added=True)
    yield Row(listen, LISTEN, LISTENED)
    count = rig.size.calls
    yield _best(rig, f"dd of {count:,} single bytes", *COPY, f"count={count}")


def _real(rig: Rig) -> Iterator[Row]:
    """Each the best of some times, in a tree that is in memory by the second."""
    count = rig.size.files
    try:
        with rig.run(rig.filled((*MAKE, str(count)))) as session:
            await_word(session, "(made)")
    except LoadError as error:
        rig.notes.append(f"No programs of users were measured, for lack of files: {error}.")
        return
    tree = f"of {count:,} files"
    yield _best(rig, f"find, names and sizes {tree}", "find", TREE, "-printf", "%p %s\\n")
    yield _best(rig, f"tar {tree}", "tar", "-cf", "-", TREE)
    if rig.has("git"):
        # Its index is not written; and where the account is root inside, as some ways have it, no
        # file is read anew for its other owner.
        status = ("env", "GIT_OPTIONAL_LOCKS=0", "git", "-c", "core.checkStat=minimal")
        yield _best(rig, f"git status {tree}", *status, "-C", TREE, "status")
    yield _best(rig, "Python's import of socket", *LEAN, "-c", "import socket")
    python = rig.filled(["{hub-venv}/bin/python"])[0]
    if shutil.which(python):
        title = "Python's import of jupyter_client"
        yield _best(rig, title, python, "-c", "import jupyter_client")
    programs = count // 100
    script = f"for i in $(seq {programs}); do env true; done"
    yield _best(rig, f"a shell script that starts {programs} programs", "sh", "-c", script)


def _best(rig: Rig, title: str, *command: str) -> Row:
    tries = rig.size.tries
    figure = rig.figure(GROUP, f"{title}, best of {tries}", "s")
    return Row(figure, (*BEST, str(tries), *command), TOOK)


def _said(rig: Rig, way: Way, command: Sequence[str], pattern: str) -> list[float]:
    """What the command says about itself."""
    with rig.start(way, command)[0] as session:
        return [float(await_word(session, pattern))]
