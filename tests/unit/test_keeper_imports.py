"""What the keeper loads of the standard library: each session keeps that in memory."""

from __future__ import annotations

import subprocess

import pytest

from helpers import PROJECT
from pythons import pythons

KEEPER = [f"portwrap.keeper.{path.stem}" for path in (PROJECT / "portwrap/keeper").glob("[!_]*.py")]
LOADED = """
import sys
from importlib import import_module
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    import_module(name)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
ALLOWED = {"errno", "fcntl", "marshal", "os", "select", "struct", "time"}
ALLOWED |= {"abc", "genericpath", "posixpath", "stat"}  # of os


@pytest.mark.parametrize("version", pythons())
def test_little_but_modules_in_c(version: str) -> None:
    """`socket` alone would be 1.1 MB."""
    words = [str(pythons()[version]), "-I", "-S", "-B", "-c", LOADED, str(PROJECT), *KEEPER]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "portwrap" in loaded
    others = loaded - ALLOWED - {"portwrap"}
    assert {name for name in others if not name.startswith("_")} == set()
