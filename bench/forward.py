"""The forward: from the host's port to the server inside."""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from typing import TYPE_CHECKING

from . import load
from .rig import FAILURES, JUPYTER, MEBIBYTE, RAW, gigabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .rig import Figure, Rig, Servers

    Row = tuple[Sequence[Figure], Callable[[int], Sequence[float]]]

REQUESTS = "Requests to jupyter_server"
PROXIED = "An application behind jupyter-server-proxy, in jupyter_server"
STREAMS = "Streams"
TRIPS = "Round trips"
PUBLISHED = "Published ports, raw server"
CLIENT = "share of one processor that the client takes"
APPLICATION = "/application/"
"""Where jupyter-server-proxy has it, see programs/jupyter_server_config.py."""
PAGE = [20_000, *[30_000] * 30, *[150_000] * 8, 1_000_000]
"""Bytes of the files that the page of a larger web application consists of."""
REQUESTS_TIMEOUT, STREAMS_TIMEOUT = 4, 2
"""Of Rig.rounds."""
BROWSER = 6
"""Connections that a browser opens to one server."""


def measure(rig: Rig) -> None:
    """Requests, an application, round trips, streams and many connections at once."""
    with rig.servers(JUPYTER, "/api") as ports:
        _requests(rig, ports)
        _application(rig, ports)
        _kernels(rig, ports)
        _files(rig, ports)
    with rig.servers(RAW, "/") as ports:
        _raw(rig, ports)
    with rig.servers(RAW, "/", rig.published_ways) as ports:
        _published(rig, ports)


def _take_rows(
    rig: Rig, ports: Servers, rounds: int, rows: Sequence[Row], timeout: float = 1.0
) -> None:
    """Every row of every way in each round, next to each other."""
    for figures, _ in rows:
        rig.say(f"{figures[0].group}: {figures[0].title}")
    for name in rig.in_turn(rounds, list(ports), timeout):
        for figures, take in rows:
            failed = name in figures[0].failures
            if name in ports:
                rig.sample(figures, name, take, ports[name])
            if name in figures[0].failures and not failed:
                ports.renew(name)


# -- jupyter_server --------------------------------------------------------------------------------


def _requests(rig: Rig, ports: Servers) -> None:
    if not rig.has("wrk"):
        return
    rows: list[Row] = []
    for connections in rig.size.load:
        many = "1 connection" if connections == 1 else f"{connections} connections"
        figures = [
            rig.figure(REQUESTS, f"requests/s, {many}", "/s", more_is_better=True),
            *(rig.figure(REQUESTS, f"{key}, {many}", "ms") for key in ("p50", "p99", "p99.9")),
            rig.figure(REQUESTS, f"{CLIENT}, {many}", "%"),
        ]
        rows.append((figures, lambda port, n=connections: _wrk(rig, port, "/api", n)))  # type: ignore[misc]
    burst = rig.figure(REQUESTS, "200 new connections, last answer", "ms")
    rows.append(([burst], lambda port: [1000 * load.burst(port, "/api", rig.token, 200)]))
    # A row at a time: what one leaves behind (closed connections) is not for the next one.
    for row in rows:
        # Whether a connection has to ask twice, a second later, is chance, and the differences of
        # the others are small: many rounds tell.
        _take_rows(rig, ports, 2 * rig.size.rounds, [row], REQUESTS_TIMEOUT)


def _wrk(rig: Rig, port: int, path: str, connections: int) -> list[float]:
    """What wrk found, and how busy it was itself: near 100 % it would be what is measured."""
    script = rig.values["programs"] + "/report.lua"
    return _with_share(
        resource.RUSAGE_CHILDREN,
        lambda: load.requests(
            port, path, rig.token, connections, rig.size.seconds, script
        ).values(),
    )


def _with_share(who: int, take: Callable[[], Iterable[float]]) -> list[float]:
    """What was taken, and how many percent of a processor that took."""
    before, begin = resource.getrusage(who), time.monotonic()
    found = list(take())
    after, seconds = resource.getrusage(who), time.monotonic() - begin
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [*found, 100 * busy / seconds]


def _application(rig: Rig, ports: Servers) -> None:
    paths = [f"{APPLICATION}down/{length}" for length in PAGE]
    page = rig.figure(PROXIED, f"a page of {len(paths)} files, {BROWSER} connections", "ms")
    rows: list[Row] = [([page], lambda port: [load.page(port, paths, rig.token, BROWSER)])]
    for name, port in list(ports.items()):  # it starts the application when it is first asked for
        rig.sample([page], name, _started, rig, port)
    _take_rows(rig, ports, 2 * rig.size.rounds, rows)


def _started(rig: Rig, port: int) -> list[float]:
    with load.Client(port, APPLICATION, rig.token) as client:
        client.ask()
    return []  # nothing to keep


def _kernels(rig: Rig, ports: Servers) -> None:
    if not load.HAS_WEBSOCKET:
        rig.notes.append("No kernel messages were measured: websocket-client is not installed.")
        return
    figure = rig.figure(TRIPS, "kernel message over WebSocket", "ms", added=True)
    title = "kernel message over WebSocket, acknowledged at once"
    prompt = rig.figure(TRIPS, title, "ms", added=True)
    rig.say(f"{figure.group}: {figure.title}")
    kernels: dict[str, tuple[load.Kernel, load.Kernel]] = {}

    def start(port: int) -> tuple[load.Kernel, load.Kernel]:
        kernel = load.Kernel(port, rig.token)
        return kernel, load.Kernel(port, rig.token, prompt=True, same=kernel.number)

    for name, port in ports.items():
        try:
            kernels[name] = rig.attempt(figure, name, start, port)
        except FAILURES as error:
            figure.failures[name] = prompt.failures[name] = str(error)
    # Many short rounds: the differences are small.
    for name in rig.in_turn(4 * rig.size.rounds, list(kernels)):
        rig.sample([figure, prompt], name, _round_trips, kernels[name], rig.size.trips // 10)
    for name, (kernel, other) in kernels.items():
        kernel.socket.close()
        other.socket.close()
        with contextlib.suppress(load.LoadError):
            load.call(ports[name], f"/api/kernels/{kernel.number}", rig.token, "DELETE")


def _round_trips(both: Sequence[load.Kernel], count: int) -> list[float]:
    plain, prompt = both
    return [  # the first of them takes long
        statistics.median(plain.round_trip() for _ in range(max(1, count // 5))),
        statistics.median(prompt.round_trip() for _ in range(max(1, count))),
    ]


def _files(rig: Rig, ports: Servers) -> None:
    size, token, saved = rig.size.bulk, rig.token, rig.size.upload
    one = rig.figure(STREAMS, f"jupyter_server: download, {gigabytes(size)}", "MB/s", True)
    eight = rig.figure(STREAMS, "jupyter_server: download, 8 streams", "MB/s", True)
    save = rig.figure(STREAMS, f"jupyter_server: saving {saved // MEBIBYTE} MiB", "MB/s", True)
    rows: list[Row] = [
        ([one], lambda port: [load.download(port, "/files/whole.bin", token, size)]),
        ([eight], lambda port: [load.download(port, "/files/eighth.bin", token, size // 8, 8)]),
        ([save], lambda port: [load.save_file(port, token, saved)]),
    ]
    for port in list(ports.values())[:1]:  # the files come into memory
        with contextlib.suppress(*FAILURES):
            for _, take in rows:
                take(port)
    _take_rows(rig, ports, min(3, rig.size.rounds), rows, STREAMS_TIMEOUT)


# -- a server that costs next to nothing -----------------------------------------------------------


def _raw(rig: Rig, ports: Servers) -> None:
    size = rig.size.bulk
    down = rig.figure(STREAMS, f"raw server: download, {gigabytes(size)}", "MB/s", True)
    down_eight = rig.figure(STREAMS, "raw server: download, 8 streams", "MB/s", True)
    up = rig.figure(STREAMS, f"raw server: upload, {gigabytes(size)}", "MB/s", True)
    up_eight = rig.figure(STREAMS, "raw server: upload, 8 streams", "MB/s", True)
    trip = rig.figure(TRIPS, "100 bytes there and back, raw server", "ms", added=True)
    client = rig.figure(STREAMS, f"{CLIENT}, download", "%")
    part = size // 8

    def download(port: int) -> list[float]:
        return [load.download(port, f"/down/{size}", "", size)]

    rows: list[Row] = [
        ([down, client], lambda port: _with_share(resource.RUSAGE_SELF, lambda: download(port))),
        ([down_eight], lambda port: [load.download(port, f"/down/{part}", "", part, 8)]),
        ([up], lambda port: [load.upload(port, size)]),
        ([up_eight], lambda port: [load.upload(port, part, 8)]),
        ([trip], lambda port: [statistics.median(load.echo(port, 10 * rig.size.trips))]),
    ]
    _take_rows(rig, ports, rig.size.rounds, rows, STREAMS_TIMEOUT)


def _published(rig: Rig, ports: Servers) -> None:
    size = rig.size.bulk
    down = rig.figure(PUBLISHED, f"download, {gigabytes(size)}", "MB/s", True)
    up = rig.figure(PUBLISHED, f"upload, {gigabytes(size)}", "MB/s", True)
    trip = rig.figure(PUBLISHED, "100 bytes there and back", "ms", added=True)
    rows: list[Row] = [
        ([down], lambda port: [load.download(port, f"/down/{size}", "", size)]),
        ([up], lambda port: [load.upload(port, size)]),
        ([trip], lambda port: [statistics.median(load.echo(port, 10 * rig.size.trips))]),
    ]
    _take_rows(rig, ports, rig.size.rounds, rows, STREAMS_TIMEOUT)
