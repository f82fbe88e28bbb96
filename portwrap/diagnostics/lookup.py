"""The row of the table of remedies that a failure belongs to, on this node."""

from __future__ import annotations

import re

from ..launch.drivers.driver import why_no_tun
from .diagnostic import Diagnostic, fill_in, this_system
from .errors import Failure, PortwrapError
from .remedies import table
from .surroundings import SURROUNDINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NO_REASON = "Failed to open tun socket"
"""What pasta prints in place of the kernel's answer."""


def find(
    failure: str,
    message: str = "",
    subject: str = "",
    setting: Callable[[str], str] | None = None,
    is_around: Callable[[str], bool] | None = None,
) -> Diagnostic | None:
    """The row of this failure: the first that fits."""
    if failure == Failure.DRIVER_START and NO_REASON in message:
        no_tun = why_no_tun()
        failure = no_tun.failure if no_tun else failure
    for row in table():
        if not _fits(row, failure, message, subject):
            continue
        if row.setting and (setting or read_setting)(row.setting[0]) != row.setting[1]:
            continue
        if row.around and not (is_around or _is_around)(row.around):
            continue
        return row
    return None


def _is_around(name: str) -> bool:
    return SURROUNDINGS[name]()


def _fits(row: Diagnostic, failure: str, message: str, subject: str) -> bool:
    """Whether the row belongs to this failure: by its identifier, but where another program or the
    kernel has given the reason to the keeper, by the words of that."""
    if not re.search(row.answer, message):
        return False
    if row.words and failure in (Failure.DRIVER_START, Failure.KEEPER):
        return bool(re.search(row.words, message))
    return row.failure == failure and row.subject in ("", subject)


def remedy_of(error: PortwrapError) -> str:
    """What this failure means and its remedy on this system, in one line."""
    if error.remedy:
        return error.remedy
    row = find(error.failure, error.message, error.subject)
    if row is None:
        return fill_in("'{check} --check' on this node, inside a job, may show more.", "")
    return row.line(this_system(), error.subject)


def read_setting(name: str) -> str:
    """The content of a file below /proc/sys; "" where there is none."""
    try:
        with open(f"/proc/sys/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""
