"""The way out: from inside a session to a server on another host of the bench's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lab import SERVER, Lab, LabError
from .rig import await_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rig import Figure, Rig
    from .ways import Way

PORT = 8000
SERVE = ("{python}", "-I", "-S", "{programs}/raw_server.py", SERVER, str(PORT))
ASK = ("env", "PYTHONPATH={folder}", "{python}", "-S", "-m", "bench.load")
RESULT = r"(?m)^MB/s: (\S+)$"


def measure(rig: Rig) -> None:
    """Download and upload over one stream and over eight."""
    try:
        lab = Lab(rig.account)
    except LabError as error:
        rig.say(f"no way out is measured: {error}")
        rig.notes.append(f"The way out was not measured: {error}.")
        return
    try:
        with rig.run(rig.filled(SERVE), network=lab.server) as server:
            await_word(server, "(listening)")
            _streams(rig, lab)
    finally:
        lab.close()


def _streams(rig: Rig, lab: Lab) -> None:
    group = "The way out of a session"
    kinds: list[tuple[str, int, Figure]] = []
    for kind in ("download", "upload"):
        for streams in (1, 8):
            many = "1 stream" if streams == 1 else f"{streams} streams"
            figure = rig.figure(group, f"{kind} from inside, {many}", "MB/s", more_is_better=True)
            kinds.append((kind, streams, figure))
    ways = {way.name: way for way in rig.ways_out}
    for kind, streams, figure in kinds:
        rig.say(f"way out: {figure.title}")
        words = (*ASK, kind, SERVER, str(PORT), str(rig.size.bulk_out), str(streams))
        for name in rig.in_turn(rig.size.rounds, list(ways)):
            rig.sample([figure], name, _asked, rig, ways[name], words, lab)


def _asked(rig: Rig, way: Way, words: Sequence[str], lab: Lab) -> list[float]:
    """MB/s of one session that does nothing else."""
    with rig.start(way, words, lab.node)[0] as session:
        return [float(await_word(session, RESULT))]
