"""Whether this Python has byte code of this program, and how to make some."""

from __future__ import annotations

import os
import sys

from .. import __spec__ as package
from ..archive import PACKAGE, TREE

IS_ARCHIVE = not os.path.isdir(TREE)


def is_used() -> bool:
    """Whether no module has to be compiled at a start of a session."""
    if hasattr(package and package.loader, "everything"):  # that of bundle.py
        return True
    cached = package.cached if package else None
    return cached is not None and os.path.exists(cached)


def interpreter() -> str:
    """The path of the Python that runs this."""
    return sys.executable or os.readlink("/proc/self/exe")


def compile_command() -> str:
    """The command that makes byte code for this Python."""
    import shlex

    python = shlex.quote(interpreter())
    if IS_ARCHIVE:
        return f"./build.sh --for {python}"
    return f"{python} -m compileall -q {shlex.quote(PACKAGE)}"
