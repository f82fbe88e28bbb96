"""ssh's configuration as ssh accepts it, in a mount namespace of the session's own.

ssh refuses a file that its configuration includes unless root or the user owns it (ssh_config(5)).
In a user namespace with one user root's files look like nobody's, so that ssh refuses root's. Where
there are such files, their directories are covered with copies that the user owns; everything else
in those directories is bound into the copies, and so is what it was. Nothing on disk changes, and
no other process sees any of it (`ssh_cover.py`).
"""

from __future__ import annotations

import errno
import os
import stat

from .drivers.driver import find_executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import List, Tuple

    Token = Tuple[bool, List[Tuple[str, str]]]  # whether it is to be in one of these ranges

SYSTEM_CONFIG = "/etc/ssh/ssh_config"
MAX_SIZE = 1 << 20
"""Bytes of one file that are read, or copied."""
MAX_LINE = 8192
"""Characters of an Include line that are looked at: two of the longest paths."""
MAX_TEXT = 4 * MAX_SIZE
"""Bytes of all files together."""
MAX_FILES = 500
"""Included files. A configuration that includes more of them is left as it is."""
MAX_LOOKED_AT = 20_000
"""Directory entries that are compared with patterns, for all Include lines together."""
ANY_TEXT: Token = (True, [])
"""The token of "*"; read as a set it would match nothing."""
NEVER_COVERED = ("/proc", "/sys", "/dev")
"""The kernel's own: a copy of what stands there would not be that."""


def needed(environ: Mapping[str, str]) -> dict[str, set[str]]:
    """The directories to cover, each with the names of the files to copy; nothing without ssh, or
    where the configuration is none that anybody could mean."""
    if os.geteuid() == 0 or find_executable("ssh", environ) is None:
        return {}  # root's files are root's in root's own namespace
    home = environ.get("HOME", "")
    search = Search(home)
    included: list[str] = []
    for config in (SYSTEM_CONFIG, f"{home}/.ssh/config"):
        included += search.included(config, os.path.dirname(config))
    if search.is_spent:
        return {}
    found: dict[str, set[str]] = {}
    for folder, name in filter(None, map(_roots_place, included)):
        found.setdefault(folder, set()).add(name)
    return found


def _roots_place(path: str) -> tuple[str, str] | None:
    """The directory and the name of this file, if both are root's and may be covered."""
    try:
        real = os.path.realpath(path)
        folder, name = os.path.split(real)
        if os.stat(real).st_uid or os.stat(folder).st_uid:
            return None
    except OSError:
        return None
    kernels = any(f"{folder}/".startswith(f"{place}/") for place in NEVER_COVERED)
    return None if folder == "/" or kernels else (folder, name)


class Search:
    """Looks for the files that ssh's configuration includes, within limits: the files may be
    anything, and a session has to start all the same."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.entries = MAX_LOOKED_AT  # that may still be looked at
        self.files = MAX_FILES  # that may still be found
        self.text = MAX_TEXT  # bytes that may still be read

    @property
    def is_spent(self) -> bool:
        """Whether a limit was reached: not all has been looked at then."""
        return min(self.entries, self.files, self.text) <= 0

    def included(self, config: str, base: str) -> list[str]:
        """The files that this one includes, and those that they include; relative names begin at
        `base`. Each is read once, even if they include each other."""
        found: dict[str, None] = {}
        unread = [config]
        while unread and not self.is_spent:
            text = read_text(unread.pop())
            self.text -= len(text)
            for pattern in _included_patterns(text):
                if self.is_spent:
                    break
                if pattern.startswith("~/"):
                    pattern = self.home + pattern[1:]
                paths = self.matching(os.path.join(base, pattern))
                new = [path for path in paths if path not in found]
                found.update(dict.fromkeys(new))
                unread += new
                self.files -= len(new)
        return list(found)

    def matching(self, pattern: str) -> list[str]:
        """The paths that match, as glob(3) finds them. The module `glob` knows no limit, and costs
        8 ms of a start."""
        found = [""] if pattern.startswith("/") else ["."]
        for part in filter(None, pattern.split("/")):
            if not is_pattern(part):
                found = [f"{folder}/{part}" for folder in found]
                continue
            found = [path for folder in found for path in self.entries_like(folder, part)]
        return sorted(filter(os.path.lexists, found)) if is_pattern(pattern) else found

    def entries_like(self, folder: str, part: str) -> list[str]:
        """The entries of a directory that match this part of a pattern, if it is one."""
        tokens = tokens_of(part)
        names = []
        self.entries -= 1  # itself
        try:
            with os.scandir(folder or "/") as entries:
                for entry in entries:
                    self.entries -= 1
                    if self.is_spent:
                        return []
                    hidden = entry.name.startswith(".") and not part.startswith(".")
                    if not hidden and matches(entry.name, tokens):
                        names.append(f"{folder}/{entry.name}")
        except OSError:
            pass
        return names


def read_text(path: str) -> str:
    """What is read of a file: nothing, if it is anything but a regular one, which may have no end
    or keep whoever opens it waiting."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a device may do something
            return ""
        with open(open_regular(path), "rb") as file:
            return os.fsdecode(file.read(MAX_SIZE) or b"")  # None: it would have to wait
    except OSError:
        return ""


def open_regular(path: str, folder: int | None = None) -> int:
    """Open a regular file for reading, without waiting for anybody. Raises OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return descriptor


def _included_patterns(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if "include" in line.lower():
            # ssh reads it as a string of C, which a NUL ends
            yield from _patterns(line.partition("\0")[0][:MAX_LINE])


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


def is_pattern(text: str) -> bool:
    """Whether glob(3) would look for what matches this, rather than take it as it is."""
    return any(mark in text for mark in "*?[")


def tokens_of(part: str) -> list[Token]:
    """A part of a glob(7) pattern, one token for each character that it stands for."""
    tokens: list[Token] = []
    place = 0
    while place < len(part):
        char = part[place]
        # what may be the "]" of a set: not its first character
        end = part.find("]", place + (3 if part[place + 1 : place + 2] in ("!", "^") else 2))
        if char == "*":
            tokens.append(ANY_TEXT)
        elif char == "?":
            tokens.append((False, []))
        elif char == "[" and end > 0:
            tokens.append(_token_of_set(part[place + 1 : end]))
            place = end
        else:
            if char == "\\" and place + 1 < len(part):
                place += 1
            tokens.append((True, [(part[place], part[place])]))
        place += 1
    return tokens


def _token_of_set(text: str) -> Token:
    """The token of what stands in brackets: "abc", "a-z", "!abc"."""
    wanted = text[0] not in "!^"
    text = text if wanted else text[1:]
    ranges = []
    while text:
        width = 3 if len(text) > 2 and text[1] == "-" else 1
        ranges.append((text[0], text[width - 1]))
        text = text[width:]
    return wanted, ranges


def matches(name: str, tokens: Sequence[Token]) -> bool:
    """Whether the name matches. Only the last "*" ever takes more: `re` tries all of them again,
    which may take for ever (before Python 3.9)."""
    place = at = 0
    star, taken = -1, 0
    while place < len(name):
        if at < len(tokens) and tokens[at] == ANY_TEXT:
            star, taken = at, place
            at += 1
        elif at < len(tokens) and _fits(name[place], tokens[at]):
            place, at = place + 1, at + 1
        elif star >= 0:
            taken += 1
            place, at = taken, star + 1
        else:
            return False
    return all(token == ANY_TEXT for token in tokens[at:])


def _fits(char: str, token: Token) -> bool:
    wanted, ranges = token
    return any(first <= char <= last for first, last in ranges) == wanted
