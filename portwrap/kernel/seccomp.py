"""Seccomp user notification: system calls of one process wait for the response of another.

Numbers and structures are from the kernel's headers: linux/seccomp.h, linux/filter.h,
linux/bpf_common.h, linux/audit.h, asm/unistd.h; seccomp(2) and seccomp_unotify(2) have the rules.
"""

from __future__ import annotations

import fcntl
import posix as os
import struct
import sys

from . import libc, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Instruction = tuple[int, int, int, int]
    """struct sock_filter: code, jump if true, jump if false, constant"""

SECCOMP_SET_MODE_FILTER, SECCOMP_GET_NOTIF_SIZES = 1, 3
FILTER_FLAG_SPEC_ALLOW = 1 << 2
FILTER_FLAG_NEW_LISTENER = 1 << 3
FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
RET_USER_NOTIF = 0x7FC00000
RET_ALLOW = 0x7FFF0000

LOAD, JUMP_EQUAL, JUMP_GREATER, RETURN = 0x20, 0x15, 0x25, 0x06
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
"""Where struct seccomp_data has them."""
ALLOW: Instruction = (RETURN, 0, 0, RET_ALLOW)
NOTIFY: Instruction = (RETURN, 0, 0, RET_USER_NOTIF)

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


class Machine:
    """The system call numbers of one architecture."""

    io_uring_setup = 425  # on every architecture but Alpha

    def __init__(
        self,
        arch: int,
        seccomp: int,
        bind: int,
        listen: int,
        connect: int,
        kcmp: int,
        epoll_creates: Sequence[int],
    ) -> None:
        self.arch = arch
        self.seccomp = seccomp
        self.bind = bind
        self.listen = listen
        self.connect = connect
        self.kcmp = kcmp
        self.epoll_creates = epoll_creates  # epoll_create1, and what was before it


MACHINES = {
    "x86_64": Machine(0xC000003E, 317, 49, 50, connect=42, kcmp=312, epoll_creates=(291, 213)),
    "aarch64": Machine(0xC00000B7, 277, 200, 201, connect=203, kcmp=272, epoll_creates=(20,)),
}


UNKNOWN_MACHINE = "the system call numbers of this architecture are not known"


def _ioc(direction: int, number: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h with the type '!' of seccomp; 1 is write, 3 read and write."""
    return direction << 30 | size << 16 | ord("!") << 8 | number


NOTIF_RECV = _ioc(3, 0, NOTIF.size)
NOTIF_SEND = _ioc(3, 1, NOTIF_RESP.size)
NOTIF_ID_VALID = _ioc(1, 2, 8)
NOTIF_ADDFD_IOCTL = _ioc(1, 3, NOTIF_ADDFD.size)
NOTIF_SET_FLAGS = _ioc(1, 4, 8)


def this_machine() -> Machine | None:
    """The numbers of this machine, if we have them for the kind of program that this one is."""
    is_64_bit = sys.maxsize > 2**32
    return MACHINES.get(os.uname().machine) if is_64_bit and sys.byteorder == "little" else None


class Trap:
    """A system call that waits for a response: each one, or where the lower half of an argument is
    among these values or above a limit."""

    def __init__(
        self,
        number: int,
        argument: int | None = None,
        values: Sequence[int] = (),
        above: int | None = None,
    ) -> None:
        self.number = number
        self.argument = argument  # counted from 0
        self.values = values
        self.above = above

    def instructions(self) -> list[Instruction]:
        """What becomes of a call that has this number."""
        if self.argument is None:
            return [NOTIFY]
        tests = [(JUMP_EQUAL, value) for value in self.values]
        if self.above is not None:
            tests.append((JUMP_GREATER, self.above))
        # Jumps count from the next instruction on; behind the tests stand ALLOW and NOTIFY.
        jumps = [(code, len(tests) - place, 0, k) for place, (code, k) in enumerate(tests)]
        return [(LOAD, 0, 0, ARGUMENTS + 8 * self.argument), *jumps, ALLOW, NOTIFY]


def filter_program(machine: Machine, traps: Sequence[Trap]) -> list[Instruction]:
    """The filter that lets these system calls wait, and all others pass. Programs of another kind,
    such as 32-bit ones, have other numbers: theirs all pass."""
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCH),
        (JUMP_EQUAL, 1, 0, machine.arch),
        ALLOW,
        (LOAD, 0, 0, NUMBER),
    ]
    for trap in traps:
        instructions = trap.instructions()
        program += [(JUMP_EQUAL, 0, len(instructions), trap.number), *instructions]
    return [*program, ALLOW]


_installed: list[int] = []
"""The listeners of the filters that this process has from `install_filter`."""


def has_outer_filter() -> bool:
    """Whether this process has a filter that is not from `install_filter`."""
    path = "/proc/self/status"  # proc_pid_status(5): they stand behind all groups
    try:
        mode, count = procfs.late_fields(path, b"Seccomp:", b"Seccomp_filters:")
    except OSError:
        return False
    # Linux 5.9 counts them; before that none is ours.
    return mode == b"2" and int(count or 1) > len(_installed)


def install_filter(machine: Machine, traps: Sequence[Trap], killable: bool) -> int:
    """Have these system calls of this process, and of all that it starts, wait for a response.
    Returns the descriptor that the notifications arrive on.

    `killable`: once received, only a fatal signal interrupts a call (Linux 5.19). Needs
    CAP_SYS_ADMIN in this user namespace; with it no_new_privs need not be set. Raises OSError:
    EBUSY where a listener exists already, EINVAL or ENOSYS on a kernel without it.
    """
    import array  # for this call alone, in the launching process

    program = filter_program(machine, traps)
    code = array.array("B", b"".join(struct.pack("=HBBI", *row) for row in program))
    address = array.array("B", struct.pack("@HP", len(program), code.buffer_info()[0]))
    # Without SPEC_ALLOW, kernels before 5.16 turn speculation off for the whole session.
    flags = FILTER_FLAG_NEW_LISTENER | FILTER_FLAG_SPEC_ALLOW
    if killable:
        flags |= FILTER_FLAG_WAIT_KILLABLE_RECV
    listener = libc.system_call(
        machine.seccomp, SECCOMP_SET_MODE_FILTER, flags, address.buffer_info()[0]
    )
    _installed.append(listener)
    return listener


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
