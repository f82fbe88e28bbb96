"""What a program has set on a socket of its own, for the socket that replaces it.

Each value is compared with that of a socket of the sandbox that nobody has touched, and only what
differs is set: what has not been set by the program is as the host's own defaults (sysctls) are,
not as those of the sandbox.
"""

from __future__ import annotations

import struct

import _socket

from ..kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Union

    Option = tuple[int, int, int]
    """Level, number, and what its value is"""
    Value = Union[int, bytes]

IP, IPV6 = _socket.IPPROTO_IP, _socket.IPPROTO_IPV6
SOCKET, TCP = _socket.SOL_SOCKET, _socket.IPPROTO_TCP
NUMBER, BYTES, HALF = 0, 1, 2
"""What a value is: an int, a structure or a name, or an int that the kernel doubles (socket(7))."""
SIZE = 16
"""Bytes of struct timeval, of an interface's name, and of a congestion control's."""
SO_ATTACH_FILTER = 26
"""asm-generic/socket.h. Read, it is how long the socket's filter is (SO_GET_FILTER)."""
SEND_BUFFER, RECEIVE_BUFFER = (SOCKET, 7, HALF), (SOCKET, 8, HALF)
BUFFER_LOCKS = (SOCKET, 72, NUMBER)
"""SO_BUF_LOCK (Linux 5.14): which buffers have the size that was set. The kernel adapts the others
to a connection, and leaves them so."""
BUFFERS = {SEND_BUFFER: 1, RECEIVE_BUFFER: 2}
"""Each with its bit there, which is set with its size."""
MAX_SEGMENT, MAX_TCP_WINDOW = (TCP, 2, NUMBER), 32767
"""A connection leaves its size of segments, too, which may be larger than can be set."""
get_option = libc.prepare("getsockopt")
LENGTH = struct.Struct("@I")
length, _address = libc.make_buffer(LENGTH.size)
no_room, length_place = libc.Number(0), libc.Number(_address)

# Numbers are from linux/in.h, linux/in6.h, asm-generic/socket.h and linux/tcp.h. The order counts:
# IP_TOS sets SO_PRIORITY, and the size of a buffer sets its bit of SO_BUF_LOCK. Without what takes
# capabilities that nobody has in the sandbox, such as SO_MARK: to read one takes as long as any.
FOR_LISTENERS = (
    (IP, 1, NUMBER),  # IP_TOS
    (IP, 2, NUMBER),  # IP_TTL
    (IP, 8, NUMBER),  # IP_PKTINFO
    (IP, 10, NUMBER),  # IP_MTU_DISCOVER
    (IP, 11, NUMBER),  # IP_RECVERR
    (IP, 12, NUMBER),  # IP_RECVTTL
    (IP, 13, NUMBER),  # IP_RECVTOS
    (IP, 21, NUMBER),  # IP_MINTTL
    (IPV6, 16, NUMBER),  # IPV6_UNICAST_HOPS
    (IPV6, 23, NUMBER),  # IPV6_MTU_DISCOVER
    (IPV6, 25, NUMBER),  # IPV6_RECVERR
    (IPV6, 33, NUMBER),  # IPV6_FLOWINFO_SEND
    (IPV6, 62, NUMBER),  # IPV6_DONTFRAG
    (IPV6, 67, NUMBER),  # IPV6_TCLASS
    (IPV6, 70, NUMBER),  # IPV6_AUTOFLOWLABEL
    (IPV6, 72, NUMBER),  # IPV6_ADDR_PREFERENCES
    (IPV6, 73, NUMBER),  # IPV6_MINHOPCOUNT
    (SOCKET, 5, NUMBER),  # SO_DONTROUTE
    SEND_BUFFER,  # SO_SNDBUF
    RECEIVE_BUFFER,  # SO_RCVBUF
    (SOCKET, 9, NUMBER),  # SO_KEEPALIVE
    (SOCKET, 10, NUMBER),  # SO_OOBINLINE
    (SOCKET, 12, NUMBER),  # SO_PRIORITY
    (SOCKET, 13, BYTES),  # SO_LINGER
    (SOCKET, 18, NUMBER),  # SO_RCVLOWAT
    (SOCKET, 20, BYTES),  # SO_RCVTIMEO
    (SOCKET, 21, BYTES),  # SO_SNDTIMEO
    (SOCKET, 29, NUMBER),  # SO_TIMESTAMP
    (SOCKET, 35, NUMBER),  # SO_TIMESTAMPNS
    (SOCKET, 37, BYTES),  # SO_TIMESTAMPING
    (SOCKET, 47, NUMBER),  # SO_MAX_PACING_RATE
    (SOCKET, 60, NUMBER),  # SO_ZEROCOPY
    (SOCKET, 63, NUMBER),  # SO_TIMESTAMP_NEW
    (SOCKET, 64, NUMBER),  # SO_TIMESTAMPNS_NEW
    BUFFER_LOCKS,
    (SOCKET, 74, NUMBER),  # SO_TXREHASH
    (TCP, 1, NUMBER),  # TCP_NODELAY
    MAX_SEGMENT,  # TCP_MAXSEG
    (TCP, 3, NUMBER),  # TCP_CORK
    (TCP, 4, NUMBER),  # TCP_KEEPIDLE
    (TCP, 5, NUMBER),  # TCP_KEEPINTVL
    (TCP, 6, NUMBER),  # TCP_KEEPCNT
    (TCP, 8, NUMBER),  # TCP_LINGER2
    (TCP, 9, NUMBER),  # TCP_DEFER_ACCEPT
    (TCP, 10, NUMBER),  # TCP_WINDOW_CLAMP
    (TCP, 13, BYTES),  # TCP_CONGESTION
    (TCP, 16, NUMBER),  # TCP_THIN_LINEAR_TIMEOUTS
    (TCP, 18, NUMBER),  # TCP_USER_TIMEOUT
    (TCP, 25, NUMBER),  # TCP_NOTSENT_LOWAT
    (TCP, 27, NUMBER),  # TCP_SAVE_SYN
    (TCP, 36, NUMBER),  # TCP_INQ
    (TCP, 37, NUMBER),  # TCP_TX_DELAY
)
"""What a client sets, and what a connection has from its listening socket. Without what the host
port's socket needs to be as it is: reuse, address family and device."""
FOR_CLIENTS = (
    (IP, 15, NUMBER),  # IP_FREEBIND
    (IP, 24, NUMBER),  # IP_BIND_ADDRESS_NO_PORT
    (IP, 51, NUMBER),  # IP_LOCAL_PORT_RANGE
    (IPV6, 26, NUMBER),  # IPV6_V6ONLY
    (SOCKET, 2, NUMBER),  # SO_REUSEADDR
    (SOCKET, 15, NUMBER),  # SO_REUSEPORT
    (SOCKET, 25, BYTES),  # SO_BINDTODEVICE
    *FOR_LISTENERS,
    (TCP, 7, NUMBER),  # TCP_SYNCNT
    (TCP, 12, NUMBER),  # TCP_QUICKACK
    (TCP, 30, NUMBER),  # TCP_FASTOPEN_CONNECT
    (TCP, 34, NUMBER),  # TCP_FASTOPEN_NO_COOKIE
)


class Pristine:
    """The values of a socket that nobody has touched, of those options that it has."""

    def __init__(self, socket: _socket.socket, options: Sequence[Option] = FOR_CLIENTS) -> None:
        self.values: dict[Option, Value] = {}
        for option in options:
            try:
                self.values[option] = read(socket, option)
            except OSError:
                continue  # not of this kernel, protocol or address family
        has_locks = BUFFER_LOCKS in self.values
        self.asked = [each for each in self.values if not (has_locks and each in BUFFERS)]
        self.requests: list[Any] = [
            (level, number, SIZE) if kind == BYTES else (level, number)
            for level, number, kind in self.asked
        ]
        self.untouched = [self.values[each] for each in self.asked]

    def changes(self, socket: _socket.socket) -> dict[Option, Value]:
        """What has been set on another socket of this kind. Raises OSError."""
        getsockopt = socket.getsockopt  # of all that a connection costs, these calls are a quarter
        values = [getsockopt(*request) for request in self.requests]
        if values == self.untouched:
            return {}
        rows = zip(self.asked, self.untouched, values)
        changes: dict[Option, Value] = {
            option: value for option, pristine, value in rows if value != pristine
        }
        size = changes.get(MAX_SEGMENT, 0)
        if isinstance(size, int) and size > MAX_TCP_WINDOW:
            del changes[MAX_SEGMENT]
        locks = changes.get(BUFFER_LOCKS, 0)
        for option, bit in BUFFERS.items():
            if isinstance(locks, int) and locks & bit:
                changes[option] = read(socket, option)
        return changes

    def copy_changes(self, changes: Mapping[Option, Value], target: _socket.socket) -> None:
        """Set what has been changed elsewhere on a socket that was as this one, and undo there what
        has been set before; as far as that is possible."""
        for option, pristine in self.values.items():
            try:
                value = changes.get(option, pristine)
                if read(target, option) != value:
                    write(target, option, value)
            except OSError:
                continue


def read(socket: _socket.socket, option: Option) -> Value:
    """The value of an option. Raises OSError."""
    level, number, kind = option
    if kind == BYTES:
        return socket.getsockopt(level, number, SIZE)
    return socket.getsockopt(level, number)


def write(socket: _socket.socket, option: Option, value: Value) -> None:
    """Set an option as it was read. Raises OSError."""
    level, number, kind = option
    if kind == HALF:
        assert isinstance(value, int)
        value //= 2
    socket.setsockopt(level, number, value)


def has_filter(socket: _socket.socket) -> bool:
    """Whether a socket filter is attached: it cannot be read.

    We ask for its length, with no room for it: the kernel takes the size of the room for a number
    of instructions, and would write eight bytes for each.
    """
    LENGTH.pack_into(length, 0, 0)
    result = get_option(socket.fileno(), SOCKET, SO_ATTACH_FILTER, no_room, length_place)
    return result != 0 or any(length.raw)  # EACCES: it is made of eBPF
