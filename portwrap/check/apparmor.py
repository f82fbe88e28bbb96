"""AppArmor profiles that allow user namespaces, where AppArmor denies them to programs without a
profile (Ubuntu 24.04 and later)."""

from __future__ import annotations

import os

from ..diagnostics.errors import Failure, PortwrapError
from ..diagnostics.places import own_path
from ..launch.drivers.driver import find_executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

HEAD = """\
# User namespaces for these programs, where AppArmor denies them to programs without a profile.
# Anyone who can modify these files gains the same right: keep them where only administrators can
# write. Made by --check --apparmor; to load it: apparmor_parser -r THIS_FILE
abi <abi/4.0>,
include <tunables/global>
"""
PROFILE = """
profile {name} {path} flags=(unconfined) {{
  userns,
  include if exists <local/{name}>
}}
"""


def profiles(program: str, others: Sequence[str], environ: Mapping[str, str]) -> str:
    """Profiles for our program, which has this name, and for others: paths, or names on PATH.

    A profile belongs to the path that is exec'ed (apparmor.d(5)): where a program runs us in its
    own process, it is that program's. Raises PortwrapError if one does not exist.
    """
    by_path = {own_path(): program}
    for name in others:
        by_path.setdefault(_located(name, environ), _profile_name(name, by_path.values()))
    parts = [PROFILE.format(name=name, path=literally(path)) for path, name in by_path.items()]
    return HEAD + "".join(parts)


def _profile_name(path: str, taken: Collection[str]) -> str:
    """A name for the profile of this program: its own where it can be one."""
    base = "".join(c if c.isalnum() or c in "._-" else "_" for c in os.path.basename(path))
    names = (base, *(f"{base}-{number}" for number in range(2, len(taken) + 2)))
    return next(name for name in names if name not in taken)


def _located(name: str, environ: Mapping[str, str]) -> str:
    found = name if "/" in name and os.path.isfile(name) else None
    if "/" not in name:
        found = find_executable(name, environ)
    if found is None:
        where = "no such file" if "/" in name else "not found on PATH"
        raise PortwrapError(f"{name}: {where}", Failure.APPARMOR_PROGRAM, subject=name)
    return os.path.realpath(found)


def literally(path: str) -> str:
    """The path as apparmor.d(5) takes it, with nothing in it that stands for something else."""
    escaped = "".join(f"\\{char}" if char in '\\"*?[]{}^@' else char for char in path)
    return f'"{escaped}"'
