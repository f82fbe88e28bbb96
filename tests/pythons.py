"""The Pythons of this machine that can run our code."""

from __future__ import annotations

import functools
import glob
import os
import subprocess
import sys
from pathlib import Path

from conftest import TEST_ROOT

PATTERNS = (
    str(TEST_ROOT / "pythons" / "*" / "bin" / "python3"),
    os.path.expanduser("~/.pyenv/versions/3.*/bin/python3"),
    "/usr/bin/python3",
    sys.executable,
)
ASKED = "import sys; print(sys.version_info >= (3, 8), sys.version.split()[0])"


@functools.lru_cache(maxsize=None)
def pythons() -> dict[str, Path]:
    """One Python of each version, by its version."""
    found: dict[str, Path] = {}
    for path in (path for pattern in PATTERNS for path in glob.glob(pattern)):
        new_enough, version = subprocess.check_output([path, "-c", ASKED], text=True).split()
        if new_enough == "True":
            found[version] = Path(path)
    return dict(sorted(found.items()))
