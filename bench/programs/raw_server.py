"""A server that costs next to nothing: raw_server.py ADDRESS PORT

GET /down/N sends N bytes out of the page cache, POST reads a body and throws it away, GET /echo
sends back whatever comes; any other GET is answered "ok". A thread for each connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

BLOCK = 1 << 20
ROOM = 16 << 20
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def read_head(client: socket.socket) -> tuple[bytes, bytes]:
    head = b""
    while b"\r\n\r\n" not in head:
        more = client.recv(65536)
        if not more:
            return b"", b""
        head += more
    head, _, body = head.partition(b"\r\n\r\n")
    return head, body


def send_bytes(client: socket.socket, count: int) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % count)
    while count:
        count -= os.sendfile(client.fileno(), content, 0, min(count, ROOM))


def swallow(client: socket.socket, count: int) -> None:
    # tcp(7): MSG_TRUNC has the kernel discard the bytes, as if this were another machine
    buffer = bytearray(BLOCK)
    while count > 0:
        read = client.recv_into(buffer, min(count, BLOCK), socket.MSG_TRUNC)
        if not read:
            return
        count -= read
    client.sendall(OK)


def echo(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        data = client.recv(65536)
        if not data:
            return
        client.sendall(data)


def serve(client: socket.socket) -> None:
    with client, contextlib.suppress(ConnectionError):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            head, body = read_head(client)
            if not head:
                return
            method, path = head.split(b" ", 2)[:2]
            if path == b"/echo":
                return echo(client)
            if path.startswith(b"/down/"):
                send_bytes(client, int(path[6:]))
            elif method == b"POST":
                length = next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-l"))
                swallow(client, int(length.split(b":")[1]) - len(body))
            else:
                client.sendall(OK)


content = os.memfd_create("content")
os.ftruncate(content, ROOM)
os.pwrite(content, b"x" * ROOM, 0)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=4096)
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
