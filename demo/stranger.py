#!/usr/bin/env python3
"""What the account that runs this gets from TCP ports: one line of JSON, a list in their order.

    stranger.py PATH HOST:PORT…

Each is `{"connected": false, "why": "Connection refused"}`, or true with the HTTP status (null
when the answer is not HTTP) and the answer's text. All are asked at the same time. An empty PATH
is for servers that do not speak HTTP: connect, and ask nothing.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SECONDS = 5.0  # for each step; a server that does not speak HTTP may leave us waiting
AT_MOST = 65536


def ask(address: str, path: str) -> dict[str, Any]:
    """Connect, send one request and read the answer."""
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS)
    except OSError as error:
        return {"connected": False, "why": os.strerror(error.errno) if error.errno else str(error)}
    with connection:
        request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n"
        answer = read_answer(connection, request) if path else ""
    status = re.match(r"HTTP/1\.[01] (\d{3})", answer)
    return {
        "connected": True,
        "status": int(status.group(1)) if status else None,
        "body": answer,
    }


def read_answer(connection: socket.socket, request: str) -> str:
    answer = b""
    try:
        connection.sendall(request.encode())
        while len(answer) < AT_MOST:
            data = connection.recv(AT_MOST)
            if not data:
                break
            answer += data
    except OSError:
        pass  # reset, or silence: what has come so far is the answer
    return answer.decode("utf-8", "replace")


def main() -> None:
    """Ask all of the ports on the command line."""
    path, addresses = sys.argv[1], sys.argv[2:]
    with ThreadPoolExecutor(len(addresses) or 1) as pool:
        print(json.dumps(list(pool.map(lambda address: ask(address, path), addresses))))


if __name__ == "__main__":
    main()
