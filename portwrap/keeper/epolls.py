"""The epolls of a process, and moving a socket's entries in them to another socket.

An epoll knows an entry by its open file and its file descriptor together (epoll(7)): a socket that
is put under the same number is in none of the epolls that had the one before it. So whoever
replaces a socket adds the new one as the old one was, with the program's own events and data.
"""

from __future__ import annotations

import errno
import os
import struct
import time

from ..kernel import libc, procfs
from ..kernel.callers import is_gone
from ..kernel.processes import pidfd_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    import _socket

    from ..kernel.callers import Callers

KCMP_FILES, KCMP_EPOLL_TFD = 2, 7  # linux/kcmp.h
EPOLL_SLOT = struct.Struct("=3I")  # struct kcmp_epoll_slot: efd, tfd, toff
EPOLL_CTL_ADD, EPOLL_CTL_DEL = 1, 2  # linux/eventpoll.h
# struct epoll_event is packed on one architecture only
EPOLL_EVENT = struct.Struct("=IQ" if os.uname().machine == "x86_64" else "=I4xQ")
REPORTED = 0x0FFFFFE7
"""Events that an entry may ask for: without EPOLLERR and EPOLLHUP, which epoll_ctl(2) adds, and the
bits that say how to report them (fs/eventpoll.c, EP_PRIVATE_BITS)."""
EPOLLONESHOT = 1 << 30
MAX_SLOTS = 8
"""Files that one epoll has under one number at most: closed ones that live on elsewhere, too."""
MAX_PROCESSES = 64
MAX_CREATING = 512
"""Threads of a process that are remembered one by one while they are making one."""
EVERY_THREAD = 0
SETTLE_TIMEOUT = 5.0
"""Seconds after which a thread that was let go into a system call has certainly come out of it."""


class NotMovable(Exception):
    """The old socket is known in a way that cannot be repeated for another one."""


class Entry:
    """A socket's entry in an epoll of its process."""

    __slots__ = ("epoll", "event", "number")

    def __init__(self, epoll: int, number: int, event: bytes) -> None:
        self.epoll = epoll  # file descriptor of the process
        self.number = number  # that of the socket
        self.event = event  # struct epoll_event


class Process:
    """The epolls and io_urings of a process, by file descriptors of its own."""

    def __init__(self, pidfd: int) -> None:
        self.pidfd = pidfd
        self.known = False
        self.epolls: list[int] = []
        self.rings: list[int] = []
        # Threads that are making one, and until when; the one that is done first comes first.
        self.creating: dict[int, float] = {}

    def begins(self, thread: int) -> None:
        """This thread is about to make one."""
        now = time.monotonic()
        self.known = False
        if len(self.creating) >= MAX_CREATING:
            self.creating.clear()
            thread = EVERY_THREAD
        self.creating.pop(thread, None)
        self.creating[thread] = now + SETTLE_TIMEOUT
        while self.creating and next(iter(self.creating.values())) < now:
            del self.creating[next(iter(self.creating))]

    def scan(self, thread: int) -> None:
        """Find them among the descriptors of this thread. Raises OSError."""
        # A list from before the file was made must not be kept for longer than this call.
        now = time.monotonic()
        made = [each for each, until in self.creating.items() if until < now]
        self.epolls, self.rings = [], []
        for name in os.listdir(f"/proc/{thread}/fd"):
            try:
                link = os.readlink(f"/proc/{thread}/fd/{name}")
            except FileNotFoundError:
                continue
            if link == "anon_inode:[eventpoll]":
                self.epolls.append(int(name))
            elif link == "anon_inode:[io_uring]":
                self.rings.append(int(name))
        self.known = True
        for each in made:
            del self.creating[each]


class Epolls:
    """The epolls of all processes in the sandbox."""

    def __init__(self, callers: Callers, kcmp: int, hears_of_new: bool) -> None:
        self.callers = callers
        self.kcmp = kcmp  # number of the system call
        self.hears_of_new = hears_of_new  # `on_creation` is called for each
        self.pid = os.getpid()
        self.processes: dict[int, Process] = {}  # the one that was seen first comes first
        self.compare_in_epoll = libc.prepare("syscall")

    def on_creation(self, thread: int) -> None:
        """This thread is about to make an epoll or an io_uring. Raises OSError."""
        try:
            process = self.process(self.callers.find_leader(thread))
        except (ProcessLookupError, FileNotFoundError):
            raise  # it has been killed
        except OSError:
            # One has been missed: no list is kept any more.
            self.hears_of_new = False
            for process in self.processes.values():
                process.known = False
            raise
        process.begins(thread)

    def process(self, leader: int) -> Process:
        """What is known of this process. Raises OSError."""
        process = self.processes.get(leader)
        if process is not None and is_gone(process.pidfd):
            self.forget(leader)  # the number is another one's by now
            process = None
        if process is None:
            if len(self.processes) >= MAX_PROCESSES:
                self.forget(next(iter(self.processes)))
            process = self.processes[leader] = Process(pidfd_open(leader))
        return process

    def forget(self, leader: int) -> None:
        os.close(self.processes.pop(leader).pidfd)

    def entries(self, thread: int, number: int, socket: _socket.socket) -> list[Entry]:
        """The entries of a thread's socket, of which we have a duplicate that has just been taken.

        Raises OSError, and NotMovable.
        """
        leader = self.callers.leader_of(thread)
        process = self.process(leader)
        process.creating.pop(thread, None)  # it has come out of that call
        # A thread may have descriptors of its own (unshare(2), CLONE_FILES).
        shares = thread == leader or self.have_same_descriptors(thread, leader)
        if not process.known or process.creating or not shares:
            process.scan(thread)
        try:
            return list(self.find(thread, number, socket, process))
        except FileNotFoundError:  # one that has been closed meanwhile
            process.scan(thread)
            return list(self.find(thread, number, socket, process))
        finally:
            process.known = process.known and shares and self.hears_of_new

    def find(
        self, thread: int, number: int, socket: _socket.socket, process: Process
    ) -> Iterator[Entry]:
        for ring in process.rings:
            if registers_files(thread, ring):
                raise NotMovable("an io_uring may have registered it")
        inode = os.fstat(socket.fileno()).st_ino if process.epolls else 0
        for epoll in process.epolls:
            if self.may_hold(thread, number, socket, epoll):
                yield from entries_of(thread, number, inode, epoll)

    def have_same_descriptors(self, one: int, other: int) -> bool:
        return libc.attempt("syscall", self.kcmp, one, other, KCMP_FILES, 0, 0) == 0

    def may_hold(self, thread: int, number: int, socket: _socket.socket, epoll: int) -> bool:
        """Whether this epoll has the socket under this number, or we cannot know that so fast."""
        for skip in range(MAX_SLOTS):
            slot = EPOLL_SLOT.pack(epoll, number, skip)
            result = self.compare_in_epoll(
                self.kcmp, self.pid, thread, KCMP_EPOLL_TFD, socket.fileno(), slot
            )
            if result == -errno.ENOENT:
                return False
            if result in (-errno.EBADF, -errno.EINVAL):  # the number means something else by now
                raise FileNotFoundError
            if result <= 0:
                return True  # the same file; or kcmp(2) is not to be had
        return True

    def add(self, thread: int, entry: Entry, file: int) -> None:
        """Give a file of ours, which the thread has under the entry's number, the same entry.
        Raises OSError."""
        self.control(EPOLL_CTL_ADD, thread, entry, file)

    def remove(self, thread: int, entry: Entry, file: int) -> None:
        """Remove the entry of a file of ours, which the thread had. Raises OSError."""
        self.control(EPOLL_CTL_DEL, thread, entry, file)

    def control(self, operation: int, thread: int, entry: Entry, file: int) -> None:
        epoll = self.callers.take_descriptor(thread, entry.epoll)
        try:
            control(epoll, operation, entry.number, file, entry.event)
        finally:
            os.close(epoll)


def entries_of(thread: int, number: int, inode: int, epoll: int) -> Iterator[Entry]:
    """A socket's entries in one epoll (proc_pid_fdinfo(5)). Raises OSError, and NotMovable."""
    its_inode = f" ino:{inode:x} ".encode()
    with open(f"/proc/{thread}/fdinfo/{epoll}", "rb") as file:
        for line in file:
            if its_inode not in line:
                continue
            _, target, _, events, _, data, *_ = line.split()
            if int(target) != number:
                raise NotMovable("an epoll holds it under an earlier file descriptor")
            mask = int(events, 16)
            if mask & EPOLLONESHOT and not mask & REPORTED:
                # Added anew, it would report errors.
                raise NotMovable("its one-shot entry in an epoll is disarmed")
            yield Entry(epoll, number, EPOLL_EVENT.pack(mask, int(data, 16)))


def registers_files(thread: int, ring: int) -> bool:
    """Whether an io_uring holds files under numbers of its own, or may: what waits in it is listed
    first, and nothing at all while another thread is at it. Raises OSError."""
    return procfs.late_fields(f"/proc/{thread}/fdinfo/{ring}", b"UserFiles:") != [b"0"]


def control(epoll: int, operation: int, number: int, file: int, event: bytes) -> None:
    """epoll_ctl(2) for `file` as if it had this number here. Raises OSError.

    What else of ours has the number loses it for a moment only, and none of its own entries in
    epolls: it is never closed.
    """
    if number == file:
        libc.call("epoll_ctl", epoll, operation, number, event)
        return
    saved, inheritable = -1, False
    if is_open(number):
        saved, inheritable = os.dup(number), os.get_inheritable(number)
    try:
        os.dup2(file, number, inheritable=False)
        libc.call("epoll_ctl", saved if epoll == number else epoll, operation, number, event)
    finally:
        if saved >= 0:
            os.dup2(saved, number, inheritable)
            os.close(saved)
        else:
            close_quietly(number)


def is_open(number: int) -> bool:
    """Whether this file descriptor of ours is open."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def close_quietly(number: int) -> None:
    try:
        os.close(number)
    except OSError:
        pass  # dup2 has failed: it is above our limit
