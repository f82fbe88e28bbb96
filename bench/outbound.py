"""Outbound: from inside a session to a server on another host of the bench's own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from .lab import SERVER, Lab, LabError
from .rig import await_word
from .staying import KEEPER, KILOBYTES_PER_MEGABYTE, kilobytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rig import Figure, Rig
    from .ways import Way

GROUP = "Outbound"
PORT = 8000
SERVE = ("{python}", "-I", "-S", "{programs}/raw_server.py", SERVER, str(PORT))
ASK = ("env", "PYTHONPATH={folder}", "{python}", "-S", "-m", "bench.load")
RESULT = r"(?m)^MB/s: (\S+)$"
CONNECT = ("{python}", "-I", "-S", "{programs}/connects.py", SERVER, str(PORT))
CONNECTED = r"(?m)^figures: (\S+)$"
START_KERNEL = ("{hub-venv}/bin/python", "{programs}/start_kernel.py")
STARTED = r"(?m)^milliseconds: (\S+)$"


def measure(rig: Rig) -> None:
    """Download and upload over one stream and over eight, and what it takes to connect."""
    try:
        lab = Lab(rig.account)
    except LabError as error:
        rig.say(f"nothing outbound is measured: {error}")
        rig.notes.append(f"Outbound connections were not measured: {error}.")
        return
    try:
        with rig.run(rig.filled(SERVE), network=lab.server) as server:
            await_word(server, "(listening)")
            _streams(rig, lab)
            _connects(rig, lab)
            _kernels(rig, lab)
    finally:
        lab.close()


def _streams(rig: Rig, lab: Lab) -> None:
    kinds: list[tuple[str, int, Figure]] = []
    for kind in ("download", "upload"):
        for streams in (1, 8):
            many = "1 stream" if streams == 1 else f"{streams} streams"
            figure = rig.figure(GROUP, f"{kind} from inside, {many}", "MB/s", more_is_better=True)
            kinds.append((kind, streams, figure))
    ways = {way.name: way for way in rig.outbound_ways}
    for kind, streams, figure in kinds:
        rig.say(f"outbound: {figure.title}")
        words = (*ASK, kind, SERVER, str(PORT), str(rig.size.bulk_out), str(streams))
        for name in rig.in_turn(rig.size.rounds, list(ways)):
            rig.sample([figure], name, _asked, rig, ways[name], words, lab)


def _asked(rig: Rig, way: Way, words: Sequence[str], lab: Lab) -> list[float]:
    """MB/s of one session that does nothing else."""
    with rig.start(way, words, lab.node)[0] as session:
        return [float(await_word(session, RESULT))]


def _connects(rig: Rig, lab: Lab) -> None:
    """What one connection takes, many at once, and the keeper's memory behind them."""
    many = rig.size.connects
    figures = [
        rig.figure(GROUP, "connect to the loopback", "µs", added=True),
        rig.figure(GROUP, "connect to a Unix socket", "µs", added=True),
        rig.figure(GROUP, "connect to another host", "µs"),
        rig.figure(GROUP, "epoll_create1", "µs", added=True),
        rig.figure(GROUP, f"{many:,} connections at once", "ms"),
        rig.figure(GROUP, "memory of the keeper that no file backs", "MB", added=True),
    ]
    rig.say("outbound: connect")
    words = (*CONNECT, str(many), str(many))
    ways = {way.name: way for way in rig.outbound_ways}
    for name in rig.in_turn(rig.size.rounds, list(ways)):
        rig.sample(figures, name, _connected, rig, ways[name], words, lab)


def _connected(rig: Rig, way: Way, words: Sequence[str], lab: Lab) -> list[float]:
    """What the program has found; and MB, of our own ways."""
    with rig.start(way, words, lab.node)[0] as session:
        found = [float(word) for word in await_word(session, CONNECTED).split(",")]
        keepers = [each for each in session.processes() if each.name.startswith(KEEPER)]
        return found + [kilobytes(each)[2] / KILOBYTES_PER_MEGABYTE for each in keepers]


def _kernels(rig: Rig, lab: Lab) -> None:
    """What a notebook waits for when it is opened."""
    if not shutil.which(rig.filled(START_KERNEL)[0]):
        return
    tries = rig.size.tries
    figure = rig.figure(GROUP, f"start of a kernel, best of {tries}", "ms")
    rig.say(f"outbound: {figure.title}")
    ways = {way.name: way for way in rig.outbound_ways}
    for name in rig.in_turn(rig.size.rounds, list(ways)):
        rig.sample([figure], name, _started, rig, ways[name], lab, tries)


def _started(rig: Rig, way: Way, lab: Lab, tries: int) -> list[float]:
    with rig.start(way, (*START_KERNEL, str(tries)), lab.node)[0] as session:
        return [float(await_word(session, STARTED))]
