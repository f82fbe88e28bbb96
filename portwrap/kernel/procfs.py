"""What /proc shows of processes: their descriptors and namespaces (proc(5))."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Union

    Process = Union[int, str]
    """The number of a process or of a thread, or "self"."""

FIELDS_SIZE = 4096
"""Bytes that a file of named lines has at most, before those that are looked for."""


def processes() -> list[int]:
    """The numbers of all processes that we may see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def namespace(process: Process, kind: str) -> str:
    """The name of one of its namespaces: "user", "net" and so on. Raises OSError."""
    return os.readlink(f"/proc/{process}/ns/{kind}")


def name_of(process: Process) -> str:
    """The name of its program; nothing if it is gone."""
    try:
        with open(f"/proc/{process}/comm", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def field(path: str, name: bytes) -> bytes:
    """What follows this name, to the end of its line; nothing if there is none. Raises OSError."""
    # To make a file object takes longer than all of this.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b"\n" + os.read(file, FIELDS_SIZE)
    finally:
        os.close(file)
    return data.partition(b"\n" + name)[2].partition(b"\n")[0].strip()


def late_fields(path: str, *names: bytes) -> list[bytes]:
    """The same for fields that may stand behind more lines than are read above."""
    found: dict[bytes, bytes] = {}
    with open(path, "rb") as file:
        for line in file:
            name, colon, value = line.partition(b":")
            if name + colon in names:
                found.setdefault(name + colon, value.strip())
    return [found.get(name, b"") for name in names]


def leader_of(thread: int) -> int:
    """The process that this thread belongs to. Raises OSError."""
    return int(field(f"/proc/{thread}/status", b"Tgid:"))


def thread_count(process: Process) -> int:
    """How many threads it runs. Raises OSError."""
    return len(os.listdir(f"/proc/{process}/task"))


def has_ended(directory: int) -> bool:
    """Whether the process of this directory of /proc is gone, or a zombie."""
    try:
        stat = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return True
    try:
        # proc_pid_stat(5): the state stands behind the name, which may hold anything but is in
        # brackets. A process whose first thread has ended before the others is no zombie yet.
        words = os.read(stat, 4096).rpartition(b")")[2].split()
        return words[0] in (b"Z", b"X") and int(words[17]) <= 1
    except OSError:
        return True
    finally:
        os.close(stat)


# ---- descriptors --------------------------------------------------------------------------------


def own_descriptors() -> list[int]:
    """The numbers of this process's file descriptors, and of one that the listing itself took."""
    return list(map(int, os.listdir("/proc/self/fd")))


def descriptors(process: Process) -> Iterator[tuple[int, str]]:
    """Each file descriptor of a process, and what it is; none where we may not look."""
    try:
        numbers = os.listdir(f"/proc/{process}/fd")
    except OSError:
        return  # another user's, or gone
    for number in numbers:
        try:
            yield int(number), os.readlink(f"/proc/{process}/fd/{number}")
        except OSError:
            continue


def link(process: Process, descriptor: int) -> str:
    """What one of its file descriptors is; nothing if it is closed, or the process gone."""
    try:
        return os.readlink(f"/proc/{process}/fd/{descriptor}")
    except OSError:
        return ""


def link_of(socket: int) -> str:
    """How /proc/PID/fd names the socket of this descriptor of ours (proc_pid_fd(5))."""
    return f"socket:[{os.fstat(socket).st_ino}]"


def files_in_flight(process: int, descriptor: int) -> int:
    """How many files are in messages that this Unix socket, or one that waits to be accepted from
    it, has not received (Linux 5.6). Raises OSError."""
    return int(field(f"/proc/{process}/fdinfo/{descriptor}", b"scm_fds:") or 0)
