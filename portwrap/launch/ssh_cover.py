"""ssh's configuration covered with copies that the user owns, where `ssh_config.py` has found it.

A directory is covered, never a file: a mount on a file vanishes once the host renames a new file
over it.
"""

from __future__ import annotations

import os
import stat

from . import namespaces, outer_filter
from .ssh_config import MAX_SIZE, open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ENTRIES = 500
"""A directory with more of them is no place of configuration, and left alone."""
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
TMPFS = namespaces.MS_NOSUID | namespaces.MS_NODEV | namespaces.MS_NOEXEC


def apply(covered: Mapping[str, set[str]]) -> str:
    """Cover these directories in a new mount namespace; return why that was not possible, or "".

    To be called with the rights over the user namespace, that is before exec.
    """
    why = outer_filter.why_not(["mount"])
    if why:
        return why
    try:
        if _has_lonely_automounts():
            return "autofs mounts of this node are private: they would not appear in the session"
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
        if len(names) > MAX_ENTRIES:
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
    elif copied and stat.S_ISREG(status.st_mode) and status.st_size <= MAX_SIZE:
        _copy(original, name, place, stat.S_IMODE(status.st_mode))
        return
    else:
        os.close(os.open(place, CREATE, 0o600))
    source = f"/proc/self/fd/{original}/{name}"
    namespaces.mount(source, place, "", namespaces.MS_BIND | namespaces.MS_REC)


def _copy(original: int, name: str, place: str, mode: int) -> None:
    """Copy a file of the directory `original`, which is a regular one, to this place."""
    with open(open_regular(name, original), "rb") as source:
        data = source.read(MAX_SIZE) or b""
    with open(os.open(place, CREATE, 0o600), "wb") as target:
        target.write(data)
        os.fchmod(target.fileno(), mode)
