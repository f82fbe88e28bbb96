"""Repack shiv's archive: our start instead of shiv's, and the same bytes every time.

Usage: pack.py SHIV_ARCHIVE START_FILE OUTPUT

shiv writes its own members in the order of a directory listing and with the modes that the
umask left. Here they are sorted, with one time (SOURCE_DATE_EPOCH) and one mode, and stored:
zlib's output differs between its versions, and importing stored members is quicker.
Left out are the README, which the wheel's METADATA repeats, and RECORD, a list for uninstallers.
"""

import os
import stat
import sys
import time
import zipfile

SHEBANG = b"#!/usr/bin/env python3\n"
START = "__main__.py"


def slim(name: str, content: bytes) -> bytes:
    if name.endswith(".dist-info/METADATA"):
        headers, _, _ = content.partition(b"\n\n")
        return headers + b"\n"
    return content


def read_members(shiv_archive: str, start_file: str) -> "dict[str, bytes]":
    with zipfile.ZipFile(shiv_archive) as source:
        names = [name for name in source.namelist() if not name.endswith(".dist-info/RECORD")]
        members = {name: slim(name, source.read(name)) for name in names}
    if START not in members:
        raise SystemExit(f"{shiv_archive}: no {START}, not an archive that shiv made")
    with open(start_file, "rb") as file:
        members[START] = file.read()
    return members


def member_info(name: str) -> zipfile.ZipInfo:
    # Zip has no time zone and counts from 1980.
    seconds = max(int(os.environ["SOURCE_DATE_EPOCH"]), 315532800)
    info = zipfile.ZipInfo(name, time.gmtime(seconds)[:6])
    info.create_system = 3  # Unix: the mode is in the upper half of external_attr
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def main() -> None:
    shiv_archive, start_file, output = sys.argv[1:]
    members = read_members(shiv_archive, start_file)
    with open(output, "wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(members):
                archive.writestr(member_info(name), members[name])
    os.chmod(output, 0o755)


if __name__ == "__main__":
    main()
