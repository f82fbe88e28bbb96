"""Connections out of a session: whose socket they have, and a server that they reach."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import Any, Iterator

from networks import SERVER

from sessions import Inside, Portwrap

SO_NETNS_COOKIE = 71


def cookie(made: socket.socket) -> bytes:
    return made.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)


def is_native(made: socket.socket) -> bool:
    """Whether it is a socket of the host, where this thread is."""
    with socket.socket() as ours:
        return cookie(made) == cookie(ours)


@contextmanager
def echoing(listener: socket.socket) -> Iterator[int]:
    """Send back what each client sends, in a thread; the port."""
    listener.settimeout(None)

    def serve_one(made: socket.socket) -> None:
        with made:
            try:
                while True:
                    data = made.recv(65536)
                    if not data:
                        return
                    made.sendall(data)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                made, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=[made], daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def talks(made: socket.socket) -> bool:
    made.sendall(b"hello")
    return made.recv(5, socket.MSG_WAITALL) == b"hello"


@contextmanager
def native(portwrap: Portwrap, forward: str = "native", **options: Any) -> Iterator[Inside]:
    with Inside(portwrap, forward=forward, **{"outward": "native", **options}) as session:
        session.wait_until_up()
        yield session


def whose(session: Inside, port: int, address: str = SERVER) -> str:
    """By whose socket a connection leaves; it carries bytes to and fro."""
    with session.connect(address, port) as made:
        assert talks(made)
        return "native" if is_native(made) else "driver"
