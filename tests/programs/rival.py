"""A neighbour who wants a TCP port of the host. As host_port.py, one JSON list per line:

["bind", ADDRESS, PORT, REUSEADDR, REUSEPORT, V6ONLY]   null, or why not
["listen"]                                              the same
["close"]
["loop", PORT, ADDRESS, ...]   tries to bind and listen there, over and over, until he does, or
["stop"]                       how often he tried, and the address that he has got, or null
"""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import sys
from typing import Any

made = socket.socket()


def bind(address: str, port: int, reuse_address: int, reuse_port: int, only_ipv6: int) -> None:
    global made
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
    try:
        made.bind((address, port))
    except OSError:
        made.close()
        raise


def listen() -> None:
    made.listen()


def close() -> None:
    made.close()


def stop() -> None:
    pass


def loop(port: int, *addresses: str) -> list[Any]:
    print(json.dumps("trying"), flush=True)
    ways = itertools.cycle(itertools.product(addresses, (0, 1)))
    for tried, (address, reuse_port) in enumerate(ways):
        try:
            bind(address, port, 1, reuse_port, 1)
            made.listen()
            return [tried, address]
        except OSError:
            pass
        finally:
            made.close()  # it was his: whoever has come meanwhile is reset
        if tried % 16 == 0 and select.select([sys.stdin], [], [], 0)[0]:
            return [tried, None]
    raise AssertionError


for line in iter(sys.stdin.readline, ""):
    name, *arguments = json.loads(line)
    answer: Any
    try:
        answer = globals()[name](*arguments)
    except OSError as error:
        answer = os.strerror(error.errno or 0)
    print(json.dumps(answer), flush=True)
