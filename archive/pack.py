"""Repack shiv's archive: our start instead of shiv's, and the same bytes every time.

Usage: pack.py SHIV_ARCHIVE START_FILE OUTPUT

shiv writes its own members in the order of a directory listing and with the modes that the
umask left. Here they are sorted, with one time (SOURCE_DATE_EPOCH) and one mode. What each
start needs is stored, which is quicker to import; all else is compressed (see deflate.py).
Left out are shiv's own start, the README, which the wheel's METADATA repeats, and RECORD, a list
for uninstallers.
"""

import binascii
import os
import struct
import sys
import time
import zipfile

from deflate import deflate

SHEBANG = b"#!/usr/bin/env python3\n"
START = "__main__.py"
UNUSED = ("_bootstrap/", ".dist-info/RECORD")
RARELY_READ = ("check.py", "help.py", "messages.py", "probe.py", "METADATA", "LICENSE")
# To the keeper, as text.
ONLY_CARRIED = (
    "datagrams.py",
    "ends.py",
    "handover.py",
    "loader.py",
    "preparing.py",
    "relay.py",
    "watch.py",
    "worker.py",
)
# Imported by each start, of use to few of them: the price of a small file, 0.2 ms.
FOR_SOME = ("services.py", "views.py")

STORED, DEFLATED = 0, 8
VERSION = 20  # of the format: 2.0 knows deflate
UNIX_FILE = 0o100644 << 16
# APPNOTE.TXT of the zip format, 4.3.7, 4.3.12 and 4.3.16
LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")


def slim(name: str, content: bytes) -> bytes:
    if name.endswith(".dist-info/METADATA"):
        headers, _, _ = content.partition(b"\n\n")
        return headers + b"\n"
    return content


def read_members(shiv_archive: str, start_file: str) -> "dict[str, bytes]":
    with zipfile.ZipFile(shiv_archive) as source:
        names = [name for name in source.namelist() if not any(part in name for part in UNUSED)]
        members = {name: slim(name, source.read(name)) for name in names}
    if START not in members:
        raise SystemExit(f"{shiv_archive}: no {START}, not an archive that shiv made")
    with open(start_file, "rb") as file:
        members[START] = file.read()
    return members


def dos_time() -> "tuple[int, int]":
    # Zip has no time zone and counts from 1980, in steps of two seconds.
    seconds = max(int(os.environ["SOURCE_DATE_EPOCH"]), 315532800)
    year, month, day, hour, minute, second, *_ = time.gmtime(seconds)
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day


def archive(members: "dict[str, bytes]", offset: int) -> bytes:
    """The zip file of these members, to stand `offset` bytes after the beginning of a file."""
    files, directory = b"", b""
    for name in sorted(members):
        content, label = members[name], name.encode("ascii")
        small = name.endswith(RARELY_READ + ONLY_CARRIED + FOR_SOME)
        data = deflate(content) if small else content
        method = DEFLATED if small else STORED
        sizes = (binascii.crc32(content), len(data), len(content))
        head = (VERSION, 0, method, *dos_time(), *sizes, len(label), 0)
        place = offset + len(files)
        directory += CENTRAL.pack(b"PK\1\2", 3 << 8 | VERSION, *head, 0, 0, 0, UNIX_FILE, place)
        directory += label
        files += LOCAL.pack(b"PK\3\4", *head) + label + data
    count = len(members)
    end = END.pack(b"PK\5\6", 0, 0, count, count, len(directory), offset + len(files), 0)
    return files + directory + end


def main() -> None:
    shiv_archive, start_file, output = sys.argv[1:]
    members = read_members(shiv_archive, start_file)
    with open(output, "wb") as file:
        file.write(SHEBANG + archive(members, len(SHEBANG)))
    os.chmod(output, 0o755)


if __name__ == "__main__":
    main()
