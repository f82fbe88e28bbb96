"""The archive's packer: whatever Python runs it, it writes the same bytes."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from helpers import PROJECT
from pythons import pythons

PACK = PROJECT / "archive" / "pack.py"
START = "__main__.py"
MEMBERS = {
    START: b"shiv's own\n",
    "_bootstrap/__init__.py": b"shiv's own\n",
    "environment.json": b"{}",
    "site-packages/pack/__init__.py": b"",
    "site-packages/pack/b.py": 1000 * b"the same again\n",
    "site-packages/pack/a.py": b"x = 1\n",
    "site-packages/pack-1.dist-info/METADATA": b"Name: pack\n\nThe README, once more\n",
    "site-packages/pack-1.dist-info/RECORD": b"pack/a.py,,\n",
}
FIRST_LINES = re.compile(rb"#!/usr/bin/env python3\n# crc32 ([0-9a-f]{8}); coding: [\w.-]+\n(?=PK)")


def packed(folder: Path, python: Path | str = sys.executable, **variables: str) -> bytes:
    """The file that pack.py makes of MEMBERS, in the order in which they stand there."""
    shiv, start, output = folder / "shiv.pyz", folder / START, folder / "packed.pyz"
    start.write_text("our own\n")
    with zipfile.ZipFile(shiv, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    byte_code = folder / "byte code"
    byte_code.mkdir(exist_ok=True)
    (byte_code / "byte-code-tag.bin").write_bytes(b"byte code")
    environ = {"SOURCE_DATE_EPOCH": "1577836800", **variables}
    subprocess.run([python, PACK, shiv, start, byte_code, output], env=environ, check=True)
    assert output.stat().st_mode & 0o7777 == 0o755
    return output.read_bytes()


def test_every_python_writes_the_same_bytes(tmp_path: Path) -> None:
    wanted = packed(tmp_path)
    assert len(pythons()) > 1
    for seed, (version, python) in enumerate(pythons().items()):
        other = packed(tmp_path, python, PYTHONHASHSEED=str(seed), TZ="Asia/Tokyo")
        assert other == wanted, version


def test_another_text_or_time_changes_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    before = packed(tmp_path)
    assert packed(tmp_path, SOURCE_DATE_EPOCH="1700000000") != before
    monkeypatch.setitem(MEMBERS, "site-packages/pack/a.py", b"x = 2\n")
    assert packed(tmp_path) != before


def test_what_is_packed(tmp_path: Path) -> None:
    content = packed(tmp_path)
    lines = FIRST_LINES.match(content)
    assert lines
    assert int(lines[1], 16) == zlib.crc32(content[lines.end() :])
    with zipfile.ZipFile(tmp_path / "packed.pyz") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            START,
            "byte-code-tag.bin",
            "site-packages/pack-1.dist-info/METADATA",
            "site-packages/pack/__init__.py",
            "site-packages/pack/a.py",
            "site-packages/pack/b.py",
        ]
        assert archive.read(START) == b"our own\n"
        assert archive.read("site-packages/pack-1.dist-info/METADATA") == b"Name: pack\n\n"[:-1]
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.create_system, info.external_attr) == (3, 0o100644 << 16)
            assert (info.extra, info.comment) == (b"", b"")


def test_a_time_before_that_of_zip_files_is_their_first(tmp_path: Path) -> None:
    packed(tmp_path, SOURCE_DATE_EPOCH="0")
    with zipfile.ZipFile(tmp_path / "packed.pyz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
