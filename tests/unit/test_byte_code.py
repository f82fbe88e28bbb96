"""The archive's byte code: a Python always compiles a module to the same bytes."""

from __future__ import annotations

import importlib.util
import marshal
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import CodeType
from typing import Iterator

import pytest

import byte_code
from helpers import PROJECT
from pythons import pythons

NAME = "package/module.py"
SOURCE = b'''"""Its docstring."""
from __future__ import annotations
import os
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Checked
    Text = Checked
else:
    Text = str
NAMES = ("path", "read", "a text", 7, 1.5, b"bytes")

class Thing:
    """Another one."""
    declared: Checked
    kept: Checked = "declared"
    async def method(self, word: Checked, *, key: Checked = "path") -> Checked:
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
    used = repr([(each.co_consts, each.co_names) for each in codes])
    assert "a text" in used
    assert "kept" in used
    for left_out in ("Its docstring.", "Another one.", "of a wrong kind", "Checked", "__future__"):
        assert left_out in SOURCE.decode()
        assert left_out not in used


# Names and lines of each function; the lines in the order of its instructions.
SAME_LINES = """
import byte_code, dis, marshal, sys
def functions(code):
    yield code.co_name, code.co_firstlineno, lines(code)
    for each in code.co_consts:
        if hasattr(each, "co_code"):
            yield from functions(each)
def lines(code):
    found = []
    for place, line in dis.findlinestarts(code):
        if line and not (found and found[-1][1] == line):
            found.append((place, line))
    return found
source = open(byte_code.__file__, "rb").read()
tree = byte_code.Untyped().visit(byte_code.ast.parse(source))
plain = compile(tree, "name", "exec", dont_inherit=True, optimize=2)
ours = marshal.loads(byte_code.compiled(source, "name")[16:])
assert len(list(functions(ours))) > 10
assert list(functions(ours)) == list(functions(plain))
print(len(marshal.dumps(plain)), len(marshal.dumps(ours)))
"""


@pytest.mark.parametrize("version", pythons())
def test_tracebacks_show_the_same_lines(version: str) -> None:
    words = [str(pythons()[version]), "-s", "-S", "-X", "no_debug_ranges", "-c", SAME_LINES]
    environ = {"PYTHONPATH": str(PROJECT / "archive")}
    result = subprocess.run(words, env=environ, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    plain, ours = map(int, result.stdout.split())
    newer = tuple(map(int, version.split(".")[:2])) >= (3, 11)
    assert ours < 0.95 * plain if newer else ours == plain


PACKAGES = {
    "portwrap/__init__.py": "",
    "portwrap/protocol.py": "",
    "portwrap/check/__init__.py": "",
    "portwrap/check/main.py": "",
    "portwrap/diagnostics/__init__.py": "",
    "portwrap/diagnostics/errors.py": "",
    "portwrap/diagnostics/remedies.py": "",
}
WHENCE = """
import marshal, os, sys
_, path, sources, kind = sys.argv
with open(path, "rb") as file:
    content = file.read()
code, index = marshal.loads(content[8:])
exec(marshal.loads(code))
install(index, content if kind == "bytes" else os.open(path, os.O_RDONLY), sources)
import portwrap.check.main, portwrap.diagnostics.errors, portwrap.diagnostics.remedies
for module in (portwrap.check.main, portwrap.diagnostics.errors, portwrap.diagnostics.remedies):
    print(module.__file__, hasattr(module.__loader__, "everything"))
assert portwrap.__loader__.everything() == content
"""


@pytest.mark.parametrize("kind", ["bytes", "descriptor"])
def test_what_no_start_needs_stays_in_its_source(tmp_path: Path, kind: str) -> None:
    names = {**PACKAGES, byte_code.LOADER: (PROJECT / byte_code.LOADER).read_text()}
    for name, source in names.items():
        path = tmp_path / "site-packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    made = tmp_path / "made.bin"
    made.write_bytes(byte_code.bundle(tmp_path / "site-packages"))
    archive = tmp_path / "of this name.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "site-packages").rglob("*.py"):
            file.write(path, str(path.relative_to(tmp_path)))
    words: list[str | Path] = [
        sys.executable,
        "-B",
        "-c",
        WHENCE,
        made,
        f"{archive}/site-packages",
        kind,
    ]
    result = subprocess.run(words, check=False, capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        f"{archive}/site-packages/portwrap/check/main.py False",
        f"{archive}/site-packages/portwrap/diagnostics/errors.py True",
        f"{archive}/site-packages/portwrap/diagnostics/remedies.py False",
    ], result.stderr


def compile_tree(folder: Path, *options: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run byte_code.py on a package in this folder."""
    loader = (PROJECT / byte_code.LOADER).read_bytes()
    for name, source in ((NAME, SOURCE), (byte_code.LOADER, loader)):
        module = folder / "sources" / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_bytes(source)
    program = PROJECT / "archive" / "byte_code.py"
    return subprocess.run(
        [sys.executable, "-S", *options, program, folder / "sources", folder / "made"],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_for_each_cache_tag_and_the_first_one_stays(tmp_path: Path) -> None:
    result = compile_tree(tmp_path)
    tag, version = sys.implementation.cache_tag, sys.version.split()[0]
    assert result.stdout == f"{tag} (compiled by Python {version})\n", result.stderr
    start, module = sorted(path for path in (tmp_path / "made").rglob("*") if path.is_file())
    assert module.relative_to(tmp_path / "made") == Path(byte_code.BYTE_CODE % tag)
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
