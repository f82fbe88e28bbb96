"""Programs inside that do little else than system calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rig import await_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rig import Rig
    from .ways import Way

GROUP = "A program inside that does little else than system calls"
COPY = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1")
COPIED = r"copied, (\S+) s"
LISTEN = ("{python}", "-I", "-S", "{programs}/listen.py")
LISTENED = r"microseconds: (\S+)"


def measure(rig: Rig) -> None:
    """read and write, which no filter looks at for long; listen, which ours passes on."""
    rig.say("system calls")
    count = rig.size.calls
    copy = rig.figure(GROUP, f"dd of {count:,} single bytes", "s")
    listen = rig.figure(GROUP, "listen() on another port than the server's", "µs", added=True)
    ways = {way.name: way for way in rig.ways if not way.waits}
    for name in rig.in_turn(rig.size.rounds, list(ways)):
        way = ways[name]
        rig.sample([copy], name, _said, rig, way, (*COPY, f"count={count}"), COPIED)
        rig.sample([listen], name, _said, rig, way, LISTEN, LISTENED)


def _said(rig: Rig, way: Way, command: Sequence[str], pattern: str) -> list[float]:
    """What the command says about itself."""
    with rig.start(way, command)[0] as session:
        return [float(await_word(session, pattern))]
