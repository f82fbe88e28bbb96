"""The filter that decides which system calls wait for the keeper."""

from __future__ import annotations

import pytest

from portwrap.kernel import seccomp_filter
from portwrap.kernel.machines import MACHINES
from portwrap.kernel.seccomp_filter import RET_ALLOW, RET_USER_NOTIF, Trap, filter_program

MACHINE = MACHINES["x86_64"]
TRAPS = [Trap(7), Trap(9, 2, [16, 28], above=110), Trap(11, 0, [5]), Trap(13, 1, above=3)]
CALLS = [  # number, arguments, whether it waits
    (7, (), True),
    (8, (), False),
    (9, (0, 0, 16), True),
    (9, (0, 0, 28), True),
    (9, (0, 0, 27), False),
    (9, (0, 0, 110), False),
    (9, (0, 0, 111), True),
    (9, (0, 0, 128), True),
    (9, (16, 16, 0), False),
    (9, (0, 0, 1 << 32 | 16), True),
    (11, (5,), True),
    (11, (6,), False),
    (13, (0, 4), True),
    (13, (4, 3), False),
    (16, (), False),
    (28, (), False),
]


def decide(
    program: list[seccomp_filter.Instruction], arch: int, number: int, *arguments: int
) -> int:
    """What a filter returns, as bpf(4) has it run: the few instructions that ours has."""
    data = {seccomp_filter.NUMBER: number, seccomp_filter.ARCH: arch}
    for place, value in enumerate(arguments):
        data[seccomp_filter.ARGUMENTS + 8 * place] = value & 0xFFFFFFFF
    loaded, place = 0, 0
    while True:
        code, true, false, constant = program[place]
        place += 1
        if code == seccomp_filter.LOAD:
            loaded = data.get(constant, 0)
        elif code == seccomp_filter.JUMP_EQUAL:
            place += true if loaded == constant else false
        elif code == seccomp_filter.JUMP_GREATER:
            place += true if loaded > constant else false
        else:
            assert code == seccomp_filter.RETURN
            return constant


@pytest.mark.parametrize(("number", "arguments", "waits"), CALLS)
def test_which_calls_wait(number: int, arguments: tuple[int, ...], waits: bool) -> None:
    program = filter_program(MACHINE, TRAPS)
    expected = RET_USER_NOTIF if waits else RET_ALLOW
    assert decide(program, MACHINE.arch, number, *arguments) == expected


def test_calls_of_another_kind_of_program_pass() -> None:
    program = filter_program(MACHINE, TRAPS)
    assert decide(program, MACHINE.arch, 7) == RET_USER_NOTIF
    assert decide(program, 0x40000003, 7) == RET_ALLOW  # AUDIT_ARCH_I386
