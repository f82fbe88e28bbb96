"""Run a program of ours: a failure is two lines on standard error and an exit status."""

from __future__ import annotations

from ..diagnostics.errors import Failure, PortwrapError, failure_of, reason_of
from ..diagnostics.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ANYWHERE = (OSError, ImportError, MemoryError)
"""Exceptions that the system can cause at any place. All others are faults of ours: they must be
seen with their traceback."""


def run(program: str, action: Callable[[], int]) -> int:
    """Return the exit status of the action; a failure is reported."""
    try:
        return action()
    except PortwrapError as caught:
        _let_go_silently()
        error = caught
    except ANYWHERE as caught:
        _let_go_silently()
        error = _unexpected(caught)
    # Out here the frames of an error of the system are gone, and with them the sockets that they
    # held: they may have been all the file descriptors that there are.
    log(as_lines(program, error))
    return error.exit_code


def _let_go_silently() -> None:
    """Have Python close the sockets of a start that has failed without a warning of each, which
    PYTHONWARNINGS or PYTHONDEVMODE may ask for."""
    try:
        import warnings

        warnings.simplefilter("ignore", ResourceWarning)
    except ANYWHERE:
        pass  # there is no descriptor left to read it


def _unexpected(error: BaseException) -> PortwrapError:
    try:
        from ..diagnostics import unexpected  # read only once something has failed
    except ANYWHERE:
        is_system = isinstance(error, OSError)
        failure = failure_of(error, Failure.SYSTEM) if is_system else Failure.INCOMPLETE
        return PortwrapError(f"setting up: {reason_of(error)}", failure)
    return unexpected.refusal_of(error)


def as_lines(program: str, error: PortwrapError) -> str:
    """What was tried and the answer, and below it the remedy."""
    return f"{program}: {_one_line(error.message)}\n  {_one_line(_remedy(error))}\n"


def _remedy(error: PortwrapError) -> str:
    try:
        from ..diagnostics import lookup  # read only once something has failed
    except ANYWHERE:  # the archive was replaced a moment ago, or there is no descriptor to read it
        return "The remedy could not be read: see 'ulimit -a', then start it again."
    return lookup.remedy_of(error)


def _one_line(text: str) -> str:
    """The text with the line ends in it spelled out: names of files may hold any."""
    return "".join(repr(char)[1:-1] if char.splitlines() == [""] else char for char in text)
