"""A copy of this checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from helpers import PROJECT


def fresh_copy(place: Path) -> None:
    """Copy what a clone would contain, with what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (PROJECT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, place / name, follow_symlinks=False)
