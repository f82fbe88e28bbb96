"""The file descriptors and the memory of other threads, for whoever looks at them often."""

from __future__ import annotations

import errno
import os
import struct

from . import libc, procfs
from .processes import (
    PIDFD_THREAD,
    SYS_PIDFD_GETFD,
    SYS_PIDFD_SEND_SIGNAL,
    pidfd_open,
    take_descriptor,
)

MAX_CALLERS = 64
IOVEC = struct.Struct("@PN")
"""struct iovec: an address and a length."""
TWO_LINES = 64
"""Bytes that the first two lines of a file of /proc/PID/fdinfo have at most."""

system_call = libc.prepare("syscall")
process_vm_readv = libc.prepare("process_vm_readv")


class Caller:
    """A thread of another process."""

    __slots__ = ("leader", "pidfd")

    def __init__(self, pidfd: int, leader: int) -> None:
        self.pidfd = pidfd
        self.leader = leader  # the process that it belongs to; 0 until somebody wants to know


class Callers:
    """The threads whose file descriptors are looked at, each with a pidfd that is opened once.

    A pidfd goes on meaning its thread: where that is gone, whoever has its number now, the kernel
    answers ESRCH.
    """

    def __init__(self) -> None:
        self.known: dict[int, Caller] = {}  # the one that was opened first comes first
        self.has_thread_pidfds = True
        self.flags_of: tuple[Caller | None, int] = None, 0
        self.flags_file = -1

    def take_descriptor(self, thread: int, number: int) -> int:
        """A duplicate of a thread's file descriptor (pidfd_getfd(2)). Raises OSError."""
        caller = self.known.get(thread)
        if caller is not None:
            taken = system_call(SYS_PIDFD_GETFD, caller.pidfd, number, 0)
            if taken >= 0:
                return taken
            if taken != -errno.ESRCH:
                raise OSError(-taken, os.strerror(-taken), "pidfd_getfd")
            self.forget(thread)
        caller = self.add(thread)
        if caller is None:
            return take_descriptor(thread, number)
        return libc.system_call(SYS_PIDFD_GETFD, caller.pidfd, number, 0)

    def add(self, thread: int) -> Caller | None:
        """Open a pidfd of this thread. None: there is no such pidfd (before Linux 6.9, unless it is
        the first thread of its process). Raises OSError."""
        try:
            caller: Caller | None = Caller(pidfd_open(thread), leader=thread)
        except OSError:
            caller = self.add_thread(thread)
        if caller is None:
            return None
        if len(self.known) >= MAX_CALLERS:
            self.forget(next(iter(self.known)))
        self.known[thread] = caller
        return caller

    def add_thread(self, thread: int) -> Caller | None:
        """The same for one that is not the first of its process."""
        if not self.has_thread_pidfds:
            return None
        try:
            return Caller(pidfd_open(thread, PIDFD_THREAD), leader=0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        self.has_thread_pidfds = False
        return None

    def forget(self, thread: int) -> None:
        os.close(self.known.pop(thread).pidfd)

    def read_flags(self, thread: int, number: int) -> int:
        """File status flags and O_CLOEXEC of a thread's file descriptor that has just been taken.
        Raises OSError.

        The file of /proc that has them stays open, which saves most of the time: a thread's next
        socket often has the number of the one before.
        """
        caller = self.known.get(thread)
        if caller is None or self.flags_of != (caller, number):
            file = os.open(f"/proc/{thread}/fdinfo/{number}", os.O_RDONLY | os.O_CLOEXEC)
            if self.flags_file >= 0:
                os.close(self.flags_file)
            self.flags_of, self.flags_file = (caller, number), file
        _position, _, _flags, flags, *_ = os.pread(self.flags_file, TWO_LINES, 0).split(None, 4)
        return int(flags, 8)

    def leader_of(self, thread: int) -> int:
        """The process of a thread that a descriptor has just been taken of. Raises OSError."""
        caller = self.known.get(thread)
        if caller is None:
            return procfs.leader_of(thread)
        if not caller.leader:
            caller.leader = procfs.leader_of(thread)
        return caller.leader

    def find_leader(self, thread: int) -> int:
        """The process of any thread that waits for us. Raises OSError."""
        caller = self.known.get(thread)
        if caller is not None and is_gone(caller.pidfd):
            self.forget(thread)
            caller = None
        if caller is None:
            self.add(thread)
        return self.leader_of(thread)


def is_gone(pidfd: int) -> bool:
    """Whether the process of this pidfd has ended, and has been waited for."""
    return system_call(SYS_PIDFD_SEND_SIGNAL, pidfd, 0, 0, 0) == -errno.ESRCH


class Memory:
    """Reads bytes of other processes' memory."""

    def __init__(self, size: int) -> None:
        """For `size` bytes at most."""
        self.buffer, ours = libc.make_buffer(size)
        self.iovecs, place = libc.make_buffer(2 * IOVEC.size)
        IOVEC.pack_into(self.iovecs, 0, ours, size)
        theirs = libc.Number(place + IOVEC.size)
        self.arguments = libc.Number(place), 1, theirs, 1, 0  # of process_vm_readv(2)

    def read(self, thread: int, address: int, length: int) -> bytes:
        """So many bytes at this address of a thread's memory. Raises OSError."""
        IOVEC.pack_into(self.iovecs, IOVEC.size, address, length)
        result = process_vm_readv(thread, *self.arguments)
        if result == length:
            data: bytes = self.buffer[:length]
            return data
        if result in (-errno.ENOSYS, -errno.EPERM):  # an outer sandbox may not allow it
            return read_memory_file(thread, address, length)
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def read_memory_file(thread: int, address: int, length: int) -> bytes:
    """The same through /proc (proc_pid_mem(5)). Raises OSError."""
    file = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(file, length, address)
    finally:
        os.close(file)
    if len(data) != length:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return data
