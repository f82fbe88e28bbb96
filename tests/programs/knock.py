"""Asks at many doors at once: a JSON list of [kind, address, port] as argument; answers as JSON.

kind is tcp, udp or unix (abstract, the address is its name). Answers: "open", or the name of the
error; "silent" after the limit. For udp "open" means that nobody refused.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time

LIMIT = 0.5
"""Seconds to wait for the refusal of a datagram, which arrives at once on one machine."""


def begin(kind: str, address: str, port: int) -> socket.socket:
    if kind == "unix":
        door = socket.socket(socket.AF_UNIX)
        door.connect("\0" + address)
        return door
    stream = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    family, _, _, _, where = socket.getaddrinfo(address, port, type=stream)[0]
    door = socket.socket(family, stream)
    door.setblocking(False)
    try:
        door.connect(where)
    except BlockingIOError:
        pass
    if kind == "udp":
        door.send(b"knock")
    return door


def outcome(door: socket.socket) -> str:
    error = door.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode[error] if error else "open"


doors = json.loads(sys.argv[1])
answers: dict[int, str] = {}
sockets: dict[int, socket.socket] = {}
selector = selectors.DefaultSelector()
for number, (kind, address, port) in enumerate(doors):
    try:
        door = begin(kind, address, port)
    except OSError as error:
        answers[number] = errno.errorcode.get(error.errno or 0, str(error))
        continue
    if kind == "unix":
        answers[number] = "open"
    else:
        event = selectors.EVENT_WRITE if kind == "tcp" else selectors.EVENT_READ
        selector.register(door, event, number)
        sockets[door.fileno()] = door

until = time.monotonic() + LIMIT
last = False
while selector.get_map() and not last:
    last = time.monotonic() > until
    for key, _ in selector.select(0 if last else until - time.monotonic()):
        answers[key.data] = outcome(sockets[key.fd])
        selector.unregister(key.fileobj)
for key in selector.get_map().values():
    answers[key.data] = "open" if doors[key.data][0] == "udp" else "silent"
print(json.dumps([answers[number] for number in range(len(doors))]))
