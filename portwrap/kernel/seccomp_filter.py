"""The seccomp filter that has system calls of a process wait for another one (`seccomp.py`).

Numbers and structures are from linux/seccomp.h, linux/filter.h and linux/bpf_common.h; seccomp(2)
has the rules.
"""

from __future__ import annotations

import struct

from . import libc, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .machines import Machine

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
    import array  # for this call alone

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
