"""What /proc shows of the sockets of a network namespace (proc(5))."""

from __future__ import annotations

import sys

from .addresses import BoundSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .procfs import Process

TCP_LISTEN, UDP_UNCONNECTED = b"0A", b"07"
"""States in a table of sockets."""


def bound_socket(row: Sequence[bytes]) -> BoundSocket:
    """That of a row of a table of sockets (proc(5))."""
    digits, _, port = row[1].partition(b":")
    # The address is in words of four bytes in this machine's order.
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    address = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return BoundSocket(address, int(port, 16), int(row[7]), int(row[9]))


def waiting_sockets(process: Process, table: str) -> list[BoundSocket]:
    """The sockets of its network namespace that wait for anybody: TCP ones that listen, or UDP ones
    that are not connected. `table` is tcp, tcp6, udp or udp6; none where there is no such family.
    """
    state = TCP_LISTEN if table.startswith("tcp") else UDP_UNCONNECTED
    try:
        with open(f"/proc/{process}/net/{table}", "rb") as file:
            rows = [line.split() for line in file][1:]
    except OSError:
        return []
    return [bound_socket(row) for row in rows if row[3] == state]


def tcp_listeners(process: Process) -> list[BoundSocket]:
    """The TCP sockets that listen in its network namespace."""
    return waiting_sockets(process, "tcp") + waiting_sockets(process, "tcp6")
