"""Looks up each name that it reads, by the C library, and prints the addresses found."""

import json
import socket
import sys

print("ready", flush=True)
for line in sys.stdin:
    try:
        entries = socket.getaddrinfo(line.strip(), None, type=socket.SOCK_STREAM)
        answer: object = sorted({str(entry[4][0]) for entry in entries})
    except socket.gaierror as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
