"""Functions of the C library that Python has none for."""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_DUMPABLE = 4
PR_SET_SECUREBITS = 28
SECBIT_NOROOT_LOCKED = 0b11  # SECBIT_NOROOT | SECBIT_NOROOT_LOCKED

CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


_library = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes) -> int:
    """Call the function of this name; bytes are passed as a pointer to them. Raises OSError."""
    longs = [word if isinstance(word, bytes) else ctypes.c_long(word) for word in arguments]
    result: int = _library[name](*longs)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
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
