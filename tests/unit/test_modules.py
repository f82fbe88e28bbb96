"""What the keeper imports from: the archive's content, as it is at the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import PROJECT

SIZE = 500_000
PROGRAM = """
import os, sys
from portwrap.launch import keeper_process
copy = keeper_process._copy_in_memory(os.open(sys.argv[1], os.O_RDONLY))
name = "/proc/self/fd/%d" % copy
with open(name, "rb") as file:
    print(os.readlink(name), len(file.read()), len(os.listdir("/proc/self/fd")))
"""


BUNDLE = """
import os, sys
from types import SimpleNamespace
from portwrap.launch import keeper_process
loader = SimpleNamespace(everything=lambda: bytes(500_000), start=8)
keeper_process.__spec__ = SimpleNamespace(loader=loader)
_, modules = keeper_process.importing_text()
print(len(os.listdir("/proc/self/fd")), modules is not None and os.fstat(modules).st_size)
"""


@pytest.mark.parametrize("limit", ["0", "100000", "unlimited"])
def test_a_limit_of_the_size_of_files(tmp_path: Path, limit: str) -> None:
    """It holds for files in memory, too (RLIMIT_FSIZE): then the file itself has to serve."""
    archive = tmp_path / "archive"
    archive.write_bytes(bytes(SIZE))
    words = ["prlimit", f"--fsize={limit}", sys.executable, "-c", PROGRAM, str(archive)]
    before = subprocess.run(words, capture_output=True, text=True, check=True, cwd=PROJECT)
    place, *rest = before.stdout.rsplit(" ", 2)
    assert list(map(int, rest)) == [SIZE, 6]  # 0, 1, 2, the one read from, its reader, the listing
    in_memory = place.startswith("/memfd:portwrap-modules")
    assert in_memory == (limit == "unlimited" and hasattr(os, "memfd_create"))
    assert in_memory or place == str(archive)


@pytest.mark.parametrize("limit", ["0", "100000", "unlimited"])
def test_the_same_for_byte_code(limit: str) -> None:
    """The keeper compiles the sources then, which it imports from where they are."""
    words = ["prlimit", f"--fsize={limit}", sys.executable, "-c", BUNDLE]
    result = subprocess.run(words, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert result.stdout == ("5 500000\n" if limit == "unlimited" else "4 False\n")
