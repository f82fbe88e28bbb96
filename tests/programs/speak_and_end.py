"""Serves one client on the given port: sends it so many bytes, each its own number, and ends."""

from __future__ import annotations

import os
import socket
import sys

port, size = map(int, sys.argv[1:])
body = (bytes(range(256)) * (size // 256 + 1))[:size]
listener = socket.create_server(("127.0.0.1", port))
os.write(1, b"ready\n")
client, _ = listener.accept()
client.recv(1)
client.setblocking(False)
sent = 0
while sent < size:
    try:
        sent += client.send(body[sent:])
    except BlockingIOError:
        break
os.write(1, f"{sent}\n".encode())
os._exit(0)
