"""Addresses as bytes, and numbers of sockets: what both processes know of them."""

from __future__ import annotations

import _socket

MAX_SENT_FILES = 253
"""File descriptors that one message carries at most (SCM_MAX_FD, unix(7))."""
BACKLOG = 4096
"""Connections that the kernel keeps for a listening socket (lowered to net.core.somaxconn)."""
MAPPED = 10 * b"\0" + b"\xff\xff"
"""First bytes of an IPv4 address that is written as an IPv6 one (RFC 4291, 2.5.5.2)."""
LOOPBACK_IPV6 = bytes(15) + b"\1"
IPPROTO_MPTCP = 262  # linux/in.h
STAYS_INSIDE = 0x9C81
"""A mark (socket(7), SO_MARK) for sockets of the sandbox that no rule may lead out of it."""


def pack(address: str) -> bytes:
    """The bytes of an address of either family. Raises OSError."""
    return _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)


def parse_address(text: str) -> bytes:
    """The bytes of a text that may be an address of either family; nothing if it is none."""
    try:
        return pack(text)
    except (OSError, ValueError):  # ValueError: bytes that are no text
        return b""


def unmapped(address: bytes) -> bytes:
    """The four bytes of an IPv4 address that is written as an IPv6 one; any other as it is."""
    return address[len(MAPPED) :] if address.startswith(MAPPED) else address


def is_loopback(address: bytes) -> bool:
    """Whether only this host can connect to the address of these bytes."""
    return address == LOOPBACK_IPV6 or (len(address) == 4 and address[0] == 127)


def serves(bound: bytes, address: bytes) -> bool:
    """Whether a socket that is bound to the first address may have clients at the second, which is
    `unmapped`: [::] serves both families, unless it was told otherwise."""
    bound = unmapped(bound)
    return bound == address or (not any(bound) and len(bound) >= len(address))


class BoundSocket:
    """A socket and where it is bound."""

    __slots__ = ("address", "inode", "port", "uid")

    def __init__(self, address: bytes, port: int, uid: int, inode: int) -> None:
        self.address = address
        self.port = port
        self.uid = uid
        self.inode = inode
