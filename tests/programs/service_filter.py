"""Run a command within the filter of system calls that a systemd service has.

    service_filter.py kill|EPERM NAME,@SET,… COMMAND [ARG ...]

As systemd with SystemCallFilter= (systemd.exec(5)): what is not in its own lists of these sets, or
named here, ends the caller, or fails.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys

KILL_PROCESS, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
UNKNOWN = -1  # seccomp_syscall_resolve_name(3)


def listed() -> dict[str, list[str]]:
    """systemd's sets: the names of system calls and of other sets."""
    words = ["systemd-analyze", "--no-pager", "syscall-filter"]
    output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    sets: dict[str, list[str]] = {}
    for line in output.stdout.splitlines():
        name = line.strip()
        if line.startswith("@"):
            last = sets[name] = []
        elif name and not name.startswith("#"):
            last.append(name)
    return sets


def calls(name: str, sets: dict[str, list[str]]) -> set[str]:
    """Those of a set, or the one of this name."""
    if not name.startswith("@"):
        return {name}
    return {call for member in sets[name] for call in calls(member, sets)}


def restrict(answer: int, allowed: set[str]) -> None:
    """For good, and for all that this process starts."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(answer)))
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number != UNKNOWN:
            library.seccomp_rule_add(context, ctypes.c_uint32(ALLOW), number, 0)
    if library.seccomp_load(context) != 0:
        sys.exit("the filter was not loaded")


if __name__ == "__main__":
    own, names = sys.argv[1:3]
    sets = listed()
    allowed = {call for name in ["@default", *names.split(",")] for call in calls(name, sets)}
    restrict(KILL_PROCESS if own == "kill" else ERRNO | getattr(errno, own), allowed)
    os.execvp(sys.argv[3], sys.argv[3:])
