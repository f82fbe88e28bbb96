"""The sockets of this network namespace that wait for anybody, from the kernel (sock_diag(7)).

/proc/net/tcp has them too, but to write it the kernel looks through its whole table of connections:
4 ms for each family. Structures are from linux/inet_diag.h.
"""

from __future__ import annotations

import struct

import _socket

from .addresses import BoundSocket
from .netlink import NETLINK_SOCK_DIAG, NetlinkSocket

SOCK_DIAG_BY_FAMILY = 20

# struct inet_diag_req_v2: family, protocol, extensions, pad, states, source port, in network order;
# no more of a socket of its own
REQUEST = struct.Struct("=BBBBI2s46x")
# struct inet_diag_msg: (family to retransmissions), source port, destination port, source,
# (destination to write queue), user, inode
SOCKET = struct.Struct("!4xHH16s")
OWNER = struct.Struct("=64xII")
LISTEN, UNCONNECTED = 1 << 10, 1 << 7  # of the states of net/tcp_states.h

TABLES = {
    "tcp": (_socket.AF_INET, _socket.IPPROTO_TCP, LISTEN),
    "tcp6": (_socket.AF_INET6, _socket.IPPROTO_TCP, LISTEN),
    "udp": (_socket.AF_INET, _socket.IPPROTO_UDP, UNCONNECTED),
    "udp6": (_socket.AF_INET6, _socket.IPPROTO_UDP, UNCONNECTED),
}


def waiting_sockets(table: str) -> list[BoundSocket]:
    """What `socket_tables.waiting_sockets` finds of this process's network namespace; from there
    where the kernel does not have this."""
    try:
        netlink = NetlinkSocket(NETLINK_SOCK_DIAG)
        try:
            return _dump(netlink, *TABLES[table])
        finally:
            netlink.close()
    except OSError:
        from . import socket_tables  # hardly any node needs it

        return socket_tables.waiting_sockets("self", table)


def tcp_listeners(netlink: NetlinkSocket, port: int) -> list[BoundSocket]:
    """The TCP sockets that listen on this port in the network namespace of this socket, which is of
    NETLINK_SOCK_DIAG. Raises OSError."""
    return _dump(netlink, *TABLES["tcp"], port) + _dump(netlink, *TABLES["tcp6"], port)


def _dump(
    netlink: NetlinkSocket, family: int, protocol: int, states: int, port: int = 0
) -> list[BoundSocket]:
    request = REQUEST.pack(family, protocol, 0, 0, states, port.to_bytes(2, "big"))
    rows = netlink.dump(SOCK_DIAG_BY_FAMILY, request)
    found = []
    for row in rows:
        port, _, address = SOCKET.unpack_from(row)
        uid, inode = OWNER.unpack_from(row)
        length = 4 if family == _socket.AF_INET else 16
        found.append(BoundSocket(address[:length], port, uid, inode))
    return found
