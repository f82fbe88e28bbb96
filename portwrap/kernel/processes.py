"""This process and others: their descriptors, and the namespaces that they are in."""

from __future__ import annotations

import errno
import os

from . import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable


def open_process(pid: int) -> tuple[int, bool]:
    """Return (descriptor, True) for a pidfd, or (directory of /proc, False) before Linux 5.3.

    Either one goes on meaning this very process after its number has been given to another.
    """
    try:
        return libc.pidfd_open(pid), True
    except OSError as error:
        # EPERM: seccomp filters of older container engines answer it for calls they do not know
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), False


def close_all_but(kept: Container[int | None]) -> None:
    """Close every other descriptor that this process has."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                pass  # that of the listing itself


def enter(namespaces: Iterable[int]) -> None:
    """Move this process into the namespaces of these descriptors, the user namespace first, without
    the capabilities there that the kernel gives to whoever enters. Raises OSError."""
    for namespace in namespaces:
        libc.setns(namespace)
    libc.drop_capabilities()
    # Who enters a user namespace is not: its entry in /proc would be root's (proc(5)).
    libc.prctl(libc.PR_SET_DUMPABLE, 1)


def is_threaded() -> bool:
    """Whether this process runs more than one thread: unshare(CLONE_NEWUSER) is EINVAL then."""
    return len(os.listdir("/proc/self/task")) > 1
