"""Functions of the C library that Python has none for."""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_DUMPABLE = 4
PR_SET_SECUREBITS = 28
SECBIT_NOROOT_LOCKED = 0b11  # SECBIT_NOROOT | SECBIT_NOROOT_LOCKED

CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


_library = ctypes.CDLL(None, use_errno=True)
_functions: dict[str, Any] = {}


def attempt(name: str, *arguments: int | bytes) -> int:
    """Call the function of this name and return its result, or its errno as a negative number;
    bytes are passed as a pointer to them."""
    if name not in _functions:
        _functions[name] = _library[name]  # to look one up takes longer than to call it
    longs = [word if isinstance(word, bytes) else ctypes.c_long(word) for word in arguments]
    result: int = _functions[name](*longs)
    return -ctypes.get_errno() if result == -1 else result


def prepare(name: str, kinds: str) -> Callable[..., int]:
    """The same function for whoever calls it often: to convert arguments takes longer than a system
    call. `kinds` has a letter for each: n for a number, b for bytes."""
    function = _library[name]  # another object than the one of `attempt`
    function.argtypes = [ctypes.c_char_p if kind == "b" else ctypes.c_long for kind in kinds]
    errno = ctypes.get_errno

    def attempt_prepared(*arguments: int | bytes) -> int:
        result: int = function(*arguments)
        return -errno() if result == -1 else result

    return attempt_prepared


def call(name: str, *arguments: int | bytes) -> int:
    """Call it as `attempt` does. Raises OSError."""
    result = attempt(name, *arguments)
    if result < 0:
        raise OSError(-result, os.strerror(-result), name)
    return result


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError."""
    call("prctl", option, value, 0, 0, 0)


def setns(descriptor: int) -> None:
    """setns(2): move this process into the namespace of this descriptor. Raises OSError."""
    call("setns", descriptor, 0)


def system_call(number: int, *arguments: int) -> int:
    """syscall(2): run a system call by its number. Raises OSError."""
    return call("syscall", number, *arguments)


def drop_capabilities() -> None:
    """Give up every capability (capset(2)). Raises OSError."""
    header = CAPABILITY_VERSION_3.to_bytes(4, sys.byteorder) + bytes(4)  # and this process
    call("capset", header, bytes(24))


def trim_memory() -> None:
    """Give memory that is free back to the kernel: malloc_trim(3), which is glibc's alone."""
    try:
        call("malloc_trim", 0)
    except AttributeError:
        pass
