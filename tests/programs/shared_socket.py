"""Connects by a socket that another process has as well, and prints the page: shared_socket.py
ADDRESS PORT"""

from __future__ import annotations

import os
import socket
import sys

made = socket.socket()
ends, told = os.pipe()
child = os.fork()
if child == 0:
    os.close(told)
    os.read(ends, 1)
    os._exit(0)
made.connect((sys.argv[1], int(sys.argv[2])))
made.sendall(b"GET /page HTTP/1.0\r\n\r\n")
print(b"".join(iter(lambda: made.recv(999), b"")).decode())
os.close(told)
os.waitpid(child, 0)
