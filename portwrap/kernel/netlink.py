"""Netlink sockets, by which the kernel is asked (netlink(7)): messages and their attributes.

Numbers and structures are from linux/netlink.h and linux/rtnetlink.h.
"""

from __future__ import annotations

import os
import struct
import sys

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NETLINK_ROUTE, NETLINK_SOCK_DIAG = 0, 4
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
RTA_DST = 1
RTN_LOCAL = 2

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
BUFFER = 1 << 16
"""Bytes of an answer: the kernel fills no more at a time (netlink(7))."""


class NetlinkSocket:
    """A netlink socket. It belongs to the network namespace in which it was made."""

    def __init__(self, protocol: int) -> None:
        """Raises OSError."""
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        self.socket = _socket.socket(_socket.AF_NETLINK, kind, protocol)

    @classmethod
    def of(cls, socket: _socket.socket) -> NetlinkSocket:
        """The one that this socket is, which another process has made."""
        made = cls.__new__(cls)
        made.socket = socket
        return made

    def close(self) -> None:
        self.socket.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        header = HEADER.pack(HEADER.size + len(body), kind, flags | NLM_F_REQUEST, 1, 0)
        self.socket.send(header + body)

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        """Type and body of each message that comes. Raises OSError, which may be the answer's."""
        while True:
            data = self.socket.recv(BUFFER)
            while len(data) >= HEADER.size:
                length, kind, *_ = HEADER.unpack_from(data)
                body, data = data[HEADER.size : length], data[-(-length // 4) * 4 :]
                if kind == NLMSG_ERROR:
                    number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    if number:
                        raise OSError(number, os.strerror(number))
                yield kind, body

    def request(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Have the kernel do something. Raises OSError."""
        self._send(kind, flags | NLM_F_ACK, body)
        for answer, _ in self._messages():
            if answer == NLMSG_ERROR:
                return

    def ask(self, kind: int, body: bytes) -> bytes:
        """The body of the one message that this is answered with. Raises OSError, which may be the
        answer."""
        self._send(kind, 0, body)
        return next(self._messages())[1]

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All that there is of a kind: the body of each message. Raises OSError."""
        self._send(kind, NLM_F_DUMP, body)
        found = []
        for answer, message in self._messages():
            if answer == NLMSG_DONE:
                break
            found.append(message)
        return found


def family_of(packed: bytes) -> int:
    """The address family of a packed address."""
    return _socket.AF_INET if len(packed) == 4 else _socket.AF_INET6


def attribute(kind: int, data: bytes) -> bytes:
    """struct rtattr, at a multiple of four bytes."""
    length = ATTRIBUTE.size + len(data)
    return ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def attributes(data: bytes) -> Mapping[int, bytes]:
    """The attributes of a message by their types."""
    found = {}
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if length < ATTRIBUTE.size:
            break
        found[kind] = data[ATTRIBUTE.size : length]
        data = data[-(-length // 4) * 4 :]
    return found
