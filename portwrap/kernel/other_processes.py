"""What other processes have: their sockets, their user namespaces."""

from __future__ import annotations

import fcntl
import os

import _socket

from . import procfs
from .addresses import MAX_SENT_FILES
from .processes import take_descriptor

NS_GET_PARENT = 0xB702  # linux/nsfs.h


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
