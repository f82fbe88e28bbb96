"""What is measured. Each round asks every way once, in turn, so that all meet the same machine."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import statistics
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from . import load
from .session import Session
from .ways import BARE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .session import Account, Process
    from .ways import Way

START_LIMIT = 60.0
"""Seconds that a server may take to answer for the first time."""
KILOBYTES_PER_MEGABYTE = 1000
MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30

NOTHING = ("date", "+<%s%N>")
RAW = ("{python}", "-I", "-S", "{programs}/raw_server.py", "{address}", "{port}")
IDLE = ("sleep", "100000")
JUPYTER = (
    *("{hub-venv}/bin/jupyter-server", "--no-browser", "--ServerApp.allow_root=True"),
    *("--ServerApp.ip={address}", "--ServerApp.port={port}", "--ServerApp.port_retries=0"),
    *("--ServerApp.root_dir={content}", "--IdentityProvider.token={token}"),
    # A terminal or a log line for each request would be measured with it.
    *("--ServerApp.allow_remote_access=True", "--ServerApp.log_level=ERROR"),
    "--ServerApp.use_redirect_file=False",
)


class Size(NamedTuple):
    """How much of everything a run takes."""

    rounds: int
    starts: int
    long_starts: int  # of a Jupyter server, and of a way that sleeps
    seconds: float  # of load at each number of connections
    bulk: int  # bytes
    trips: int
    idle: float  # seconds


FULL = Size(5, 30, 5, 3.0, GIBIBYTE, 300, 60.0)
QUICK = Size(3, 10, 2, 1.0, GIBIBYTE // 4, 100, 10.0)


class Figure:
    """One line of the results: the samples of each way, in the order of the rounds."""

    def __init__(
        self, group: str, title: str, unit: str, more_is_better: bool, added: bool = False
    ) -> None:
        self.group = group
        self.title = title
        self.unit = unit
        self.more_is_better = more_is_better
        self.added = added  # the difference to bare says more than the ratio
        self.samples: dict[str, list[float]] = {}
        self.failures: dict[str, str] = {}

    def median(self, name: str) -> float | None:
        """The middle of what this way reached."""
        samples = self.samples.get(name)
        return statistics.median(samples) if samples else None

    def ratio(self, name: str) -> float | None:
        """The middle of the rounds' ratios to bare: what slows both in a round cancels out."""
        pairs = list(zip(self.samples.get(name, []), self.samples.get(BARE, [])))
        return statistics.median(ours / bare for ours, bare in pairs if bare) if pairs else None

    def difference(self, name: str) -> float | None:
        """The middle of the rounds' differences to bare, in the figure's unit."""
        pairs = list(zip(self.samples.get(name, []), self.samples.get(BARE, [])))
        return statistics.median(ours - bare for ours, bare in pairs) if pairs else None


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
        self.token = secrets.token_hex(16)
        self.values = {**values, "token": self.token}
        self.environ = environ
        self.account = account
        self.folder = folder
        self.size = size
        self.figures: list[Figure] = []
        self.failures: dict[str, str] = {}
        self.count = 0

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        sys.stderr.write(f"bench: {text}\n")
        sys.stderr.flush()

    def figure(
        self, group: str, title: str, unit: str, more_is_better: bool = False, added: bool = False
    ) -> Figure:
        """A new line of the results."""
        self.figures.append(Figure(group, title, unit, more_is_better, added))
        return self.figures[-1]

    def start(self, way: Way, command: Sequence[str]) -> tuple[Session, int]:
        """Start a command in this way; returns the session and the host's port."""
        port = free_port()
        self.count += 1
        log = self.folder / f"log-{self.count}"
        words = way.words(command, port, self.values)
        environ = {**self.environ, **way.variables(port)}
        return Session(words, environ, self.account, log), port

    @contextlib.contextmanager
    def servers(self, command: Sequence[str], path: str) -> Iterator[dict[str, int]]:
        """A server for each way: the host's ports, of those that answer."""
        with contextlib.ExitStack() as stack:
            ports = {}
            for way in self.ways:
                if way.waits:
                    continue  # its forward is slirp4netns's
                session, port = self.start(way, command)
                stack.enter_context(session)
                try:
                    load.first_answer(port, path, START_LIMIT, session.is_over, 0.01)
                except load.LoadError as error:
                    self.failed(way.name, error, session)
                else:
                    ports[way.name] = port
            yield ports

    def failed(self, name: str, error: object, session: Session | None = None) -> None:
        """Keep why a way could not be measured."""
        words = session.said().strip().splitlines()[-1:] if session else []
        self.failures[name] = ": ".join([str(error), *words])
        self.say(f"{name}: {self.failures[name]}")

    def in_turn(self, rounds: int, names: Sequence[str]) -> Iterator[str]:
        """Each name once in every round, and another one first each time."""
        names = list(names)
        for number in range(rounds):
            shift = number % max(1, len(names))
            yield from names[shift:] + names[:shift]

    def sample(
        self, figures: Sequence[Figure], name: str, take: Callable[[], Sequence[float]]
    ) -> None:
        """Take one sample for each of these figures; not again where that has failed."""
        if name in figures[0].failures:
            return
        try:
            found = take()
        except (load.LoadError, OSError) as error:
            self.say(f"{name}: {figures[0].title}: {error}")
            for figure in figures:
                figure.failures[name] = str(error)
            return
        for figure, value in zip(figures, found):
            figure.samples.setdefault(name, []).append(value)


def free_port() -> int:
    """A TCP port that nobody holds."""
    with socket.socket() as probe:
        probe.bind((load.HOST, 0))
        return int(probe.getsockname()[1])


# -- 1: start --------------------------------------------------------------------------------------


def measure_start(rig: Rig) -> None:
    """From exec to the command's first instruction, and to the first answer of its server."""
    nothing = rig.figure("Start", "the command's first instruction", "ms", added=True)
    raw = rig.figure("Start", "first answer of a small server", "ms", added=True)
    jupyter = rig.figure("Start", "first answer of jupyter_server", "ms", added=True)
    plans: list[tuple[Figure, int, Callable[[Way], float]]] = [
        (nothing, rig.size.starts, lambda way: first_instruction(rig, way)),
        (raw, rig.size.starts, lambda way: time_to_answer(rig, way, RAW, "/")),
        (jupyter, rig.size.long_starts, lambda way: time_to_answer(rig, way, JUPYTER, "/api")),
    ]
    for figure, count, take in plans:
        rig.say(f"start: {figure.title}")
        for number in range(count):
            for way in rig.ways:
                if way.waits and number >= min(rig.size.long_starts, 3):
                    continue
                rig.sample([figure], way.name, lambda w=way, t=take: [t(w)])  # type: ignore[misc]


def first_instruction(rig: Rig, way: Way) -> float:
    """Milliseconds from exec until the command runs: date(1) tells when that is."""
    session, _ = rig.start(way, NOTHING)
    with session:
        until = time.monotonic() + START_LIMIT
        while time.monotonic() < until:
            found = re.search(r"<(\d{19})>", session.said())
            if found:
                return (int(found.group(1)) - session.started) / 1e6
            if time.monotonic() > until - START_LIMIT + 1 and session.is_over():
                break
            time.sleep(0.002)
        raise load.LoadError(f"the command did not run: {session.said()[-200:]}")


def time_to_answer(rig: Rig, way: Way, command: Sequence[str], path: str) -> float:
    """Milliseconds from exec until the first request is answered."""
    session, port = rig.start(way, command)
    with session:
        answered = load.first_answer(port, path, START_LIMIT, session.is_over)
        return (answered - session.started) / 1e6


# -- 2: the forward --------------------------------------------------------------------------------


def measure_forward(rig: Rig) -> None:
    """Requests, streams, round trips and many connections at once."""
    with rig.servers(JUPYTER, "/api") as ports:
        _requests(rig, ports)
        _burst(rig, ports)
        _kernels(rig, ports)
        _files(rig, ports)
    with rig.servers(RAW, "/") as ports:
        _raw(rig, ports)


def _requests(rig: Rig, ports: Mapping[str, int]) -> None:
    for connections in (1, 16, 128):
        many = "1 connection" if connections == 1 else f"{connections} connections"
        rig.say(f"jupyter_server: requests over {many}")
        group = "Requests to jupyter_server"
        figures = [
            rig.figure(group, f"requests/s, {many}", "/s", more_is_better=True),
            *(rig.figure(group, f"{key}, {many}", "ms") for key in ("p50", "p99", "p99.9")),
        ]

        def take(name: str, count: int = connections) -> Sequence[float]:
            script = rig.values["programs"] + "/report.lua"
            seconds = rig.size.seconds
            found = load.requests(ports[name], "/api", rig.token, count, seconds, script)
            return list(found.values())

        for name in rig.in_turn(rig.size.rounds, list(ports)):
            rig.sample(figures, name, lambda name=name: take(name))  # type: ignore[misc]


def _burst(rig: Rig, ports: Mapping[str, int]) -> None:
    rig.say("jupyter_server: 200 new connections at once")
    figure = rig.figure("Requests to jupyter_server", "200 new connections, last answer", "ms")
    for name in rig.in_turn(rig.size.rounds, list(ports)):

        def take(name: str = name) -> Sequence[float]:
            return [1000 * load.burst(ports[name], "/api", rig.token, 200)]

        rig.sample([figure], name, take)


def _kernels(rig: Rig, ports: Mapping[str, int]) -> None:
    rig.say("jupyter_server: kernel messages over WebSocket")
    figure = rig.figure("Round trips", "kernel message over WebSocket", "ms", added=True)
    kernels = {}
    for name, port in ports.items():
        try:
            kernels[name] = load.Kernel(port, rig.token)
        except (load.LoadError, OSError) as error:
            figure.failures[name] = str(error)
    for name in rig.in_turn(rig.size.rounds * 4, list(kernels)):
        count = rig.size.trips // 10

        def take(name: str = name, count: int = count) -> Sequence[float]:
            return [statistics.median(kernels[name].round_trips(count))]

        rig.sample([figure], name, take)
    for name, kernel in kernels.items():
        kernel.socket.close()
        running = load.call(ports[name], "/api/kernels", rig.token)
        for entry in running:
            load.call(ports[name], f"/api/kernels/{entry['id']}", rig.token, "DELETE")


def _files(rig: Rig, ports: Mapping[str, int]) -> None:
    size = rig.size.bulk
    one = rig.figure("Streams", f"jupyter_server: download, {gigabytes(size)}", "MB/s", True)
    eight = rig.figure("Streams", "jupyter_server: download, 8 streams", "MB/s", True)
    save = rig.figure("Streams", "jupyter_server: upload by /api/contents", "MB/s", True)
    rig.say("jupyter_server: download and upload")
    for name in rig.in_turn(rig.size.rounds, list(ports)):
        port = ports[name]

        def download(port: int = port) -> Sequence[float]:
            return [load.download(port, "/files/whole.bin", rig.token, size)]

        def download_eight(port: int = port) -> Sequence[float]:
            return [load.download(port, "/files/eighth.bin", rig.token, size // 8, 8)]

        def upload(port: int = port) -> Sequence[float]:
            return [load.save_file(port, rig.token, 64 * MEBIBYTE)]

        rig.sample([one], name, download)
        rig.sample([eight], name, download_eight)
        rig.sample([save], name, upload)


def _raw(rig: Rig, ports: Mapping[str, int]) -> None:
    size = rig.size.bulk
    down = rig.figure("Streams", f"raw server: download, {gigabytes(size)}", "MB/s", True)
    down_eight = rig.figure("Streams", "raw server: download, 8 streams", "MB/s", True)
    up = rig.figure("Streams", f"raw server: upload, {gigabytes(size)}", "MB/s", True)
    trip = rig.figure("Round trips", "100 bytes there and back, raw server", "ms", added=True)
    rig.say("raw server: download, upload, round trips")
    for name in rig.in_turn(rig.size.rounds, list(ports)):
        port = ports[name]

        def download(port: int = port) -> Sequence[float]:
            return [load.download(port, f"/down/{size}", "", size)]

        def download_eight(port: int = port) -> Sequence[float]:
            return [load.download(port, f"/down/{size // 8}", "", size // 8, 8)]

        def upload(port: int = port) -> Sequence[float]:
            return [load.upload(port, size)]

        def round_trip(port: int = port) -> Sequence[float]:
            return [statistics.median(load.echo(port, 10 * rig.size.trips))]

        rig.sample([down], name, download)
        rig.sample([down_eight], name, download_eight)
        rig.sample([up], name, upload)
        rig.sample([trip], name, round_trip)


def gigabytes(size: int) -> str:
    """A size for a title."""
    return f"{size / GIBIBYTE:g} GiB"


# -- 3: memory -------------------------------------------------------------------------------------


def measure_memory(rig: Rig) -> None:
    """What stays for each session besides the command: memory, processes, wake-ups."""
    group = "What stays for each session besides the command"
    count = rig.figure(group, "processes", "")
    columns = {1: "1 session", 10: "each of 10 sessions"}
    pss = {n: rig.figure(group, f"PSS, {text}", "MB") for n, text in columns.items()}
    rss = {n: rig.figure(group, f"RSS, {text}", "MB") for n, text in columns.items()}
    for way in rig.ways:
        if way.is_bare:
            continue
        rig.say(f"{way.name}: memory")
        with contextlib.ExitStack() as stack:
            sessions: list[Session] = []
            for number in (1, 10):
                while len(sessions) < number:
                    sessions.append(stack.enter_context(rig.start(way, IDLE)[0]))
                try:
                    staying = [p for session in sessions for p in around(session)]
                except load.LoadError as error:
                    rig.failed(way.name, error, sessions[-1])
                    break
                memory = [kilobytes(process) for process in staying]
                for figure, index in ((pss[number], 0), (rss[number], 1)):
                    total = sum(entry[index] for entry in memory)
                    figure.samples[way.name] = [total / KILOBYTES_PER_MEGABYTE / number]
                count.samples[way.name] = [len(staying) / number]
    _wake_ups(rig, group)


def around(session: Session) -> list[Process]:
    """The processes of a session without its command, once it is quiet."""
    until = time.monotonic() + START_LIMIT
    before: list[Process] = []
    while time.monotonic() < until:
        now = session.processes()
        if now == before and any(process.name == IDLE[0] for process in now):
            return [process for process in now if process.name != IDLE[0]]
        before = now
        time.sleep(0.5)
    raise load.LoadError("the session did not start")


def kilobytes(process: Process) -> tuple[int, int]:
    """(PSS, RSS) of a process. Raises OSError where the kernel does not tell us."""
    lines = (process.folder / "smaps_rollup").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines[1:])
    return int(found["Pss"].split()[0]), int(found["Rss"].split()[0])


def _wake_ups(rig: Rig, group: str) -> None:
    """One session of each way, left alone: how often its processes come to run."""
    figure = rig.figure(group, "wake-ups a minute when idle", "")
    rig.say(f"idle for {rig.size.idle:g} s")
    with contextlib.ExitStack() as stack:
        sessions = {}
        for way in rig.ways:
            if not way.is_bare and way.name not in rig.failures:
                sessions[way.name] = stack.enter_context(rig.start(way, IDLE)[0])
        try:
            staying = {name: around(session) for name, session in sessions.items()}
        except load.LoadError as error:
            rig.say(str(error))
            return
        before = {name: switches(found) for name, found in staying.items()}
        time.sleep(rig.size.idle)
        for name, found in staying.items():
            value = (switches(found) - before[name]) * 60 / rig.size.idle
            figure.samples[name] = [value]


def switches(found: Sequence[Process]) -> int:
    """How often these processes have left the processor: each wake-up ends with that."""
    total = 0
    for process in found:
        for task in (process.folder / "task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if "ctxt_switches" in line:
                    total += int(line.split()[1])
    return total


MEASURES = {"start": measure_start, "forward": measure_forward, "memory": measure_memory}
