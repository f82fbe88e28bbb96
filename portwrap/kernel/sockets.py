"""What both processes know of sockets."""

from __future__ import annotations

import errno

BACKLOG = 4096
"""Connections that the kernel keeps for a listening socket (lowered to net.core.somaxconn)."""
MAPPED = 10 * b"\0" + b"\xff\xff"
"""First bytes of an IPv4 address that is written as an IPv6 one (RFC 4291, 2.5.5.2)."""
# ENOSPC: the account's epolls have all that max_user_watches allows (epoll(7)).
OUT_OF_RESOURCES = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ENOSPC,
)
"""Errors that mean: try again when something else has been closed or freed."""
