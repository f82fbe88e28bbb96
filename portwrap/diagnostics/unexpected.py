"""What no code of ours expects, and what is no fault of it either: any system call may fail, and
with it the import of a module."""

from __future__ import annotations

import errno

from ..kernel.sockets import OUT_OF_RESOURCES
from .errors import Failure, PortwrapError, failure_of, reason_of


def refusal_of(error: BaseException) -> PortwrapError:
    """The refusal to start because of such an exception, with the place in our code."""
    message = f"setting up ({place_of(error)}): {reason_of(error)}"
    return PortwrapError(message, _failure_of(error))


def _failure_of(error: BaseException) -> str:
    if isinstance(error, OSError):
        used_up = error.errno in (*OUT_OF_RESOURCES, errno.EAGAIN)
        return failure_of(error, Failure.RESOURCES if used_up else Failure.SYSTEM)
    return Failure.RESOURCES if isinstance(error, MemoryError) else Failure.INCOMPLETE


def place_of(error: BaseException) -> str:
    """The innermost line of ours that the exception came through, for who looks for the cause."""
    place, trace = "start", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if name.startswith(("portwrap.", "batchspawner_portwrap")):
            place = f"{name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
