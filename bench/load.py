"""The clients: each one asks a server on this machine's loopback, and returns what it measured.

Bulk clients throw bytes away in the kernel and send out of the page cache: a browser is on another
machine, and its work must not take processor time from what is measured here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any

try:
    import websocket  # of the venv of bench/, not of the system
except ImportError:
    HAS_WEBSOCKET = False
else:
    HAS_WEBSOCKET = True

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HOST = "127.0.0.1"
LIMIT = 10.0
"""Seconds that one request may take."""
BLOCK = 1 << 20
ROOM = 16 << 20
MEGABYTE = 1_000_000


class LoadError(Exception):
    """A server did not do what was asked of it."""


def request_text(path: str, headers: Mapping[str, str], method: str = "GET") -> bytes:
    """The head of an HTTP request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


# -- start -----------------------------------------------------------------------------------------


def first_answer(
    port: int, path: str, limit: float, is_over: Callable[[], bool], pause: float = 0.0005
) -> int:
    """Ask until the answer is 200; returns that moment as time.time_ns() does.

    Raises LoadError after `limit` seconds, or when the session is over.
    """
    text = request_text(path, {"Connection": "close"})
    until = time.monotonic() + limit
    look = time.monotonic() + 2.0
    while time.monotonic() < until:
        try:
            with socket.create_connection((HOST, port), timeout=2.0) as client:
                client.sendall(text)
                if client.recv(64).startswith(b"HTTP/1.1 200"):
                    return time.time_ns()
        except OSError:
            pass
        if time.monotonic() > look:
            look += 1.0
            if is_over():
                break
        time.sleep(pause)
    raise LoadError("no answer")


# -- requests --------------------------------------------------------------------------------------


def requests(
    port: int, path: str, token: str, connections: int, seconds: float, script: str
) -> dict[str, float]:
    """Load by wrk, over connections that stay open: requests/s, and latencies in milliseconds."""
    words = ["wrk", "--threads", "1", "--connections", str(connections), "--latency"]
    words += ["--duration", f"{seconds}s", "--timeout", "10s", "--script", script]
    words += ["--header", f"Authorization: token {token}", f"http://{HOST}:{port}{path}"]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds + LIMIT
    )
    lines = done.stdout.decode().strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        raise LoadError(f"wrk: {lines[-1] if lines else done.returncode}")
    found = json.loads(lines[-1])
    if found["errors"]:
        raise LoadError(f"{found['errors']} requests failed at {connections} connections")
    rate = found["requests"] / (found["duration"] / 1e6)
    # wrk says nothing of connections that get no answer; Little's law tells how many were in use.
    busy = rate * found["mean"] / 1e6
    if busy < 0.7 * connections:
        raise LoadError(f"only about {busy:.0f} of {connections} connections were served")
    return {
        "rate": rate,
        "p50": found["p50"] / 1000,
        "p99": found["p99"] / 1000,
        "p99.9": found["p99.9"] / 1000,
    }


def burst(port: int, path: str, token: str, count: int) -> float:
    """Open many connections at once, ask once on each: seconds until the last answer is there."""
    text = request_text(path, {"Authorization": f"token {token}", "Connection": "close"})
    begin = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        clients = []
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((HOST, port))
            selector.register(client, selectors.EVENT_WRITE)
            clients.append(client)
        try:
            _collect(selector, text, count, begin + LIMIT)
        finally:
            for client in clients:
                client.close()
    return time.perf_counter() - begin


def _collect(selector: selectors.BaseSelector, text: bytes, count: int, until: float) -> None:
    """Send the request on each connection as it opens, and read each to its end."""
    good: set[int] = set()
    while selector.get_map():
        events = selector.select(until - time.perf_counter())
        if not events:
            raise LoadError(f"{len(good)} of {count} connections were answered")
        for key, mask in events:
            client = key.fileobj
            assert isinstance(client, socket.socket)
            if mask & selectors.EVENT_WRITE:
                client.sendall(text)
                selector.modify(client, selectors.EVENT_READ)
                continue
            data = client.recv(65536)
            if data.startswith(b"HTTP/1.1 200"):
                good.add(key.fd)
            if not data:
                selector.unregister(client)
    if len(good) < count:
        raise LoadError(f"{len(good)} of {count} connections were answered")


# -- bulk ------------------------------------------------------------------------------------------


def _in_parallel(count: int, action: Callable[[], None]) -> float:
    """Do the same in several threads: MB/s are for the caller, seconds are returned."""
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            action()
        except (OSError, LoadError) as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise LoadError(str(errors[0]))
    return time.perf_counter() - begin


def download(
    port: int, path: str, token: str, size: int, streams: int = 1, host: str = HOST
) -> float:
    """Download `size` bytes on each stream: MB/s of all together."""
    text = request_text(path, {"Authorization": f"token {token}", "Connection": "close"})

    def one() -> None:
        with socket.create_connection((host, port), timeout=LIMIT) as client:
            client.sendall(text)
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096) or _too_short(0, size)
            status, rest = head.split(b"\r\n", 1)[0], head.split(b"\r\n\r\n", 1)[1]
            if b" 200 " not in status:
                raise LoadError(status.decode())
            _swallow(client, size - len(rest))

    return size * streams / MEGABYTE / _in_parallel(streams, one)


def _swallow(client: socket.socket, count: int) -> None:
    buffer = bytearray(BLOCK)
    while count > 0:
        # tcp(7): with MSG_TRUNC the kernel discards what it would have copied
        read = client.recv_into(buffer, min(count, BLOCK), socket.MSG_TRUNC)
        count -= read or len(_too_short(count, count))


def _too_short(missing: int, size: int) -> bytes:
    raise LoadError(f"the connection ended {missing} bytes early, of {size}")


def upload(port: int, size: int, streams: int = 1, host: str = HOST) -> float:
    """Upload `size` bytes on each stream to the raw server: MB/s of all together."""
    content = os.memfd_create("content")
    os.ftruncate(content, ROOM)
    os.pwrite(content, b"x" * ROOM, 0)
    text = request_text("/", {"Content-Length": str(size)}, "POST")

    def one() -> None:
        with socket.create_connection((host, port), timeout=LIMIT) as client:
            client.sendall(text)
            # os.sendfile knows nothing of Python's own time limit, under which sockets never block.
            client.settimeout(None)
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(LIMIT), 0)
            )
            rest = size
            while rest:
                rest -= os.sendfile(client.fileno(), content, 0, min(rest, ROOM))
            client.settimeout(LIMIT)  # some forwards lose the end of it
            if not client.recv(64).startswith(b"HTTP/1.1 200"):
                raise LoadError("the upload was not accepted")

    try:
        return size * streams / MEGABYTE / _in_parallel(streams, one)
    finally:
        os.close(content)


def save_file(port: int, token: str, size: int) -> float:
    """Upload a file as JupyterLab does, in pieces through /api/contents: MB/s of the file."""
    piece = 8 << 20
    text = base64.b64encode(b"x" * piece).decode()
    numbers = [*range(1, size // piece), -1]  # the last one says so
    bodies = [
        json.dumps({"type": "file", "format": "base64", "content": text, "chunk": number}).encode()
        for number in numbers
    ]
    begin = time.perf_counter()
    for body in bodies:
        call(port, "/api/contents/upload.bin", token, "PUT", body)
    return len(numbers) * piece / MEGABYTE / (time.perf_counter() - begin)


def call(port: int, path: str, token: str, method: str = "GET", body: bytes | None = None) -> Any:
    """One call of the server's interface; returns its JSON. Raises LoadError."""
    url = f"http://{HOST}:{port}{path}"
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    asked = urllib.request.Request(url, body, headers, method=method)
    # A proxy of the environment is not for this machine's own servers.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=LIMIT) as answer:
            return json.loads(answer.read() or b"null")
    except (OSError, urllib.error.HTTPError) as error:
        raise LoadError(f"{method} {path}: {error}") from error


# -- round trips -----------------------------------------------------------------------------------


def echo(port: int, count: int) -> list[float]:
    """Round trips of 100 bytes over one open connection to the raw server, in milliseconds."""
    times = []
    message = b"x" * 100
    with socket.create_connection((HOST, port), timeout=LIMIT) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(request_text("/echo", {}))
        client.recv(4096)
        for _ in range(count):
            begin = time.perf_counter()
            client.sendall(message)
            rest = len(message)
            while rest:
                rest -= len(client.recv(rest) or _too_short(rest, len(message)))
            times.append(1000 * (time.perf_counter() - begin))
    return times


class Client:
    """A connection that stays open, for one request after the other. Use as a context manager."""

    def __init__(self, port: int, path: str, token: str = "") -> None:
        self.text = request_text(path, {"Authorization": f"token {token}"} if token else {})
        self.socket = socket.create_connection((HOST, port), timeout=LIMIT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, path: str = "") -> float:
        """Milliseconds from a request to the end of its answer."""
        text = self.text.replace(b" / ", f" {path} ".encode(), 1) if path else self.text
        begin = time.perf_counter()
        self.socket.sendall(text)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(65536) or _ended()
        head, _, body = head.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not head.startswith(b"HTTP/1.1 200") or not length:
            raise LoadError(head[:100].decode(errors="replace"))
        _swallow(self.socket, int(length.group(1)) - len(body))
        return 1000 * (time.perf_counter() - begin)


def _ended() -> bytes:
    raise LoadError("the connection was closed")


def page(port: int, paths: Sequence[str], token: str, connections: int) -> float:
    """Load a page as a browser does: the first path, then all others over some connections that
    stay open. Milliseconds until the last one is there."""
    with contextlib.ExitStack() as stack:
        begin = time.perf_counter()
        clients = [stack.enter_context(Client(port, "/", token))]
        clients[0].ask(paths[0])
        clients += [stack.enter_context(Client(port, "/", token)) for _ in range(connections - 1)]
        waiting = list(reversed(paths[1:]))

        def work() -> None:
            client = clients_left.pop()
            while True:
                try:
                    path = waiting.pop()
                except IndexError:
                    return
                client.ask(path)

        clients_left = list(clients)
        _in_parallel(connections, work)
        return 1000 * (time.perf_counter() - begin)


class Kernel:
    """A WebSocket to a kernel of a Jupyter server: to a new one, or to the same as another's.

    A reply follows another small message. By Nagle's algorithm it waits for the acknowledgement of
    that one, which most clients send up to 40 ms later; a prompt one at once.
    """

    def __init__(self, port: int, token: str, prompt: bool = False, same: str = "") -> None:
        self.number = same or call(port, "/api/kernels", token, "POST", b"{}")["id"]
        self.prompt = prompt
        url = f"ws://{HOST}:{port}/api/kernels/{self.number}/channels?token={token}"
        self.socket = websocket.create_connection(url, timeout=LIMIT, http_no_proxy=["*"])
        self.round_trip()  # it has started when it answers

    def round_trip(self) -> float:
        """Milliseconds from a kernel_info_request to its reply."""
        number = uuid.uuid4().hex
        header = {"msg_id": number, "msg_type": "kernel_info_request", "version": "5.3"}
        header.update(username="bench", session=number, date="2020-01-01T00:00:00Z")
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": {}}
        text = json.dumps({**message, "channel": "shell", "buffers": []})
        connection: Any = self.socket.sock
        begin = time.perf_counter()
        self.socket.send(text)
        while True:
            if self.prompt:  # tcp(7): it does not stay so
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            answer = json.loads(self.socket.recv())
            ours = answer["parent_header"].get("msg_id") == number
            if ours and answer["msg_type"] == "kernel_info_reply":
                return 1000 * (time.perf_counter() - begin)


# -- from inside a session -------------------------------------------------------------------------


ENOUGH = 0.5
"""Seconds that a measured transfer takes at least, unless it is of all that there is to send."""
FIRST = 4 << 20


def main(words: Sequence[str]) -> None:
    """download|upload HOST PORT LARGEST STREAMS: print the rate of a long transfer."""
    kind, host, port, largest, streams = words
    count, size = int(streams), min(FIRST, int(largest))
    while True:
        part = size // count
        if kind == "download":
            rate = download(int(port), f"/down/{part}", "", part, count, host)
        else:
            rate = upload(int(port), part, count, host)
        if size >= int(largest) or size / MEGABYTE / rate >= ENOUGH:
            break
        size = min(4 * size, int(largest))
    print(f"MB/s: {rate:.6g}")


if __name__ == "__main__":
    main(sys.argv[1:])
