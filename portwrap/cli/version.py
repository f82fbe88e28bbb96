"""`--version`, and with `-v` what the start depends on."""

from __future__ import annotations

import sys

from .. import __version__
from . import byte_code


def text(program: str, verbose: bool) -> str:
    """What `--version` prints."""
    lines = [f"{program} {__version__}"]
    if verbose:
        python = ".".join(map(str, sys.version_info[:3]))
        how = "from byte code"
        if not byte_code.is_used():
            how = f"compiled from the sources at each start; faster: {byte_code.compile_command()}"
        lines += [f"Python {python} ({byte_code.interpreter()})", f"modules {how}"]
    return "".join(f"{line}\n" for line in lines)
