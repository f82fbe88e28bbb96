"""What no code of ours expects, and what is no fault of it either: any system call may fail, and
with it the import of a module."""

from __future__ import annotations

import errno

from ..kernel.sockets import OUT_OF_RESOURCES
from .errors import PortwrapError, hint_for

LIMIT = "A limit of this job or of the node is used up: see 'ulimit -a', and its memory."
INCOMPLETE = (
    "This Python or this program is incomplete or cannot be read, or a limit is used up:"
    " see 'ulimit -a'."
)


def refusal_of(error: BaseException) -> PortwrapError:
    """The refusal to start because of such an exception, with the place in our code."""
    message = f"setting up ({place_of(error)}): {reason_of(error)}"
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number in (*OUT_OF_RESOURCES, errno.EAGAIN):
        return PortwrapError(message, LIMIT)
    return PortwrapError(message, INCOMPLETE if isinstance(error, ImportError) else hint_for(""))


def reason_of(error: BaseException) -> str:
    """What an exception says, without the number that Python puts before an errno's text."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


def place_of(error: BaseException) -> str:
    """The innermost line of ours that the exception came through, for who looks for the cause."""
    place, trace = "start", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if name.startswith(("portwrap.", "batchspawner_portwrap")):
            place = f"{name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
