"""Asks at many endpoints at once: a JSON list of [kind, address, port]; answers as JSON.

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
        client = socket.socket(socket.AF_UNIX)
        client.connect("\0" + address)
        return client
    stream = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    family, _, _, _, where = socket.getaddrinfo(address, port, type=stream)[0]
    client = socket.socket(family, stream)
    client.setblocking(False)
    try:
        client.connect(where)
    except BlockingIOError:
        pass
    if kind == "udp":
        client.send(b"knock")
    return client


def outcome(client: socket.socket) -> str:
    error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode[error] if error else "open"


endpoints = json.loads(sys.argv[1])
answers: dict[int, str] = {}
sockets: dict[int, socket.socket] = {}
selector = selectors.DefaultSelector()
for number, (kind, address, port) in enumerate(endpoints):
    try:
        client = begin(kind, address, port)
    except OSError as error:
        answers[number] = errno.errorcode.get(error.errno or 0, str(error))
        continue
    if kind == "unix":
        answers[number] = "open"
    else:
        event = selectors.EVENT_WRITE if kind == "tcp" else selectors.EVENT_READ
        selector.register(client, event, number)
        sockets[client.fileno()] = client

until = time.monotonic() + LIMIT
last = False
while selector.get_map() and not last:
    last = time.monotonic() > until
    for key, _ in selector.select(0 if last else until - time.monotonic()):
        answers[key.data] = outcome(sockets[key.fd])
        selector.unregister(key.fileobj)
for key in selector.get_map().values():
    answers[key.data] = "open" if endpoints[key.data][0] == "udp" else "silent"
print(json.dumps([answers[number] for number in range(len(endpoints))]))
