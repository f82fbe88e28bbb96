"""Seccomp user notification: the sandbox's listen(2) and bind(2) calls wait for the keeper's word.

Numbers and structures are from the kernel's headers: linux/seccomp.h, linux/filter.h,
linux/audit.h, asm/unistd.h, linux/sockios.h; seccomp(2) and seccomp_unotify(2) tell their rules.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

from . import libc

SECCOMP_SET_MODE_FILTER = 1
FILTER_FLAG_SPEC_ALLOW = 1 << 2
FILTER_FLAG_NEW_LISTENER = 1 << 3
FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
RET_USER_NOTIF = 0x7FC00000
RET_ALLOW = 0x7FFF0000

# struct seccomp_notif: id, pid, flags; struct seccomp_data: nr, arch, instruction pointer, args
NOTIF = struct.Struct("=QIIiIQ6Q")
NOTIF_RESP = struct.Struct("=QqiI")  # id, val, error, flags
NOTIF_ADDFD = struct.Struct("=QIIII")  # id, flags, srcfd, newfd, newfd_flags
USER_NOTIF_FLAG_CONTINUE = 1
ADDFD_FLAG_SETFD = 1

SYS_PIDFD_GETFD = 438
PIDFD_THREAD = os.O_EXCL

SIOCGSKNS = 0x894C

ALLOW_ALL_BUT_TWO = (
    # struct sock_filter: code, jump if true, jump if false, constant
    (0x20, 0, 0, 4),  # load seccomp_data.arch
    (0x15, 0, 4, "arch"),  # another one, such as the 32-bit one: allow
    (0x20, 0, 0, 0),  # load seccomp_data.nr
    (0x15, 1, 0, "listen"),
    (0x15, 0, 1, "bind"),
    (0x06, 0, 0, RET_USER_NOTIF),
    (0x06, 0, 0, RET_ALLOW),
)


class Machine:
    """The system call numbers of one architecture."""

    def __init__(self, arch: int, seccomp: int, bind: int, listen: int) -> None:
        self.arch = arch
        self.seccomp = seccomp
        self.bind = bind
        self.listen = listen


MACHINES = {
    "x86_64": Machine(arch=0xC000003E, seccomp=317, bind=49, listen=50),
    "aarch64": Machine(arch=0xC00000B7, seccomp=277, bind=200, listen=201),
}


def system_call(number: int, *arguments: int) -> int:
    """syscall(2): run a system call by its number. Raises OSError."""
    return libc.call("syscall", number, *arguments)


def _ioc(direction: int, number: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h with the type '!' of seccomp; 1 is write, 3 read and write."""
    return direction << 30 | size << 16 | ord("!") << 8 | number


NOTIF_RECV = _ioc(3, 0, NOTIF.size)
NOTIF_SEND = _ioc(3, 1, NOTIF_RESP.size)
NOTIF_ID_VALID = _ioc(1, 2, 8)
NOTIF_ADDFD_IOCTL = _ioc(1, 3, NOTIF_ADDFD.size)


def this_machine() -> Machine | None:
    """The numbers of this machine, if we have them for the kind of program that this one is."""
    is_64_bit = sys.maxsize > 2**32
    return MACHINES.get(os.uname().machine) if is_64_bit and sys.byteorder == "little" else None


def install_filter(machine: Machine) -> int:
    """Have this process and all it starts ask before listen(2) and bind(2). Returns the descriptor
    that the notifications arrive on.

    Needs CAP_SYS_ADMIN in this user namespace; with it no_new_privs need not be set. Raises
    OSError: EBUSY where a listener exists already, EINVAL or ENOSYS on a kernel without it.
    """
    import array  # for this call alone, in the launching process

    words = [
        (code, true, false, getattr(machine, k) if isinstance(k, str) else k)
        for code, true, false, k in ALLOW_ALL_BUT_TWO
    ]
    code = array.array("B", b"".join(struct.pack("=HBBI", *word) for word in words))
    sock_fprog = struct.pack("@HP", len(words), code.buffer_info()[0])
    program = array.array("B", sock_fprog)
    address = program.buffer_info()[0]
    # Without SPEC_ALLOW, kernels before 5.16 turn speculation off for the whole session.
    flags = FILTER_FLAG_NEW_LISTENER | FILTER_FLAG_SPEC_ALLOW
    for more in (FILTER_FLAG_WAIT_KILLABLE_RECV, 0):
        try:
            return system_call(machine.seccomp, SECCOMP_SET_MODE_FILTER, flags | more, address)
        except OSError as error:
            if error.errno != errno.EINVAL or not more:
                raise
    raise AssertionError


class Notification:
    """A system call inside that waits for an answer."""

    def __init__(self, data: bytes) -> None:
        fields = NOTIF.unpack(data)
        self.id, self.thread, _, self.call = fields[:4]
        self.descriptor = fields[6] & 0xFFFFFFFF  # the first argument of both calls
        self.backlog = fields[7] & 0xFFFFFFFF  # the second one of listen


def receive(listener: int) -> Notification:
    """The next notification. Raises OSError: ENOENT where the asking process has gone."""
    buffer = bytearray(NOTIF.size)  # must be all zeros
    fcntl.ioctl(listener, NOTIF_RECV, buffer)
    return Notification(bytes(buffer))


def respond(listener: int, notification: Notification, proceed: bool) -> None:
    """Let the call proceed, or have it return 0 without running. Raises OSError."""
    flags = USER_NOTIF_FLAG_CONTINUE if proceed else 0
    fcntl.ioctl(listener, NOTIF_SEND, NOTIF_RESP.pack(notification.id, 0, 0, flags))


def id_valid(listener: int, notification: Notification) -> None:
    """Raise OSError (ENOENT) unless the caller still waits: its number may be another's by now."""
    fcntl.ioctl(listener, NOTIF_ID_VALID, struct.pack("=Q", notification.id))


def addfd(listener: int, notification: Notification, source: int, flags: int) -> None:
    """Put a duplicate of our `source` in the place of the caller's descriptor. Raises OSError."""
    request = NOTIF_ADDFD.pack(
        notification.id, ADDFD_FLAG_SETFD, source, notification.descriptor, flags
    )
    fcntl.ioctl(listener, NOTIF_ADDFD_IOCTL, request)


def take_descriptor(thread: int, descriptor: int) -> int:
    """A duplicate of a descriptor of another process (pidfd_getfd(2)). Raises OSError."""
    try:
        process = libc.pidfd_open(thread, PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.9
            raise
        process = libc.pidfd_open(leader_of(thread))
    try:
        return system_call(SYS_PIDFD_GETFD, process, descriptor, 0)
    finally:
        os.close(process)


def leader_of(thread: int) -> int:
    """The process that this thread belongs to (proc_pid_status(5), Tgid). Raises OSError."""
    with open(f"/proc/{thread}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Tgid:"):
                return int(line.split()[1])
    raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))


def network_namespace_of(socket: int) -> int:
    """The inode number of a socket's network namespace. Raises OSError."""
    namespace = fcntl.ioctl(socket, SIOCGSKNS)
    try:
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)
