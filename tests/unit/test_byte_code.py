"""The archive's byte code: a Python always compiles a module to the same bytes."""

from __future__ import annotations

import importlib.util
import marshal
import os
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Iterator

import pytest

import byte_code
from helpers import PROJECT
from pythons import pythons

NAME = "package/module.py"
SOURCE = b'''"""Its docstring."""
import os
NAMES = ("path", "read", "a text", 7, 1.5, b"bytes")

class Thing:
    """Another one."""
    async def method(self, word, *, key="path"):
        assert word, "of a wrong kind"
        inner = lambda: (self, word, key)
        return word in {"read", "write", "path", "close"} or [each for each in inner()]
'''

# Many of its strings are those of other modules: what else a process has loaded must not matter.
FRESH = "import byte_code, sys; print(byte_code.compiled({source!r}, {name!r}).hex())"
BUSY = """
import asyncio, ctypes, email.message, http.server, socket, unittest
source, name = {source!r}, {name!r}
others = [compile(source, name, "exec") for _ in range(3)]
"""


def compiled_by(python: Path, before: str = "", seed: str = "0", **variables: str) -> bytes:
    """What this Python makes of SOURCE."""
    program = (before + FRESH).format(source=SOURCE, name=NAME)
    environ = {"PYTHONPATH": str(PROJECT / "archive"), "PYTHONHASHSEED": seed, **variables}
    words = [str(python), "-s", "-S", "-X", "no_debug_ranges", "-c", program]
    printed = subprocess.run(words, env=environ, check=True, capture_output=True, text=True)
    return bytes.fromhex(printed.stdout)


@pytest.mark.parametrize("version", pythons())
def test_a_python_always_compiles_to_the_same_bytes(version: str) -> None:
    python = pythons()[version]
    wanted = compiled_by(python)
    assert compiled_by(python, BUSY) == wanted
    variables = {"LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONOPTIMIZE": "1", "PYTHONUTF8": "1"}
    assert compiled_by(python, **variables) == wanted


def code_objects(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


def test_what_it_compiles_to() -> None:
    data = byte_code.compiled(SOURCE, NAME)
    header, code = data[:16], marshal.loads(data[16:])
    unchecked = importlib.util.MAGIC_NUMBER + b"\1\0\0\0"
    assert header == unchecked + importlib.util.source_hash(SOURCE)
    codes = list(code_objects(code))
    assert len(codes) > 3
    assert {each.co_filename for each in codes} == {NAME}
    constants = repr([each.co_consts for each in codes])
    assert "a text" in constants
    for left_out in ("Its docstring.", "Another one.", "of a wrong kind"):
        assert left_out in SOURCE.decode()
        assert left_out not in constants


def compile_tree(folder: Path, *options: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run byte_code.py on a package in this folder."""
    module = folder / "sources" / NAME
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_bytes(SOURCE)
    program = PROJECT / "archive" / "byte_code.py"
    return subprocess.run(
        [sys.executable, "-S", *options, program, folder / "sources", folder / "made"],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_tree_for_each_cache_tag_and_the_first_one_stays(tmp_path: Path) -> None:
    result = compile_tree(tmp_path)
    tag, version = sys.implementation.cache_tag, sys.version.split()[0]
    assert result.stdout == f"{tag} (compiled by Python {version})\n", result.stderr
    start, module = sorted(path for path in (tmp_path / "made").rglob("*") if path.is_file())
    assert module.relative_to(tmp_path / "made") == Path(f"site-packages-{tag}/package/module.pyc")
    assert start.relative_to(tmp_path / "made") == Path("__main__.pyc")
    for made in (start, module):
        made.write_bytes(b"that of another patch release")
    again = compile_tree(tmp_path)
    assert (again.returncode, again.stdout) == (0, "")
    for made in (start, module):
        assert made.read_bytes() == b"that of another patch release"


def test_a_random_seed_is_refused(tmp_path: Path) -> None:
    result = compile_tree(tmp_path, seed="random")
    assert result.returncode == 1
    assert "random seed of hashes" in result.stderr
    assert not (tmp_path / "made").exists()
