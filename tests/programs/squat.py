"""Tries every way to take a TCP port: its number and addresses as arguments; prints what worked.

Each way is tried alone. A way works if bind(2) lets it have the port, whether it can listen or not.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys

port, *addresses = sys.argv[1:]
worked = []
for address, reuse_address, reuse_port, only_ipv6 in itertools.product(
    addresses, (0, 1), (0, 1), (0, 1)
):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET and only_ipv6:
        continue
    with socket.socket(family) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        try:
            made.bind((address, int(port)))
        except OSError:
            continue
        worked.append([address, reuse_address, reuse_port, only_ipv6])
print(json.dumps(worked))
