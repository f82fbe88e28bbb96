"""Seccomp user notification: system calls of one process wait for the response of another.

Numbers and structures are from linux/seccomp.h; seccomp_unotify(2) has the rules. The filter that
has them wait is another process's (`seccomp_filter.py`).
"""

from __future__ import annotations

import fcntl
import struct

# struct seccomp_notif: id, pid, flags; struct seccomp_data: nr, arch, instruction pointer, args
NOTIF = struct.Struct("=QIIiIQ6Q")
FIELDS = struct.Struct("=QI4xi12x6Q")  # what of it we look at
NO_NOTIF = bytes(NOTIF.size)  # what is received into must be all zeros
NOTIF_ID = struct.Struct("=Q")
NOTIF_RESP = struct.Struct("=QqiI")  # id, val, error, flags
NOTIF_ADDFD = struct.Struct("=QIIII")  # id, flags, srcfd, newfd, newfd_flags
USER_NOTIF_FLAG_CONTINUE = 1
USER_NOTIF_FD_SYNC_WAKE_UP = 1
ADDFD_FLAG_SETFD = 1


def _ioc(direction: int, number: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h with the type '!' of seccomp; 1 is write, 3 read and write."""
    return direction << 30 | size << 16 | ord("!") << 8 | number


NOTIF_RECV = _ioc(3, 0, NOTIF.size)
NOTIF_SEND = _ioc(3, 1, NOTIF_RESP.size)
NOTIF_ID_VALID = _ioc(1, 2, 8)
NOTIF_ADDFD_IOCTL = _ioc(1, 3, NOTIF_ADDFD.size)
NOTIF_SET_FLAGS = _ioc(1, 4, 8)


def wake_up_in_place(listener: int) -> None:
    """Have the kernel run caller and receiver on one processor: they take turns (Linux 6.6)."""
    try:
        fcntl.ioctl(listener, NOTIF_SET_FLAGS, USER_NOTIF_FD_SYNC_WAKE_UP)
    except OSError:
        pass  # before that


class Notification:
    """A system call that waits for our response."""

    __slots__ = ("arguments", "call", "descriptor", "id", "listener", "thread")

    def __init__(self, listener: int, data: bytes) -> None:
        self.listener = listener
        self.id, self.thread, self.call, *self.arguments = FIELDS.unpack(data)
        # The first argument of calls such as bind, connect and listen.
        self.descriptor = self.arguments[0] & 0xFFFFFFFF


def receive(listener: int) -> Notification:
    """The next notification. Raises OSError: ENOENT where the caller has gone."""
    return Notification(listener, fcntl.ioctl(listener, NOTIF_RECV, NO_NOTIF))


def respond(notification: Notification, result: int | None) -> None:
    """Have the call return this result without running, where a negative one is an errno; None lets
    it run. Raises OSError: ENOENT where the caller has gone, or has been interrupted."""
    if result is None:
        fields = (0, 0, USER_NOTIF_FLAG_CONTINUE)
    else:
        fields = (result, 0, 0) if result > 0 else (0, result, 0)
    fcntl.ioctl(notification.listener, NOTIF_SEND, NOTIF_RESP.pack(notification.id, *fields))


def id_valid(notification: Notification) -> None:
    """Raise OSError (ENOENT) unless the caller still waits: its number may be another's by now."""
    fcntl.ioctl(notification.listener, NOTIF_ID_VALID, NOTIF_ID.pack(notification.id))


def addfd(notification: Notification, source: int, flags: int) -> None:
    """Put a duplicate of our `source` in the place of the caller's descriptor. Raises OSError."""
    request = NOTIF_ADDFD.pack(
        notification.id, ADDFD_FLAG_SETFD, source, notification.descriptor, flags
    )
    fcntl.ioctl(notification.listener, NOTIF_ADDFD_IOCTL, request)
