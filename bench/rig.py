"""What every measurement needs: the ways, their sessions, and the figures that come of them."""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, NamedTuple, TypeVar

from . import load
from .session import Session, end_all
from .ways import BARE, Port, fill_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .accounts import Account
    from .lab import Network
    from .ways import Way

T = TypeVar("T")

PORTS = range(10240, 32000)
START_LIMIT = 60.0
"""Seconds that a session may take to do what it was started for."""
ENOUGH = 3
"""Rounds that are made on the slowest machine, too."""
FAILURES = (load.LoadError, OSError, subprocess.SubprocessError)
"""What a way that does not do what is asked of it comes to."""
MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30

RAW = ("{python}", "-I", "-S", "{programs}/raw_server.py", "{address}", "{port}")
JUPYTER = (
    *("{hub-venv}/bin/jupyter-server", "--no-browser", "--ServerApp.allow_root=True"),
    *("--ServerApp.ip={address}", "--ServerApp.port={port}", "--ServerApp.port_retries=0"),
    *("--ServerApp.root_dir={content}", "--IdentityProvider.token={token}"),
    # A terminal or a log line for each request would be measured with it.
    *("--ServerApp.allow_remote_access=True", "--ServerApp.log_level=ERROR"),
    *("--ServerApp.use_redirect_file=False", "--config={programs}/jupyter_server_config.py"),
)


class Size(NamedTuple):
    """How much of everything a run takes."""

    rounds: int
    timeout: float  # seconds for the rounds of one row, see Rig.rounds
    starts: int
    few: int  # starts of what takes seconds; 0: none of jupyter_server
    load: Sequence[int]  # numbers of connections that ask at once
    seconds: int  # of that; wrk knows whole ones only
    bulk: int  # bytes, into a session
    bulk_out: int  # bytes at most, out of a session
    connects: int
    upload: int  # bytes of a file that is saved
    trips: int
    crowd: Sequence[int]  # numbers of sessions whose memory is looked at
    idle: float  # seconds
    node: Sequence[int]  # numbers of sessions on the node
    connections: Sequence[int]  # numbers of open connections of a session
    calls: int
    files: int  # of a tree
    tries: int  # the best of so many is what a program takes
    control: bool  # measure bare twice


SIZES = {
    "full": Size(
        *(5, 20, 30, 2, (1, 16, 128), 1, GIBIBYTE, GIBIBYTE, 1000, 64 * MEBIBYTE, 300),
        *((1, 10, 100), 60.0, (1, 20, 100, 200), (1, 100, 1000, 5000), 500_000, 20_000, 3, True),
    ),
    "quick": Size(
        *(2, 5, 5, 1, (1, 16, 128), 1, GIBIBYTE // 4, GIBIBYTE // 4, 1000, 16 * MEBIBYTE, 100),
        *((1, 10), 5.0, (1, 20), (1, 500), 300_000, 20_000, 3, True),
    ),
    "tiny": Size(
        *(1, 1, 1, 0, (16,), 1, 8 * MEBIBYTE, MEBIBYTE, 50, 8 * MEBIBYTE, 10),
        *((1, 2), 0.5, (1, 2), (1, 20), 10_000, 200, 1, False),
    ),
}


class Figure:
    """One line of the results: the samples of each way, in the order of the rounds."""

    def __init__(
        self,
        group: str,
        title: str,
        unit: str,
        more_is_better: bool = False,
        added: bool = False,
        point: tuple[str, int] | None = None,
    ) -> None:
        self.group = group
        self.title = title
        self.unit = unit
        self.more_is_better = more_is_better
        self.added = added  # the difference to bare says more than the ratio
        self.point = point  # a curve's name, and where on it this is
        self.samples: dict[str, list[float]] = {}
        self.failures: dict[str, str] = {}
        self.retried: set[str] = set()

    def median(self, name: str) -> float | None:
        """The middle of what this way reached."""
        samples = self.samples.get(name)
        return statistics.median(samples) if samples else None

    def comparisons(self, name: str, other: str = BARE) -> list[float]:
        """Each round's ratio to bare, or difference: what slows both in a round cancels out."""
        pairs = zip(self.samples.get(name, []), self.samples.get(other, []))
        if self.added:
            return [ours - theirs for ours, theirs in pairs]
        return [ours / theirs for ours, theirs in pairs if theirs]

    def compared(self, name: str, other: str = BARE) -> float | None:
        """The middle of the rounds' comparisons with bare, or with another way."""
        found = self.comparisons(name, other)
        return statistics.median(found) if found else None

    def spread(self, name: str) -> float | None:
        """Half the distance between the quartiles of the comparisons."""
        found = self.comparisons(name)
        if len(found) < 3:
            return None
        first, _, third = statistics.quantiles(found, n=4, method="inclusive")
        return (third - first) / 2


class Rig:
    """Starts sessions and keeps the figures."""

    def __init__(
        self,
        ways: Sequence[Way],
        values: Mapping[str, str],
        environ: Mapping[str, str],
        account: Account,
        folder: Path,
        size: Size,
    ) -> None:
        self.ways = list(ways)
        self.byte_code_ways: list[Way] = []
        self.outbound_ways: list[Way] = []
        self.published_ways: list[Way] = []
        self.ways_calls: list[Way] = []
        self.token = secrets.token_hex(16)
        self.values = {**values, "token": self.token}
        self.environ = environ
        self.account = account
        self.folder = folder
        self.size = size
        self.figures: list[Figure] = []
        self.failures: dict[str, str] = {}
        self.notes: list[str] = []
        self.broken = False  # a part of the bench itself
        self.given: set[int] = set()
        self.count = 0
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        sys.stderr.write(f"bench: [{time.monotonic() - self.began:3.0f} s] {text}\n")
        sys.stderr.flush()

    def has(self, program: str) -> bool:
        """Whether a program is here; if not, the results say what they lack for that."""
        if shutil.which(program):
            return True
        note = f"{program} is not installed, so what it measures is left out."
        if note not in self.notes:
            self.notes.append(note)
        return False

    def figure(
        self,
        group: str,
        title: str,
        unit: str,
        more_is_better: bool = False,
        added: bool = False,
        point: tuple[str, int] | None = None,
    ) -> Figure:
        """A new line of the results."""
        self.figures.append(Figure(group, title, unit, more_is_better, added, point))
        return self.figures[-1]

    def run(
        self,
        words: Sequence[str],
        variables: Mapping[str, str] | None = None,
        network: Network | None = None,
    ) -> Session:
        """Start a session of these words."""
        self.count += 1
        log = self.folder / f"log-{self.count}"
        environ = {**self.environ, **(variables or {})}
        return Session(words, environ, self.account, log, network)

    def free_port(self) -> int:
        """A TCP port that nobody holds, and that no other session is about to take.

        None of those that the kernel gives to clients by itself: in whichever network namespace the
        session is to be, a closed connection may still be remembered there.
        """
        while True:
            port = random.choice(PORTS)
            if port not in self.given and _is_free(port):
                self.given.add(port)
                return port

    def filled(self, words: Sequence[str]) -> list[str]:
        """A command that stands for itself, with its places filled in."""
        return [fill_in(word, self.values) for word in words]

    def start(
        self, way: Way, command: Sequence[str], network: Network | None = None
    ) -> tuple[Session, int]:
        """Start a command in this way; returns the session and the host's port."""
        port = self.free_port()
        words = way.words(command, Port(port), self.values)
        variables = way.variables(Port(port), Port(self.free_port()))
        return self.run(words, variables, network), port

    def start_more(
        self, sessions: list[Session], stack: contextlib.ExitStack, way: Way, command: Sequence[str]
    ) -> None:
        """One more session; when the stack unwinds, all of them end at the same time."""
        if not sessions:
            stack.callback(end_all, sessions)
        sessions.append(self.start(way, command)[0])

    @contextlib.contextmanager
    def servers(
        self, command: Sequence[str], path: str, ways: Sequence[Way] | None = None
    ) -> Iterator[Servers]:
        """A server for each way, but for those whose forward is another way's."""
        servers = Servers(self, command, path, self.ways if ways is None else ways)
        try:
            for way in servers.ways:
                if not way.waits:
                    servers.start(way)
            yield servers
        finally:
            end_all(list(servers.sessions.values()))

    def failed(self, name: str, error: object, session: Session | None = None) -> None:
        """Keep why a way could not be measured."""
        words = session.said().strip().splitlines()[-1:] if session else []
        self.failures[name] = ": ".join([str(error), *words])
        self.say(f"{name}: {self.failures[name]}")

    def in_turn(self, rounds: int, names: Sequence[str], timeout: float = 1.0) -> Iterator[str]:
        """Each name once in every round, and another one first each time."""
        names = list(names)
        for number in self.rounds(rounds, timeout=timeout):
            shift = number % max(1, len(names))
            yield from names[shift:] + names[:shift]

    def rounds(self, most: int, least: int = ENOUGH, timeout: float = 1.0) -> Iterator[int]:
        """The numbers of the rounds: fewer on a slow machine, but not fewer than a median needs.

        `timeout` is in units of the size's own.
        """
        until = time.monotonic() + timeout * self.size.timeout
        for number in range(most):
            if number >= least and time.monotonic() > until:
                return
            yield number

    def attempt(self, figure: Figure, name: str, take: Callable[..., T], *arguments: Any) -> T:
        """What this returns; it may fail once. Raises one of FAILURES."""
        try:
            return take(*arguments)
        except FAILURES as error:
            if name in figure.retried:
                raise
            figure.retried.add(name)
            self.say(f"{name}: once more: {error}")
            return take(*arguments)

    def sample(
        self,
        figures: Sequence[Figure],
        name: str,
        take: Callable[..., Sequence[float]],
        *arguments: Any,
    ) -> None:
        """Take one sample for each of these figures; not again where that has failed twice.

        Anything can fail once on a busy machine.
        """
        if name in figures[0].failures:
            return
        try:
            found = self.attempt(figures[0], name, take, *arguments)
        except FAILURES as error:
            self.say(f"{name}: {figures[0].title}: {error}")
            for figure in figures:
                figure.failures[name] = str(error)
            return
        for figure, value in zip(figures, found):
            figure.samples.setdefault(name, []).append(value)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((load.HOST, port))
        except OSError:
            return False
    return True


class Servers(Dict[str, int]):
    """The host's port of each way whose server answers."""

    def __init__(self, rig: Rig, command: Sequence[str], path: str, ways: Sequence[Way]) -> None:
        super().__init__()
        self.rig = rig
        self.ways = ways
        self.command = command
        self.path = path
        self.sessions: dict[str, Session] = {}

    def start(self, way: Way) -> None:
        """Start this one's, in place of one that there is."""
        if way.name in self.sessions:
            self.sessions.pop(way.name).end()
        session, port = self.rig.start(way, self.command)
        self.sessions[way.name] = session
        try:
            load.first_answer(port, self.path, START_LIMIT, session.is_over, 0.01)
        except load.LoadError as error:
            self.pop(way.name, None)
            self.rig.failed(way.name, error, session)
        else:
            self[way.name] = port

    def renew(self, name: str) -> None:
        """What has failed may be stuck for good."""
        for way in self.ways:
            if way.name == name:
                self.start(way)


def await_word(
    session: Session, pattern: str, limit: float = START_LIMIT, pause: float = 0.005
) -> str:
    """Wait until the session has written what matches; returns the match's only group."""
    until = time.monotonic() + limit
    look = time.monotonic() + 1
    while time.monotonic() < until:
        found = re.search(pattern, session.said())
        if found:
            return found.group(1)
        if time.monotonic() > look:
            look += 1
            if session.is_over():
                break
        time.sleep(pause)
    said = session.said().strip().splitlines()[-1:]
    raise load.LoadError(": ".join(["no result", *said]))


def gigabytes(size: int) -> str:
    """A size for a title."""
    return f"{size / GIBIBYTE:g} GiB" if size >= GIBIBYTE else f"{size // MEBIBYTE} MiB"
