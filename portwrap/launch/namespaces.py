"""Namespaces, mounts and processes: small wrappers of Linux system calls.

Numbers are from the kernel's headers: linux/sched.h, linux/mount.h.
"""

from __future__ import annotations

import errno
import os

from ..diagnostics.errors import Failure, PortwrapError, failure_of
from ..kernel import libc, procfs
from ..kernel.interfaces import bring_up_loopback
from . import outer_filter

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8  # linux/mount.h
MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 0x20, 0x1000, 0x4000, 0x80000
MNT_DETACH = 2

FAILURES = {
    errno.ENOSPC: Failure.NAMESPACE_LIMIT,
    errno.EPERM: Failure.NAMESPACE_FORBIDDEN,
    errno.EACCES: Failure.NAMESPACE_FORBIDDEN,
    errno.EINVAL: Failure.NAMESPACE_MISSING,
    errno.ENOSYS: Failure.NAMESPACE_MISSING,
}
"""What the answers of the kernel mean (unshare(2), user_namespaces(7))."""


def unshare(flags: int) -> None:
    """unshare(2): leave the named namespaces for new ones. Raises OSError."""
    libc.call("unshare", flags)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2). Raises OSError with the target as its filename."""
    words = [os.fsencode(word) for word in (source, target, kind)]
    try:
        libc.call("mount", *words, flags, data.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from error


def detach(target: str) -> None:
    """umount2(2) with MNT_DETACH. Raises OSError."""
    libc.call("umount2", os.fsencode(target), MNT_DETACH)


def enter_new(flags: int) -> None:
    """Move this process into new user and network namespaces, as the same user.

    Raises PortwrapError: namespaces are switched off, used up or forbidden here.
    """
    why = outer_filter.why_not(outer_filter.NAMESPACE_CALLS)
    if why:
        raise PortwrapError(why, Failure.NAMESPACE_FORBIDDEN)
    uid, gid = os.geteuid(), os.getegid()
    # The map files of a process that is not dumpable belong to root (proc(5)).
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    try:
        unshare(CLONE_NEWUSER | CLONE_NEWNET | flags)
    except OSError as error:
        raise _refused(error, "unshare(CLONE_NEWUSER|CLONE_NEWNET)") from error
    try:
        # Linux >= 3.19 refuses gid_map from an unprivileged process (EPERM) until setgroups
        # says "deny" (CVE-2014-8989). The order is the point: do not sort.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        bring_up_loopback()
        _allow_ping(gid)
        if uid == 0:
            # uid 0 would be given every capability of its namespace back at each exec.
            libc.prctl(libc.PR_SET_SECUREBITS, libc.SECBIT_NOROOT_LOCKED)
    except OSError as error:
        raise _refused(error, f"setting up the user namespace ({error.filename})") from error


def _allow_ping(gid: int) -> None:
    """Let the user ping in this network namespace: a new one begins with nobody (icmp(7))."""
    try:
        _write("/proc/sys/net/ipv4/ping_group_range", f"{gid} {gid}")
    except OSError:
        pass  # a container with a /proc/sys that nobody can write


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def _refused(error: OSError, tried: str) -> PortwrapError:
    """The refusal of a namespace as a message."""
    message = f"{tried}: {error.strerror}"
    threads = procfs.thread_count("self")
    if error.errno == errno.EINVAL and threads > 1:
        return PortwrapError(f"{message}, with {threads} threads", Failure.NAMESPACE_THREADS)
    otherwise = failure_of(error, Failure.NAMESPACE)
    return PortwrapError(message, FAILURES.get(error.errno or 0, otherwise))
