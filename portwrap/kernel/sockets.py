"""What the keeper does with sockets."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat

import _socket

from . import libc
from .addresses import is_loopback, pack, unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# ENOSPC: the account's epolls have all that max_user_watches allows (epoll(7)).
OUT_OF_RESOURCES = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ENOSPC,
)
"""Errors that mean: try again when something else has been closed or freed."""
RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds
SIOCGSKNS = 0x894C  # linux/sockios.h
TCP_CLOSE = 7  # enum of linux/tcp.h: it neither listens nor is connected, or about to be
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
AF_UNSPEC = bytes(16)
"""A struct sockaddr of no address family."""


def is_bound_to_loopback(socket: _socket.socket) -> bool:
    """Whether only its own host can connect to a socket of the Internet's families. Raises
    OSError."""
    return is_loopback(unmapped(pack(socket.getsockname()[0])))


def bind_to_reserved(socket: _socket.socket, name: Any) -> None:
    """Bind a socket of the host's where a port is ours, beside the socket that reserves it
    (`launch/ports.py`) and connections in TIME_WAIT, as it may be later. Raises OSError."""
    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
    socket.bind(name)
    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 0)


def as_socket(number: int) -> _socket.socket:
    """Of a file descriptor of ours, which is closed if it is of none; its type is not asked for.
    Raises OSError."""
    try:
        return _socket.socket(type=_socket.SOCK_STREAM, fileno=number)
    except OSError:
        os.close(number)
        raise


def accept(listener: _socket.socket) -> tuple[_socket.socket, Any]:
    """accept(2), as `socket.accept` does it. Raises OSError."""
    descriptor, address = listener._accept()  # type: ignore[attr-defined]
    return _socket.socket(listener.family, listener.type, 0, descriptor), address


def reset(socket: _socket.socket) -> None:
    """Close a connection so that its other end sees a reset (socket(7), SO_LINGER)."""
    try:
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, RESET_AT_CLOSE)
    except OSError:
        pass
    socket.close()


def listens(socket: _socket.socket) -> bool:
    return bool(socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))


def disconnect(socket: _socket.socket) -> None:
    """Make a TCP socket as new again: it keeps its options, and a port that it was bound to
    (connect(2), AF_UNSPEC). Raises OSError."""
    libc.call("connect", socket.fileno(), AF_UNSPEC, len(AF_UNSPEC))


def network_namespace_of(socket: int) -> int:
    """The inode number of a socket's network namespace. Raises OSError."""
    namespace = fcntl.ioctl(socket, SIOCGSKNS)
    try:
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)


def state_of(socket: _socket.socket) -> int:
    """The state of a TCP or MPTCP socket (tcp(7), TCP_INFO). Raises OSError."""
    return socket.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_INFO, 1)[0]


def mark(socket: _socket.socket) -> None:
    """Make it known as one of ours, to whoever looks by `is_marked`. Raises OSError.

    The mode of a socket has no meaning once it is made, and belongs to all its descriptors.
    """
    os.fchmod(socket.fileno(), 0o777 | stat.S_ISVTX)


def is_marked(number: int) -> bool:
    """Whether a file descriptor of ours is of a socket that has been marked, by us or by its owner.
    Raises OSError."""
    return bool(os.fstat(number).st_mode & stat.S_ISVTX)


class OpenFiles:
    """Files, without holding them open: an epoll forgets one when its last reference has gone,
    which may be one of a message that nobody has received (epoll(7))."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.epoll = select.epoll()
        # what it has (proc_pid_fdinfo(5)): to open that takes longer than to read it
        path = f"/proc/self/fdinfo/{self.epoll.fileno()}"
        self.entries = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def add(self, descriptor: int) -> None:
        """One more. Raises OSError."""
        self.epoll.register(descriptor, select.EPOLLOUT)

    def any_is_open(self) -> bool:
        """Whether anybody still has one of them."""
        return b"\ntfd:" in os.pread(self.entries, 4096, 0)

    def close(self) -> None:
        self.epoll.close()
        os.close(self.entries)


class OpenFile(OpenFiles):
    """One of them. To be another one, when this one is not open any more, takes `add`."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError."""
        super().__init__()
        self.add(descriptor)

    def listens(self) -> bool:
        """Whether anybody still has this listening socket, and it was not shut down."""
        return not self.epoll.poll(0) and self.any_is_open()

    def link(self) -> str:
        """How /proc/PID/fd names the socket that it is; nothing if that is gone."""
        inode = os.pread(self.entries, 4096, 0).partition(b" ino:")[2].partition(b" ")[0]
        return f"socket:[{int(inode, 16)}]" if inode else ""
