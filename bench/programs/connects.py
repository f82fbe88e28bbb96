"""How long connecting takes: connects.py ADDRESS PORT TIMES AT_ONCE

The lower quartile of so many times each, and that many connections at once; in microseconds and
milliseconds. Then it stays until it is ended.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import sys
import time
from typing import Callable

ADDRESS, PORT, TIMES, AT_ONCE = sys.argv[1], *map(int, sys.argv[2:])
RESET = struct.pack("=ii", 1, 0)  # no port waits for the end of its connection
clock = time.perf_counter_ns


def close(made: socket.socket) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    made.close()


def to(address: str, port: int) -> int:
    made = socket.socket()
    begin = clock()
    made.connect((address, port))
    took = clock() - begin
    close(made)
    return took


def to_loopback() -> int:
    took = to(*own.getsockname())
    own.accept()[0].close()
    return took


def to_unix_socket() -> int:
    with socket.socket(socket.AF_UNIX) as made:
        begin = clock()
        made.connect(unix.getsockname())
        took = clock() - begin
    unix.accept()[0].close()
    return took


def make_epoll() -> int:
    begin = clock()
    made = select.epoll()
    took = clock() - begin
    made.close()
    return took


def quartile(take: Callable[[], int]) -> float:
    return sorted(take() for _ in range(TIMES))[TIMES // 4] / 1e3


def accepted() -> None:
    """Wait until the server has accepted all connections: it answers in their order. Where more
    than its backlog wait, the kernel drops the next one, and it is tried again after 1 s."""
    while not is_answered():
        pass


def is_answered() -> bool:
    """pasta closes a connection that it could not make at once."""
    with socket.create_connection((ADDRESS, PORT)) as made, contextlib.suppress(ConnectionError):
        made.sendall(b"GET / HTTP/1.1\r\n\r\n")
        return made.recv(100) != b""
    return False


def at_once() -> float:
    accepted()
    waiting = select.poll()
    begin = clock()
    sockets = {}
    for _ in range(AT_ONCE):
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex((ADDRESS, PORT))
        waiting.register(made, select.POLLOUT)
        sockets[made.fileno()] = made
    left = set(sockets)
    while left:
        for number, _ in waiting.poll():
            waiting.unregister(number)
            left.remove(number)
    took = clock() - begin
    for made in sockets.values():
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        close(made)
    return took / 1e6


own = socket.create_server(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX)
unix.bind(f"\0portwrap-bench-{own.getsockname()[1]}")
unix.listen()
figures = [quartile(to_loopback), quartile(to_unix_socket)]
figures += [quartile(lambda: to(ADDRESS, PORT)), quartile(make_epoll), at_once()]
print("figures:", ",".join(f"{each:.3f}" for each in figures), flush=True)
signal.pause()
