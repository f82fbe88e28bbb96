"""Start: from exec to the command's first instruction, and to its first answer."""

from __future__ import annotations

import http.server
import json
import queue
import socket
import threading
from typing import TYPE_CHECKING

from . import load
from .rig import JUPYTER, RAW, START_LIMIT, await_word
from .ways import BARE, Port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .rig import Figure, Rig
    from .session import Session
    from .ways import Way

STAMPED = ("sh", "-c", 'date "+<%s%N>" && exec "$@"', "sh", *RAW)
"""The small server, after its first instruction has said when it ran."""
LEAST, TIMEOUT = 8, 2
"""Rounds on the slowest machine, too, and how long they may take else: see Rig.rounds."""
ASK_JUPYTER = 0.002
"""Seconds between two questions to a server that takes a second to answer the first one."""
STAMP = r"<(\d{19})>"
BEGUN = r"\[(\d{19})\]"
SINGLEUSER = "{hub-venv}/bin/batchspawner-singleuser"
SERVICE_PORT = "{service-port}"


def measure(rig: Rig) -> None:
    """Every way to start."""
    _small(rig)
    if rig.size.few:
        _jupyter(rig)
    _in_process(rig)


def _small(rig: Rig) -> None:
    rig.say("start: a small server")
    figures = [
        rig.figure("Start", "the command's first instruction", "ms", added=True),
        rig.figure("Start", "first answer of a small server", "ms", added=True),
    ]
    ways = [*rig.ways, *rig.byte_code_ways]
    _in_rounds(rig, figures, ways, lambda way: start_small(rig, way))


def _in_rounds(
    rig: Rig, figures: Sequence[Figure], ways: Sequence[Way], take: Callable[[Way], list[float]]
) -> None:
    """Take them in turn, after one of each that does not count: what is read for the first time
    comes from the disk."""
    for way in ways:
        rig.sample(figures, way.name, lambda way: take(way)[:0], way)
    for number in rig.rounds(rig.size.starts, LEAST, TIMEOUT):
        for way in _of_round(rig, number, ways):
            rig.sample(figures, way.name, take, way)


def _of_round(rig: Rig, number: int, ways: Sequence[Way]) -> list[Way]:
    """Another one first in each round; those that sleep for seconds only in the first few."""
    taken = [way for way in ways if not way.waits or number < min(rig.size.few, 3)]
    shift = number % len(taken)
    return taken[shift:] + taken[:shift]


def start_small(rig: Rig, way: Way) -> list[float]:
    """Milliseconds from exec to the command's first instruction and to its first answer."""
    session, port = rig.start(way, STAMPED)
    with session:
        first, answered = _two_moments(session, port)
        return [(moment - session.started) / 1e6 for moment in (first, answered)]


def _two_moments(session: Session, port: int) -> tuple[int, int]:
    """When the command began, and when it answered; as time.time_ns() does. To ask a port again and
    again costs the session a part of a processor, so that it begins with the command."""
    first = int(await_word(session, STAMP, pause=0.001))
    return first, load.first_answer(port, "/", START_LIMIT, session.is_over)


def _jupyter(rig: Rig) -> None:
    rig.say("start: jupyter_server")
    figure = rig.figure("Start", "first answer of jupyter_server", "ms", added=True)

    def take(way: Way) -> list[float]:
        session, port = rig.start(way, JUPYTER)
        with session:
            answered = load.first_answer(port, "/api", START_LIMIT, session.is_over, ASK_JUPYTER)
            return [(answered - session.started) / 1e6]

    for number in rig.rounds(rig.size.starts, LEAST, TIMEOUT):
        for way in _of_round(rig, number, rig.ways):
            if way.name == BARE or way.is_ours or number < rig.size.few:
                rig.sample([figure], way.name, take, way)


# -- under batchspawner-singleuser -----------------------------------------------------------------


class Hub(http.server.ThreadingHTTPServer):
    """The one thing that batchspawner-singleuser asks a hub for: to hear which port it chose."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((own_address(), 0), _Heard)
        self.chosen: queue.Queue[int] = queue.Queue()
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    @property
    def url(self) -> str:
        """What JUPYTERHUB_API_URL says."""
        return "http://{}:{}/hub/api".format(*self.socket.getsockname())

    def next_port(self) -> int:
        """The port that the next one tells. Raises LoadError if none does."""
        try:
            return self.chosen.get(timeout=START_LIMIT)
        except queue.Empty:
            raise load.LoadError("batchspawner-singleuser did not tell its port") from None


class _Heard(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        """POST /hub/api/batchspawner {"port": N}"""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.chosen.put(json.loads(body)["port"])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def own_address() -> str:
    """An address of this machine that is not its loopback, as a hub has; without one, that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.18.0.1", 9))  # of UDP: nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return load.HOST


def _in_process(rig: Rig) -> None:
    group = "Start under batchspawner-singleuser, in process, from where it hands over"
    rig.say("start: under batchspawner-singleuser")
    figures = [
        rig.figure(group, "the command's first instruction", "ms", added=True),
        rig.figure(group, "first answer of a small server", "ms", added=True),
    ]
    ways = [way for way in rig.ways if way.name == BARE or way.is_ours or way.waits]
    ways += rig.byte_code_ways
    with Hub() as hub:
        try:
            _in_rounds(rig, figures, ways, lambda way: _singleuser(rig, way, hub))
        finally:
            hub.shutdown()


def _singleuser(rig: Rig, way: Way, hub: Hub) -> list[float]:
    """The same two moments, counted from when batchspawner-singleuser runs the program that it was
    given: before that it takes most of a second, now longer and now shorter."""
    port = Port(SERVICE_PORT)  # not known yet
    words = way.words(STAMPED, port, rig.values)
    # It runs a Python program in its own interpreter: ours, or one that becomes the words after it.
    programs = rig.values["programs"]
    program = words[1:] if way.is_ours else [programs + "/become.py", *words]
    variables = {
        "JUPYTERHUB_API_URL": hub.url,
        "JUPYTERHUB_API_TOKEN": rig.token,
        "JUPYTERHUB_SERVICE_URL": f"http://{load.HOST}:0/user/bench/",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/bench/",
    }
    words = [*rig.filled([SINGLEUSER]), programs + "/begun.py", *program]
    with rig.run(words, variables) as session:
        chosen = hub.next_port()
        first, answered = _two_moments(session, chosen)
        begin = int(await_word(session, BEGUN))
        return [(moment - begin) / 1e6 for moment in (first, answered)]
