"""Who can change this program: its files, and the directories in which it is found.

Each session of each user runs it. Whoever can write to the file can make it another one, and
whoever can write to a directory above it can put another one in its place (rename(2)).
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
import sys

from ..diagnostics.errors import Failure, reason_of
from .report import OK, WARNING, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_SHOWN = 3
"""Places that the fact names."""
MAX_LINKS = 40
"""Symbolic links on the way to a file: the kernel follows no more (path_resolution(7))."""
ACL = "system.posix_acl_access"


class Weakness:
    """A file or directory that others can write to: who, and the command that forbids it."""

    def __init__(self, path: str, who: str, command: str) -> None:
        self.path = path
        self.who = who
        self.command = command  # without the path


def check_program() -> Result:
    """Whether only root and the owner of this program can change what its sessions run."""
    files = own_files()
    try:
        found = weaknesses(files)
    except OSError as error:
        return Result("program", WARNING, reason_of(error), Failure.PROGRAM_WRITABLE)
    if not found:
        return Result("program", OK, f"{files[0]}: only root and its owner can change it")
    facts = [f"{weakness.path}: {weakness.who}" for weakness in found]
    more = f"; and {len(facts) - MAX_SHOWN} more" if len(facts) > MAX_SHOWN else ""
    fact = "; ".join(facts[:MAX_SHOWN]) + more
    result = Result("program", WARNING, fact, Failure.PROGRAM_WRITABLE)
    result.command = " && ".join(_commands(found))
    return result


def _commands(found: Iterable[Weakness]) -> list[str]:
    """What takes the rights away, each command once."""
    paths: dict[str, list[str]] = {}
    for weakness in found:
        paths.setdefault(weakness.command, []).append(shlex.quote(weakness.path))
    return [" ".join([command, *those]) for command, those in paths.items()]


def own_files() -> list[str]:
    """The file that was started, and those that it imports: the archive, or a package."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    place = package
    while place != "/" and not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        return [place]  # the archive
    files = [os.path.join(folder, name) for folder, _, names in os.walk(package) for name in names]
    return [*filter(os.path.isfile, [os.path.abspath(sys.argv[0])]), *sorted(files)]


def weaknesses(files: Iterable[str]) -> list[Weakness]:
    """What others than root and the owner of these files can change on the way to them.

    Who runs this is no other: it is about what runs in the sessions of this account.
    """
    found: dict[str, Weakness] = {}
    seen: set[str] = set()
    for file in files:
        trusted = {0, os.geteuid(), os.stat(file).st_uid}
        for path in on_the_way(file):
            if path not in seen:
                seen.add(path)
                weakness = _weakness_of(path, trusted)
                if weakness is not None:
                    found[path] = weakness
    return list(found.values())


def on_the_way(path: str) -> Iterator[str]:
    """Every directory, symbolic link and file that the kernel looks at to find this file."""
    yield "/"
    parts, place, links = path.split("/"), "", 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            place = os.path.dirname(place).rstrip("/")
            continue
        entry = f"{place}/{part}"
        yield entry
        if os.path.islink(entry) and links < MAX_LINKS:
            links += 1
            target = os.readlink(entry)
            parts = target.split("/") + parts
            place = "" if target.startswith("/") else place
        else:
            place = entry


def _weakness_of(path: str, trusted: set[int]) -> Weakness | None:
    status = os.lstat(path)
    if status.st_uid not in trusted:
        return Weakness(path, f"it belongs to {_user(status.st_uid)}", "chown -h root")
    if stat.S_ISLNK(status.st_mode):
        return None  # it has no mode: who can replace it is who can write to its directory
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return None  # nobody renames there what is another one's (unlink(2), EPERM)
    if status.st_mode & stat.S_IWOTH:
        return Weakness(path, "everybody can write to it", "chmod o-w")
    if status.st_mode & stat.S_IWGRP and not _is_private(path, status):
        return Weakness(path, f"group {_group(status.st_gid)} can write to it", "chmod g-w")
    return None


def _is_private(path: str, status: os.stat_result) -> bool:
    """Whether this is the group that an account has for itself alone, under its own name. With an
    access control list, what looks like the group's right is what others have at most (acl(5))."""
    try:
        group = grp.getgrgid(status.st_gid)
        owner = pwd.getpwuid(status.st_uid).pw_name
        listed = ACL in os.listxattr(path)
    except (KeyError, OSError):
        return False
    return group.gr_name == owner and set(group.gr_mem) <= {owner} and not listed


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return f"gid {number}"
