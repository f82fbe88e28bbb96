"""Makes the sockets that it is asked for and hands them out through its standard input, a socket.

A request is a dictionary in one message, by marshal, which every Python has loaded; the answer is a
message with the descriptor, or the decimal number of an error.
"""

from __future__ import annotations

import array
import marshal
import os
import resource
import select
import socket

TYPE_CHECKING = False  # importing typing takes longer than all else that this does
if TYPE_CHECKING:
    from typing import Any, Callable

asker = socket.socket(fileno=0)
LIMIT = 20.0
"""Seconds that a connection may take."""


def name(text: str) -> str:
    """'@name' for the abstract namespace."""
    return "\0" + text[1:] if text.startswith("@") else text


def tcp_or_udp(address: str, kind: int, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, kind, protocol)
    if family == socket.AF_INET6:
        only = not address.startswith("::ffff:")
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    return made


def listen(address: str, port: int, backlog: int = 1024) -> socket.socket:
    made = tcp_or_udp(address, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(backlog)
    return made


def connect(address: str, port: int, protocol: int = 0) -> socket.socket:
    made = tcp_or_udp(address, socket.SOCK_STREAM, protocol)
    made.settimeout(LIMIT)
    made.connect((address, port))
    return made


def unconnected(address: str, port: int, how: str) -> socket.socket:
    """A TCP socket that was connected once, or nearly, and is not any more."""
    made = tcp_or_udp(address, socket.SOCK_STREAM)
    made.settimeout(LIMIT)
    made.connect((address, port))
    disconnect(made)
    if how == "refused":  # by nobody's port
        made.settimeout(None)
        try:
            made.connect((address, 1))
        except ConnectionRefusedError:
            pass
    return made


def disconnect(made: socket.socket) -> None:
    """connect(2) to AF_UNSPEC."""
    import ctypes

    assert ctypes.CDLL(None).connect(made.fileno(), bytes(16), 16) == 0


def connect_and_listen(address: str, port: int, how: str) -> socket.socket:
    made = unconnected(address, port, how)
    made.listen()
    return made


def connect_and_bind(address: str, port: int, how: str, own: int) -> socket.socket:
    made = unconnected(address, port, how)
    made.bind(("127.0.0.1", own))
    return made


def connect_twice(address: str, port: int, other: str) -> socket.socket:
    made = unconnected(address, port, "disconnected")
    made.connect((other, port))
    return made


def connect_anyway(address: str, port: int, source: str = "") -> socket.socket:
    """Whatever comes of it; from this address."""
    made = tcp_or_udp(address, socket.SOCK_STREAM)
    made.settimeout(None)
    if source:
        made.bind((source, 0))
    made.connect_ex((address, port))
    return made


def connect_duplicated(address: str, port: int) -> socket.socket:
    """Of which there is another descriptor."""
    made = tcp_or_udp(address, socket.SOCK_STREAM)
    with made.dup():
        made.settimeout(5)
        made.connect((address, port))
    return made


def connect_watched(address: str, port: int) -> socket.socket:
    """In an epoll before it connects, which reports that it has."""
    made, epoll = tcp_or_udp(address, socket.SOCK_STREAM), select.epoll()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setblocking(False)
    epoll.register(made, select.EPOLLOUT | select.EPOLLET)
    epoll.poll(0)
    try:
        made.connect((address, port))
    except BlockingIOError:
        pass
    assert epoll.poll(10) == [(made.fileno(), select.EPOLLOUT)]
    made.settimeout(LIMIT)
    return made


def connect_beyond_limit(address: str, port: int) -> socket.socket:
    """With a file descriptor that is above a limit that was lowered since."""
    made = tcp_or_udp(address, socket.SOCK_STREAM)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.dup2(made.fileno(), 500)
    made.close()
    made = socket.socket(fileno=500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        made.connect((address, port))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return made


def bind_udp(address: str, port: int) -> socket.socket:
    made = tcp_or_udp(address, socket.SOCK_DGRAM)
    made.bind((address, port))
    return made


def connect_udp(address: str, port: int) -> socket.socket:
    made = tcp_or_udp(address, socket.SOCK_DGRAM)
    made.connect((address, port))
    return made


def listen_unix(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(name(path))
    made.listen()
    return made


def connect_unix(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(name(path))
    return made


ACTIONS: dict[str, Callable[..., socket.socket]] = {
    "listen": listen,
    "connect": connect,
    "connect_and_listen": connect_and_listen,
    "connect_and_bind": connect_and_bind,
    "connect_twice": connect_twice,
    "connect_anyway": connect_anyway,
    "connect_duplicated": connect_duplicated,
    "connect_watched": connect_watched,
    "connect_beyond_limit": connect_beyond_limit,
    "bind_udp": bind_udp,
    "connect_udp": connect_udp,
    "listen_unix": listen_unix,
    "connect_unix": connect_unix,
}


def answer(request: dict[str, Any]) -> None:
    action = ACTIONS[request.pop("do")]
    try:
        made = action(**request)
    except OSError as error:
        # a time limit of Python's own has no number
        asker.send(b"%d" % (error.errno or 110))
        return
    rights = array.array("i", [made.fileno()])
    asker.sendmsg([b"made"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    made.close()


while True:
    message = asker.recv(65536)
    if not message:
        os._exit(0)
    answer(marshal.loads(message))
