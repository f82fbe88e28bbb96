"""What is taken from other processes: a child of this one, or this one itself."""

from __future__ import annotations

import array
import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from portwrap.kernel import procfs
from portwrap.kernel.addresses import pack, serves
from portwrap.kernel.callers import Memory
from portwrap.kernel.other_processes import take_socket

WAITS = "import os; print(flush=True); os.read(0, 1)"


def start(*descriptors: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-I", "-S", "-c", WAITS]
    process = subprocess.Popen(
        words, pass_fds=descriptors, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"\n"
    return process


def test_less_memory_than_was_wanted() -> None:
    """Behind the last page that is there."""
    size = os.sysconf("SC_PAGE_SIZE")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    # private, anonymous, readable and writable
    start = libc.mmap(None, ctypes.c_size_t(2 * size), 3, 0x22, -1, ctypes.c_long(0))
    assert libc.munmap(ctypes.c_void_p(start + size), ctypes.c_size_t(size)) == 0
    memory = Memory(28)
    assert memory.read(os.getpid(), start + size - 16, 16) == bytes(16)
    with pytest.raises(OSError, match="Bad address"):
        memory.read(os.getpid(), start + size - 16, 28)
    libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))


def test_a_socket_in_a_message() -> None:
    """Nobody has received it. What is beside it in the message does not stay with us."""
    ours, theirs = socket.socketpair()
    wanted, other = socket.socket(), socket.socket()
    files = array.array("i", [other.fileno(), wanted.fileno(), other.fileno()])
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    with start(theirs.fileno()) as process:
        theirs.close()
        before = len(os.listdir("/proc/self/fd"))
        found = take_socket(procfs.link_of(wanted.fileno()))
        assert found is not None
        assert procfs.link_of(found) == procfs.link_of(wanted.fileno())
        assert len(os.listdir("/proc/self/fd")) == before + 1
        os.close(found)
        nobody = socket.socket()
        assert take_socket(procfs.link_of(nobody.fileno())) is None
        assert len(os.listdir("/proc/self/fd")) == before + 1  # that one
        process.kill()
    for each in (ours, wanted, other, nobody):
        each.close()


@pytest.mark.parametrize(
    ("bound", "address", "served"),
    [
        ("198.18.0.1", "198.18.0.1", True),
        ("198.18.0.1", "198.18.0.2", False),
        ("0.0.0.0", "198.18.0.1", True),
        ("0.0.0.0", "2001:2::1", False),
        ("::", "2001:2::1", True),
        ("::", "198.18.0.1", True),
        ("::1", "2001:2::1", False),
        ("::ffff:198.18.0.1", "198.18.0.1", True),
        ("::ffff:198.18.0.1", "198.18.0.2", False),
        ("::ffff:0.0.0.0", "198.18.0.1", True),
        ("::ffff:0.0.0.0", "2001:2::1", False),
    ],
)
def test_whom_a_socket_serves(bound: str, address: str, served: bool) -> None:
    assert serves(pack(bound), pack(address)) == served


def test_no_address() -> None:
    with pytest.raises(OSError):
        pack("none")
    assert pack("127.0.0.1") == socket.inet_aton("127.0.0.1")


def test_a_field_behind_many_lines(tmp_path: Path) -> None:
    """Hundreds of groups, or what waits in an io_uring, come before it."""
    file = tmp_path / "status"
    file.write_text("Groups:\t" + "1000000000 " * 1000 + "\nSeccomp:\t2\nSeccomp_filters:\t1\n")
    names = (b"Seccomp_filters:", b"UserFiles:", b"Seccomp:")
    assert procfs.late_fields(str(file), *names) == [b"1", b"", b"2"]
