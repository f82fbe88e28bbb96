"""The one exception for expected failures, and what to do about each of them."""

from __future__ import annotations

EXIT_USAGE = 2
"""Exit status: the command line or the environment makes no sense."""
EXIT_SANDBOX = 125
"""Exit status: the sandbox could not be made."""
EXIT_NOT_EXECUTABLE = 126
"""Exit status: the command was found but cannot be run."""
EXIT_NOT_FOUND = 127
"""Exit status: the command was not found."""


class PortwrapError(Exception):
    """An expected failure: what was tried and the answer, what to do, and the exit status."""

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_SANDBOX) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def lines(self, program: str) -> str:
        """The message and its hint as they stand on standard error."""
        hint = f"\n  {_one_line(self.hint)}" if self.hint else ""
        return f"{program}: {_one_line(self.message)}{hint}\n"


def _one_line(text: str) -> str:
    """The text with the line ends in it spelled out: names of files may hold any."""
    return "".join(repr(char)[1:-1] if char.splitlines() == [""] else char for char in text)


def hint_for(message: str) -> str:
    """What this message means and what mends it: the table in `remedies.py` knows."""
    try:
        from . import remedies  # read only once something has failed
    except (ImportError, OSError):
        return ""  # the archive was replaced a moment ago, or there is no descriptor to read it
    return remedies.hint_for(message)
