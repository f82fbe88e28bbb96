"""Repack shiv's archive: our start instead of shiv's, and the same bytes every time.

Usage: pack.py SHIV_ARCHIVE START_FILE BYTE_CODE OUTPUT

BYTE_CODE is a folder of what byte_code.py has made, or an empty one.

shiv writes its own members in the order of a directory listing and with the modes that the
umask left. Here they are sorted, with one time (SOURCE_DATE_EPOCH) and one mode, and stored as
they are: that imports fastest, and a compressor's output depends on its version. A sum of
them stands in front, which each start compares.
Left out are shiv's own start and its settings, the README, which the wheel's METADATA repeats, and
RECORD, a list for uninstallers.
"""

from __future__ import annotations

import io
import os
import sys
import time
import zipfile
import zlib
from pathlib import Path

SHEBANG = b"#!/usr/bin/env python3\n"
SUM = b"# crc32 %08x; coding: this-copy-is-incomplete.copy-it-again\n"
"""Of everything behind it. Where the end of the file is missing, Python takes it for a script, and
its SyntaxError quotes this unknown encoding."""
START = "__main__.py"
UNUSED = ("_bootstrap/", "environment.json", ".dist-info/RECORD")
UNIX = 3
UNIX_FILE = 0o100644 << 16
FIRST_TIME = 315532800
"""1980, where the times of zip files begin."""


def slim(name: str, content: bytes) -> bytes:
    """METADATA without the README behind its headers."""
    if name.endswith(".dist-info/METADATA"):
        headers, _, _ = content.partition(b"\n\n")
        return headers + b"\n"
    return content


def read_members(shiv_archive: str, start_file: str, byte_code: str) -> dict[str, bytes]:
    """What the file is to hold, by name."""
    with zipfile.ZipFile(shiv_archive) as source:
        names = [name for name in source.namelist() if not any(part in name for part in UNUSED)]
        members = {name: slim(name, source.read(name)) for name in names}
    if START not in members:
        raise SystemExit(f"{shiv_archive}: no {START}, not an archive that shiv made")
    members[START] = Path(start_file).read_bytes()
    for path in Path(byte_code).iterdir():
        members[path.name] = path.read_bytes()
    return members


def archive(members: dict[str, bytes]) -> bytes:
    """The zip file of these members, behind the lines that stand in front of it."""
    moment = time.gmtime(max(int(os.environ["SOURCE_DATE_EPOCH"]), FIRST_TIME))
    file = io.BytesIO()
    file.write(SHEBANG + SUM % 0)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, moment[:6])
            info.create_system = UNIX
            info.external_attr = UNIX_FILE
            target.writestr(info, members[name])
    content = file.getvalue()[len(SHEBANG + SUM % 0) :]
    return SHEBANG + SUM % zlib.crc32(content) + content


def main() -> None:
    shiv_archive, start_file, byte_code, output = sys.argv[1:]
    Path(output).write_bytes(archive(read_members(shiv_archive, start_file, byte_code)))
    os.chmod(output, 0o755)


if __name__ == "__main__":
    main()
