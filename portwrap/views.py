"""Private views: ssh's configuration as ssh wants it, in a mount namespace of the session's own.

ssh refuses a file that its configuration includes unless root or the user owns it (ssh_config(5)).
In a user namespace with one user root's files look like nobody's, so that ssh refuses root's. Where
there are such files, their directories are covered with copies that the user owns; everything else
in those directories is bound into the copies, and so is what it was. Nothing on disk changes, and
no other process sees any of it.

A directory is covered, never a file: a mount on a file vanishes once the host renames a new file
over it.
"""

from __future__ import annotations

import os
import stat

from . import namespaces
from .network import find_executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SYSTEM_CONFIG = "/etc/ssh/ssh_config"
MOST_ENTRIES = 500
"""A directory with more of them is no place of configuration, and left alone."""

TMPFS = namespaces.MS_NOSUID | namespaces.MS_NODEV | namespaces.MS_NOEXEC


def needed(environ: Mapping[str, str]) -> dict[str, set[str]]:
    """The directories to cover, each with the names of the files to copy; nothing without ssh."""
    if os.geteuid() == 0 or find_executable("ssh", environ) is None:
        return {}  # root's files are root's in root's own namespace
    found: dict[str, set[str]] = {}
    home = environ.get("HOME", "")
    for config in (SYSTEM_CONFIG, f"{home}/.ssh/config"):
        for path in included(config, os.path.dirname(config), home):
            folder, name = os.path.split(os.path.realpath(path))
            if _is_roots(os.path.join(folder, name)) and _is_roots(folder):
                found.setdefault(folder, set()).add(name)
    return found


def _is_roots(path: str) -> bool:
    try:
        return os.stat(path).st_uid == 0
    except OSError:
        return False


def included(config: str, base: str, home: str) -> list[str]:
    """The files that this one includes, and those that they include; `base` is where relative
    names begin. Each is read once, even if they include each other."""
    found: dict[str, None] = {}
    unread = [config]
    while unread:
        for line in _lines(unread.pop()):
            for pattern in _patterns(line):
                if pattern.startswith("~/"):
                    pattern = home + pattern[1:]
                new = [path for path in _matching(os.path.join(base, pattern)) if path not in found]
                found.update(dict.fromkeys(new))
                unread += new
    return list(found)


def _lines(config: str) -> list[str]:
    try:
        with open(config, encoding="utf-8", errors="surrogateescape") as file:
            return file.readlines()
    except OSError:
        return []


def _patterns(line: str) -> list[str]:
    """The words of an Include line, which may stand in quotes; none for any other line."""
    keyword, rest = _keyword(line.strip(" \t\r\n\f"))
    if keyword.lower() != "include":
        return []
    words = []
    rest = rest.strip(" \t")
    while rest and not rest.startswith("#"):
        word, rest = _word(rest)
        words.append(word)
        rest = rest.lstrip(" \t")
    return words


def _keyword(line: str) -> tuple[str, str]:
    """The first word of a line, and what follows it and one "="."""
    if line.startswith('"'):
        keyword, _, rest = line[1:].partition('"')
    else:
        end = min((line.find(mark) for mark in ' \t\r\n"=' if mark in line), default=len(line))
        keyword, rest = line[:end], line[end:]
    rest = rest.lstrip(" \t\r\n")
    return keyword, rest[1:] if rest.startswith("=") else rest


def _word(text: str) -> tuple[str, str]:
    """The first word of the text as ssh takes it, and the rest: quotes keep blanks together, and
    so does a backslash before one."""
    word, quote, place = "", "", 0
    while place < len(text):
        char, after = text[place], text[place + 1 : place + 2]
        if char == "\\" and after and after in ("'\"\\" if quote else "'\"\\ "):
            word += after
            place += 1
        elif char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        elif not quote and char in " \t":
            break
        else:
            word += char
        place += 1
    return word, text[place:]


def _matching(pattern: str) -> Sequence[str]:
    """The paths that match, as glob(3) finds them."""
    folder, name = os.path.split(pattern)
    if not any(mark in pattern for mark in "*?["):
        return [pattern]
    if name[:1] == "*" and not any(mark in folder + name[1:] for mark in "*?["):
        # what everybody has; the module costs 8 ms of a start
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            return []
        return [f"{folder}/{each}" for each in names if each.endswith(name[1:]) and each[0] != "."]
    import glob

    return sorted(glob.glob(pattern))


def apply(covered: Mapping[str, set[str]]) -> str:
    """Cover these directories in a new mount namespace; return why that was not possible, or "".

    To be called with the rights over the user namespace, that is before exec.
    """
    if not covered:
        return ""
    if _has_lonely_automounts():
        return "autofs mounts of this node are private: they would not appear in a view"
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        # What the host mounts later (autofs, a project's file system) appears here as well.
        namespaces.mount("", "/", "", namespaces.MS_REC | namespaces.MS_SLAVE)
        for folder in sorted(covered):  # a directory before those in it
            _cover(folder, covered[folder])
    except OSError as error:
        return f"{error.filename or 'mount'}: {error.strerror}"
    return ""


def _has_lonely_automounts() -> bool:
    """Whether an autofs mount passes nothing on to other mount namespaces (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            if rest.startswith("autofs ") and not (" shared:" in fields or " master:" in fields):
                return True
    return False


def _cover(folder: str, copied: set[str]) -> None:
    """Put a directory of ours over this one: copies of some files, all else bound into it."""
    # Opened first: it goes on leading to the directory that is covered.
    original = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = os.listdir(original)
        if len(names) > MOST_ENTRIES:
            return
        namespaces.mount("tmpfs", folder, "tmpfs", TMPFS, "mode=0755")
        try:
            for name in names:
                _show(original, name, folder, name in copied)
            read_only = namespaces.MS_REMOUNT | namespaces.MS_BIND | namespaces.MS_RDONLY
            namespaces.mount("", folder, "", TMPFS | read_only)
        except OSError:
            namespaces.detach(folder)  # rather as it was than half of it
            raise
    finally:
        os.close(original)


def _show(original: int, name: str, folder: str, copied: bool) -> None:
    """Make one entry of the directory `original` appear in `folder`."""
    place = os.path.join(folder, name)
    status = os.stat(name, dir_fd=original, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=original), place)
        return
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(place)
    else:
        target = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if copied:
                _copy(original, name, target)
                os.fchmod(target, stat.S_IMODE(status.st_mode))
                return
        finally:
            os.close(target)
    source = f"/proc/self/fd/{original}/{name}"
    namespaces.mount(source, place, "", namespaces.MS_BIND | namespaces.MS_REC)


def _copy(original: int, name: str, target: int) -> None:
    source = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=original)
    try:
        while True:
            data = os.read(source, 1 << 16)
            if not data:
                return
            os.write(target, data)
    finally:
        os.close(source)
