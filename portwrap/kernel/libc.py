"""Functions of the C library that Python has none for.

`_ctypes` is the C half of `ctypes`, whose other half would add 0.2 MB to every session.
"""

from __future__ import annotations

import os
import sys

from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    addressof,
    dlopen,
    get_errno,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECUREBITS = 28
SECBIT_NOROOT_LOCKED = 0b11  # SECBIT_NOROOT | SECBIT_NOROOT_LOCKED

CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


class Number(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"  # long


class Result(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"  # int


class Byte(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"  # char


class Function(CFuncPtr):
    """A C function that returns an int."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = Result


class Library:
    """This program and all that it is linked with."""

    _handle = dlopen(None, 0)  # type: ignore[arg-type]


_library = Library()
_functions: dict[str, Function] = {}


def look_up(name: str) -> Function:
    """A new object for the function of this name. Raises AttributeError."""
    return Function((name, _library))  # type: ignore[arg-type]


def make_buffer(size: int) -> tuple[Any, int]:
    """So many bytes that C functions may write to, and their address."""
    buffer = (Byte * size)()
    return buffer, addressof(buffer)


def attempt(name: str, *arguments: int | bytes) -> int:
    """Call the function of this name and return its result, or its errno as a negative number;
    bytes are passed as a pointer to them."""
    if name not in _functions:
        _functions[name] = look_up(name)  # to look one up takes longer than to call it
    longs = [word if isinstance(word, bytes) else Number(word) for word in arguments]
    result: int = _functions[name](*longs)
    return -get_errno() if result == -1 else result


def prepare(name: str) -> Callable[..., int]:
    """The same function for whoever calls it often: to convert arguments takes longer than a system
    call. So they are not converted: numbers that fit into an int, bytes, and else what is a
    `Number` already."""
    function = look_up(name)

    def attempt_prepared(*arguments: object) -> int:
        result: int = function(*arguments)
        return -get_errno() if result == -1 else result

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


def set_name(name: bytes) -> None:
    """Give this process a name, which ps(1) and pkill(1) know it by. Raises OSError."""
    call("prctl", PR_SET_NAME, name, 0, 0, 0)


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
