"""System call numbers of the architectures on which something can be native (asm/unistd.h,
linux/audit.h)."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


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


def this_machine() -> Machine | None:
    """The numbers of this machine, if we have them for the kind of program that this one is."""
    is_64_bit = sys.maxsize > 2**32
    return MACHINES.get(os.uname().machine) if is_64_bit and sys.byteorder == "little" else None
