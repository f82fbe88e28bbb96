"""Repack shiv's archive: our start instead of shiv's, and the same bytes every time.

Usage: pack.py SHIV_ARCHIVE START_FILE OUTPUT

shiv writes its own members in the order of a directory listing and with the modes that the
umask left. Here they are sorted, with one time (SOURCE_DATE_EPOCH) and one mode, and stored as
they are: that imports fastest, and a compressor's output depends on its version.
Left out are shiv's own start, the README, which the wheel's METADATA repeats, and RECORD, a list
for uninstallers.
"""

from __future__ import annotations

import os
import sys
import time
import zipfile

SHEBANG = b"#!/usr/bin/env python3\n"
START = "__main__.py"
UNUSED = ("_bootstrap/", ".dist-info/RECORD")
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


def read_members(shiv_archive: str, start_file: str) -> dict[str, bytes]:
    """What the file is to hold, by name."""
    with zipfile.ZipFile(shiv_archive) as source:
        names = [name for name in source.namelist() if not any(part in name for part in UNUSED)]
        members = {name: slim(name, source.read(name)) for name in names}
    if START not in members:
        raise SystemExit(f"{shiv_archive}: no {START}, not an archive that shiv made")
    with open(start_file, "rb") as file:
        members[START] = file.read()
    return members


def write(output: str, members: dict[str, bytes]) -> None:
    """The zip file of these members, behind the line that names its interpreter."""
    moment = time.gmtime(max(int(os.environ["SOURCE_DATE_EPOCH"]), FIRST_TIME))
    with open(output, "wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(members):
                info = zipfile.ZipInfo(name, moment[:6])
                info.create_system = UNIX
                info.external_attr = UNIX_FILE
                archive.writestr(info, members[name])
    os.chmod(output, 0o755)


def main() -> None:
    shiv_archive, start_file, output = sys.argv[1:]
    write(output, read_members(shiv_archive, start_file))


if __name__ == "__main__":
    main()
