"""Lines on standard error."""

from __future__ import annotations

import sys


def log(text: str) -> None:
    """Write to standard error at once; where it is closed or full, do without."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()  # before Python 3.9 it is buffered where it is no terminal
    except OSError:
        # Its buffer keeps the text: to fail once more at exit would make the status 120.
        sys.stderr = None
