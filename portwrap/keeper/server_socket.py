"""The server's own socket: whether another can replace it, and what the other one has to have."""

from __future__ import annotations

import fcntl

import _socket

from ..kernel import procfs
from ..kernel.sockets import BACKLOG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kernel.seccomp import Notification

SOL_SOCKET, IPPROTO_TCP = _socket.SOL_SOCKET, _socket.IPPROTO_TCP
O_ASYNC = 0o20000  # asm-generic/fcntl.h
SO_BUF_LOCK = 72  # asm-generic/socket.h, Linux 5.14: which buffer sizes were set by hand
SNDBUF_LOCK, RCVBUF_LOCK = 1, 2
COPIED_OPTIONS = (
    (SOL_SOCKET, _socket.SO_KEEPALIVE),
    (SOL_SOCKET, _socket.SO_OOBINLINE),
    (SOL_SOCKET, _socket.SO_LINGER),
    (SOL_SOCKET, _socket.SO_RCVLOWAT),
    (SOL_SOCKET, _socket.SO_RCVTIMEO),
    (SOL_SOCKET, _socket.SO_SNDTIMEO),
    (IPPROTO_TCP, _socket.TCP_NODELAY),
    (IPPROTO_TCP, _socket.TCP_KEEPIDLE),
    (IPPROTO_TCP, _socket.TCP_KEEPINTVL),
    (IPPROTO_TCP, _socket.TCP_KEEPCNT),
    (IPPROTO_TCP, _socket.TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, _socket.TCP_USER_TIMEOUT),
)
"""What a server may have set on its listening socket and accept(2) hands on to connections."""


def why_not(socket: _socket.socket, notification: Notification) -> str:
    """Why this socket cannot be replaced, or nothing. Raises OSError."""
    if not procfs.link(notification.thread, notification.descriptor):
        # Then we could not see either whether it still has the one that we give it.
        return "the server does not let its descriptors be seen"
    # Both hold the socket itself, and would never see a client of the one that replaces it.
    if procfs.is_registered(notification.thread, notification.descriptor, socket.fileno()):
        return "the server had its socket in an epoll or an io_uring before it called listen"
    if fcntl.fcntl(socket.fileno(), fcntl.F_GETFL) & O_ASYNC:
        return "the server wants a signal for each client"  # F_SETOWN is the replaced file's
    return ""


def copy_settings(source: _socket.socket, target: _socket.socket, fresh: _socket.socket) -> None:
    """Give the host's socket what the server has set on its own, and the host's defaults where it
    has set nothing; `fresh` is a new socket of the sandbox, whose defaults may be others."""
    flags = fcntl.fcntl(source.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(target.fileno(), fcntl.F_SETFL, flags)
    default = _socket.socket(source.family)
    for option in COPIED_OPTIONS:
        try:
            value = source.getsockopt(*option, 16)
            if value == fresh.getsockopt(*option, 16):
                value = default.getsockopt(*option, 16)
            target.setsockopt(*option, value)
        except OSError:
            continue  # not of this kernel
    default.close()
    copy_buffer_sizes(source, target)


def copy_buffer_sizes(source: _socket.socket, target: _socket.socket) -> None:
    """The sizes that were set by hand: the kernel adapts those of others."""
    try:
        locked = source.getsockopt(SOL_SOCKET, SO_BUF_LOCK)
    except OSError:
        return
    for lock, option in ((SNDBUF_LOCK, _socket.SO_SNDBUF), (RCVBUF_LOCK, _socket.SO_RCVBUF)):
        if locked & lock:  # the kernel doubles what it is given (socket(7))
            target.setsockopt(SOL_SOCKET, option, source.getsockopt(SOL_SOCKET, option) // 2)


def bind_beside(socket: _socket.socket, fresh: _socket.socket) -> None:
    """Bind a fresh socket to the address of this one, which then listens: so that nobody else can
    take the address when this one goes. Raises OSError."""
    reuse_port = socket.getsockopt(SOL_SOCKET, _socket.SO_REUSEPORT)
    fresh.setsockopt(SOL_SOCKET, _socket.SO_REUSEPORT, reuse_port)
    if socket.family == _socket.AF_INET6:
        option = _socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY
        fresh.setsockopt(*option, socket.getsockopt(*option))
    # Two may be bound to one address that both have SO_REUSEADDR, but only one can listen.
    reuse = socket.getsockopt(SOL_SOCKET, _socket.SO_REUSEADDR)
    for each in (socket, fresh):
        each.setsockopt(SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    try:
        fresh.bind(socket.getsockname())
        socket.listen(BACKLOG)
    finally:
        socket.setsockopt(SOL_SOCKET, _socket.SO_REUSEADDR, reuse)
