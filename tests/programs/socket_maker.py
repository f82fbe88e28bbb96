"""Makes the sockets that it is asked for and hands them out through its standard input, a socket.

A request is one JSON message; the answer is a JSON message with the descriptor, or {"errno": N}.
"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any, Callable

asker = socket.socket(fileno=0)


def name(text: str) -> str:
    """'@name' for the abstract namespace."""
    return "\0" + text[1:] if text.startswith("@") else text


def tcp_or_udp(address: str, kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, kind)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def listen(address: str, port: int, backlog: int = 1024) -> socket.socket:
    made = tcp_or_udp(address, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(backlog)
    return made


def connect(address: str, port: int) -> socket.socket:
    made = tcp_or_udp(address, socket.SOCK_STREAM)
    made.settimeout(5)
    made.connect((address, port))
    return made


def bind_udp(address: str, port: int) -> socket.socket:
    made = tcp_or_udp(address, socket.SOCK_DGRAM)
    made.bind((address, port))
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
    "bind_udp": bind_udp,
    "listen_unix": listen_unix,
    "connect_unix": connect_unix,
}


def answer(request: dict[str, Any]) -> None:
    action = ACTIONS[request.pop("do")]
    try:
        made = action(**request)
    except OSError as error:
        # a time limit of Python's own has no number
        asker.send(json.dumps({"errno": error.errno or 110}).encode())
        return
    rights = array.array("i", [made.fileno()])
    asker.sendmsg([json.dumps({}).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    made.close()


while True:
    message = asker.recv(65536)
    if not message:
        os._exit(0)
    answer(json.loads(message))
