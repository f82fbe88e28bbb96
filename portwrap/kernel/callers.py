"""The file descriptors and the memory of other threads, for whoever looks at them often."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from . import libc, procfs
from .processes import PIDFD_THREAD, SYS_PIDFD_GETFD, pidfd_open, take_descriptor

SYS_PIDFD_SEND_SIGNAL = 424  # the same on every architecture but Alpha
MAX_CALLERS = 64


class Caller:
    """A thread of another process."""

    __slots__ = ("leader", "pidfd")

    def __init__(self, pidfd: int) -> None:
        self.pidfd = pidfd
        self.leader = 0  # the process that it belongs to, once somebody wanted to know


class Callers:
    """The threads whose file descriptors are looked at, each with a pidfd that is opened once.

    A pidfd goes on meaning its thread: where that is gone, whoever has its number now, the kernel
    answers ESRCH.
    """

    def __init__(self) -> None:
        self.known: dict[int, Caller] = {}  # the one that was opened first comes first
        self.has_thread_pidfds = True

    def take_descriptor(self, thread: int, number: int) -> int:
        """A duplicate of a thread's file descriptor (pidfd_getfd(2)). Raises OSError."""
        caller = self.known.get(thread)
        if caller is not None:
            taken = libc.attempt("syscall", SYS_PIDFD_GETFD, caller.pidfd, number, 0)
            if taken >= 0:
                return taken
            if taken != -errno.ESRCH:
                raise OSError(-taken, os.strerror(-taken), "pidfd_getfd")
            os.close(self.known.pop(thread).pidfd)
        if self.has_thread_pidfds:
            self.add(thread)
        if not self.has_thread_pidfds:
            return take_descriptor(thread, number)
        return libc.system_call(SYS_PIDFD_GETFD, self.known[thread].pidfd, number, 0)

    def add(self, thread: int) -> None:
        """Open a pidfd of this thread. Raises OSError."""
        try:
            pidfd = pidfd_open(thread, PIDFD_THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Before Linux 6.9 a pidfd is of a process, which may outlive its thread.
            self.has_thread_pidfds = False
            return
        if len(self.known) >= MAX_CALLERS:
            os.close(self.known.pop(next(iter(self.known))).pidfd)
        self.known[thread] = Caller(pidfd)

    def leader_of(self, thread: int) -> int:
        """The process of a thread that a descriptor has just been taken of. Raises OSError."""
        caller = self.known.get(thread)
        if caller is None:
            return procfs.leader_of(thread)
        if not caller.leader:
            caller.leader = procfs.leader_of(thread)
        return caller.leader


def is_gone(pidfd: int) -> bool:
    """Whether the process of this pidfd has ended, and has been waited for."""
    return libc.attempt("syscall", SYS_PIDFD_SEND_SIGNAL, pidfd, 0, 0, 0) == -errno.ESRCH


class Memory:
    """Reads bytes of other processes' memory."""

    def __init__(self, size: int) -> None:
        """For `size` bytes at most."""
        self.buffer = ctypes.create_string_buffer(size)

    def read(self, thread: int, address: int, length: int) -> bytes:
        """So many bytes at this address of a thread's memory. Raises OSError."""
        ours = struct.pack("@PN", ctypes.addressof(self.buffer), length)
        theirs = struct.pack("@PN", address, length)
        result = libc.attempt("process_vm_readv", thread, ours, 1, theirs, 1, 0)
        if result in (-errno.ENOSYS, -errno.EPERM):  # an outer sandbox may not allow it
            return read_memory_file(thread, address, length)
        if result != length:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return self.buffer.raw[:length]


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
