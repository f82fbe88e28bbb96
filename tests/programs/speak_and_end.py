"""Serves one client on the given port, of 127.0.0.1 or of a given address: sends it so many bytes,
each its own number, and ends."""

from __future__ import annotations

import os
import socket
import sys

port, size = map(int, sys.argv[1:3])
address = sys.argv[3] if sys.argv[3:] else "127.0.0.1"
family = socket.AF_INET6 if ":" in address else socket.AF_INET
body = (bytes(range(256)) * (size // 256 + 1))[:size]
listener = socket.create_server((address, port), family=family)
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
