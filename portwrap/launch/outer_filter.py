"""The seccomp filter around the job, if there is one: what it would end us for."""

from __future__ import annotations

from ..kernel.seccomp_filter import has_outer_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAMESPACE_CALLS = ("unshare", "setns")
NATIVE_CALLS = (
    "pidfd_open",
    "pidfd_getfd",
    "pidfd_send_signal",
    "seccomp",
    "kcmp",
    "process_vm_readv",
)
_known: list[set[str]] = []
"""What `fatal` has found."""


def fatal() -> set[str]:
    """The unusual system calls that end whoever makes them here."""
    if not _known:
        _known.append(_find())
    return _known[0]


def _find() -> set[str]:
    if not has_outer_filter():
        return set()
    from ..kernel import fatal_calls  # few jobs have one

    return set(fatal_calls.find())


def why_not(calls: Iterable[str]) -> str:
    """Why we must not make one of these; nothing if we may make all of them."""
    found = next(filter(fatal().__contains__, calls), "")
    return f"a seccomp filter kills the callers of {found}" if found else ""
