"""This process and others: descriptors that mean them, their files, their namespaces."""

from __future__ import annotations

import errno
import fcntl
import posix as os

import _socket

from . import libc, procfs
from .sockets import MAX_SENT_FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

# the same on every architecture but Alpha
SYS_PIDFD_SEND_SIGNAL, SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 424, 434, 438
PIDFD_THREAD = os.O_EXCL
NS_GET_PARENT = 0xB702  # linux/nsfs.h


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


def take_socket(link: str) -> int | None:
    """A duplicate of this socket (`procfs.link_of`) from another process that has it, or from a
    message that has not been received. None: nobody has it, as far as we may look."""
    for process in procfs.processes():
        if process == os.getpid():
            continue
        for descriptor, other in procfs.descriptors(process):
            try:
                if other == link:
                    return take_descriptor(process, descriptor)
                if other.startswith("socket:") and procfs.files_in_flight(process, descriptor):
                    found = _take_in_flight(process, descriptor, link)
                    if found is not None:
                        return found
            except OSError:
                continue  # it is gone
    return None


def _take_in_flight(process: int, descriptor: int, link: str) -> int | None:
    """The same from the first message that a Unix socket of this process has not received. Raises
    OSError."""
    receiver = _socket.socket(fileno=take_descriptor(process, descriptor))
    flags = _socket.MSG_PEEK | _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
    try:
        _, ancillary, _, _ = receiver.recvmsg(1, _socket.CMSG_SPACE(4 * MAX_SENT_FILES), flags)
    finally:
        receiver.close()
    found = None
    for _, kind, data in ancillary:
        for file in memoryview(data).cast("i") if kind == _socket.SCM_RIGHTS else ():
            if found is None and procfs.link_of(file) == link:
                found = file
            else:
                os.close(file)
    return found


def is_in_user_namespace(process: int, wanted: int) -> bool:
    """Whether a process is in the user namespace of this inode number, or in one below it."""
    try:
        namespace = os.open(f"/proc/{process}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # another user's, or gone
    while os.fstat(namespace).st_ino != wanted:
        try:
            above = fcntl.ioctl(namespace, NS_GET_PARENT)
        except OSError:
            return False  # EPERM: it is not below ours
        finally:
            os.close(namespace)
        namespace = above
    os.close(namespace)
    return True


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
