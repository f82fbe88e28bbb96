"""The server's own socket: whether another can replace it, and what the other one has to have."""

from __future__ import annotations

import fcntl

import _socket

from ..kernel import procfs
from ..kernel.addresses import BACKLOG
from .options import FOR_LISTENERS, Pristine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kernel.seccomp import Notification

SOL_SOCKET = _socket.SOL_SOCKET
O_ASYNC = 0o20000  # asm-generic/fcntl.h


def why_not(socket: _socket.socket, notification: Notification) -> str:
    """Why this socket cannot be replaced, or nothing. Raises OSError."""
    if not procfs.link(notification.thread, notification.descriptor):
        # Then we could not see either whether it still has the one that we give it.
        return "the server's file descriptors cannot be read"
    if fcntl.fcntl(socket.fileno(), fcntl.F_GETFL) & O_ASYNC:
        return "the server requests a signal for each client"  # F_SETOWN is the replaced file's
    return ""


def copy_settings(source: _socket.socket, target: _socket.socket, pristine: Pristine) -> None:
    """Give the host's socket what the server has set on its own, and the host's defaults where it
    has set nothing; `pristine` has those of the sandbox."""
    flags = fcntl.fcntl(source.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(target.fileno(), fcntl.F_SETFL, flags)
    default = _socket.socket(target.family, target.type, target.proto)
    inherited = Pristine(default, FOR_LISTENERS)
    default.close()
    inherited.copy_changes(pristine.changes(source), target)


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
