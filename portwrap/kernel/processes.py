"""This process and others: descriptors that mean them, and what is done with these."""

from __future__ import annotations

import errno
import os

from . import libc, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

# the same on every architecture but Alpha
SYS_PIDFD_SEND_SIGNAL, SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 424, 434, 438
PIDFD_THREAD = os.O_EXCL


def pidfd_open(pid: int, flags: int = 0) -> int:
    """pidfd_open(2): a descriptor that means this process. Raises OSError."""
    return libc.system_call(SYS_PIDFD_OPEN, pid, flags)


def open_process(pid: int, may_be_pidfd: bool = True) -> tuple[int, bool]:
    """Return (descriptor, True) for a pidfd, or (directory of /proc, False) before Linux 5.3.

    Either one goes on meaning this very process after its number has been given to another.
    """
    try:
        if may_be_pidfd:
            return pidfd_open(pid), True
    except OSError as error:
        # EPERM: seccomp filters of older container engines answer it for calls they do not know
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise
    return os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), False


def send_signal(process: int, number: int) -> bool:
    """kill(2). False: it is gone, or a security module forbids it (EACCES). AppArmor does where the
    other one's profile takes signals of unconfined processes only, as pasta's."""
    try:
        os.kill(process, number)
    except OSError:
        return False
    return True


def take_descriptor(thread: int, descriptor: int) -> int:
    """A duplicate of a descriptor of another process (pidfd_getfd(2)). Raises OSError."""
    try:
        process = pidfd_open(thread, PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.9
            raise
        process = pidfd_open(procfs.leader_of(thread))
    try:
        return libc.system_call(SYS_PIDFD_GETFD, process, descriptor, 0)
    finally:
        os.close(process)


def close_all_but(kept: Container[int | None]) -> None:
    """Close every other descriptor that this process has."""
    for descriptor in procfs.own_descriptors():
        if descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                pass  # that of the listing itself


def enter(namespaces: Iterable[int]) -> None:
    """Move this process into the namespaces of these descriptors, the user namespace first, without
    the capabilities there that the kernel gives to whoever enters. Raises OSError.

    Nor can the programs in there trace it or take its descriptors, some of which are the host's:
    the kernel forbids that by itself only from one user namespace to one above it.
    """
    libc.prctl(libc.PR_SET_DUMPABLE, 0)  # first: at no moment is it in there as one of theirs
    for namespace in namespaces:
        libc.setns(namespace)
    libc.drop_capabilities()


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one, and return it. Never unlimited: fs.nr_open is the
    most."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft  # the hard one is more than fs.nr_open allows by now
    return hard
