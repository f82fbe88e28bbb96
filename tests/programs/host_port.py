"""Has a TCP port of the host, as a session has it or as a server does that runs without one.

One JSON list per line of standard input, one JSON value per line of standard output:

    ["ours", ADDRESS, PORT]   as a session; null, or why it does not get it
    ["bare", ADDRESS, PORT]   as tornado and asyncio bind it; the same
    ["shut"]                  ends the listening by shutdown(2); the sockets stay
    ["listen"]                listens again on them; null, or why not
    ["close"]                 lets go
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from portwrap.diagnostics.errors import PortwrapError
from portwrap.keeper.host_sockets import listen_again
from portwrap.launch import ports

OURS, BARE = "ours", "bare"


class Bare:
    """What ports.HostPort is to us."""

    def __init__(self, address: str, number: int) -> None:
        self.listeners: list[socket.socket] = []
        found = socket.getaddrinfo(address or None, number, type=socket.SOCK_STREAM, flags=1)
        try:
            for family, _, _, _, place in dict.fromkeys(found):
                made = socket.socket(family)
                self.listeners.append(made)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.bind(place)
                made.listen()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for made in self.listeners:
            made.close()


class Player:
    """Does what it is asked for."""

    def __init__(self) -> None:
        self.kind = OURS
        self.port: ports.HostPort | Bare | None = None

    def ours(self, address: str, number: int) -> None:
        self.kind, self.port = OURS, ports.bind(address, number)

    def bare(self, address: str, number: int) -> None:
        self.kind, self.port = BARE, Bare(address, number)

    def shut(self) -> None:
        assert self.port
        for made in self.port.listeners:
            made.shutdown(socket.SHUT_RDWR)

    def listen(self) -> None:
        assert self.port
        for made in self.port.listeners:
            if self.kind == OURS:
                listen_again(made, 16)
            else:
                made.listen(16)

    def close(self) -> None:
        assert self.port
        self.port.close()


player = Player()
for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        getattr(player, name)(*arguments)
        answer = None
    except PortwrapError as error:
        answer = error.message
    except OSError as error:
        answer = os.strerror(error.errno or 0)
    print(json.dumps(answer), flush=True)
