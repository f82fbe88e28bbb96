"""System calls whose caller a seccomp filter around us ends.

A call that a filter refuses is seen where it is made. But a filter may also end whoever makes it,
as SystemCallFilter= of systemd does by default: then nobody is left to report anything. So where a
filter is in force (`seccomp_filter.has_outer_filter`), a child makes the unusual calls first, in
ways that change nothing.
"""

from __future__ import annotations

import os

from . import libc
from .machines import this_machine
from .processes import SYS_PIDFD_GETFD, SYS_PIDFD_OPEN, SYS_PIDFD_SEND_SIGNAL
from .seccomp_filter import SECCOMP_GET_NOTIF_SIZES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    Call = tuple[str, Sequence[int]]


def calls() -> dict[str, Call]:
    """Unusual system calls, by name: a function of the C library, and arguments that have it do
    nothing or fail."""
    made: dict[str, Call] = {
        "unshare": ("unshare", (0,)),
        "setns": ("setns", (-1, 0)),
        "mount": ("mount", (0, 0, 0, 0, 0)),
        "pidfd_open": ("syscall", (SYS_PIDFD_OPEN, -1, 0)),
        "pidfd_getfd": ("syscall", (SYS_PIDFD_GETFD, -1, 0, 0)),
        "pidfd_send_signal": ("syscall", (SYS_PIDFD_SEND_SIGNAL, -1, 0, 0, 0)),
        "process_vm_readv": ("process_vm_readv", (0, 0, 0, 0, 0, 0)),
    }
    machine = this_machine()
    if machine is not None:
        made["kcmp"] = "syscall", (machine.kcmp, 0, 0, -1, 0, 0)
        # to a null pointer: EFAULT
        made["seccomp"] = "syscall", (machine.seccomp, SECCOMP_GET_NOTIF_SIZES, 0, 0)
    return made


def find() -> list[str]:
    """Those of the unusual system calls whose caller a filter ends."""
    found: list[str] = []
    left = calls()
    while left:
        survived = make_in_child(left)
        if survived is None:
            break
        for name in survived:
            del left[name]
        if left:
            found.append(next(iter(left)))
            del left[found[-1]]
    return found


def make_in_child(wanted: dict[str, Call]) -> list[str] | None:
    """The names of those that a child could make, one after the other until it was ended. None:
    there is no process for it."""
    try:
        output, end = os.pipe()
    except OSError:
        return None
    try:
        child = os.fork()
    except OSError:
        os.close(output)
        os.close(end)
        return None
    if child == 0:
        make(wanted, end)
    os.close(end)
    with open(output, "rb") as file:
        survived = file.read().decode().split()
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass  # an inherited "ignore SIGCHLD" has the kernel reap for us (wait(2))
    return survived


def make(wanted: dict[str, Call], output: int) -> NoReturn:
    """Make these calls, and write the name of each that has come back."""
    try:
        libc.attempt("prctl", libc.PR_SET_DUMPABLE, 0, 0, 0, 0)  # else it may leave a core file
        for name, (function, arguments) in wanted.items():
            libc.attempt(function, *arguments)
            os.write(output, f"{name}\n".encode())
    finally:
        os._exit(0)
