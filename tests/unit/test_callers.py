"""Threads of other processes: the process that each belongs to, and what is remembered of them."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from typing import Iterator

import pytest

from portwrap.keeper import agreement, epolls
from portwrap.kernel import callers as module
from portwrap.kernel.callers import Callers, Memory, is_gone


@pytest.fixture
def callers() -> Iterator[Callers]:
    made = Callers()
    yield made
    for thread in list(made.known):
        made.forget(thread)
    if made.flags_file >= 0:
        os.close(made.flags_file)


class Thread:
    """Another thread of this process, until it is told to end."""

    def __init__(self) -> None:
        self.ends, self.begun = threading.Event(), threading.Event()
        self.number = 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        self.begun.wait()

    def run(self) -> None:
        self.number = threading.get_native_id()
        self.begun.set()
        self.ends.wait()

    def end(self) -> None:
        self.ends.set()
        self.thread.join()


@pytest.mark.parametrize("has_thread_pidfds", [True, False])
def test_the_process_of_a_thread(callers: Callers, has_thread_pidfds: bool) -> None:
    """Also where the kernel has no pidfds of threads."""
    callers.has_thread_pidfds = has_thread_pidfds
    thread = Thread()
    try:
        for number in (os.getpid(), thread.number):
            assert callers.find_leader(number) == os.getpid()
            assert callers.leader_of(number) == os.getpid()
        assert (thread.number in callers.known) is has_thread_pidfds
    finally:
        thread.end()


def test_a_number_that_another_process_has_by_now(callers: Callers) -> None:
    """The pidfd of the one before is not trusted."""
    child = subprocess.Popen(["true"])
    callers.find_leader(child.pid)
    stale = callers.known[child.pid]
    child.wait()
    assert is_gone(stale.pidfd)
    callers.known[os.getpid()] = stale  # as if its number had been given to this process
    stale.leader = 1
    assert callers.find_leader(os.getpid()) == os.getpid()
    assert callers.known[os.getpid()] is not stale
    del callers.known[child.pid]  # its descriptor was closed with the other


def test_a_descriptor_of_a_thread_that_has_a_number_of_before(callers: Callers) -> None:
    child = subprocess.Popen(["true"])
    callers.find_leader(child.pid)
    child.wait()
    callers.known[os.getpid()] = callers.known.pop(child.pid)
    with socket.socket() as made:
        taken = callers.take_descriptor(os.getpid(), made.fileno())
        assert os.fstat(taken).st_ino == os.fstat(made.fileno()).st_ino
        os.close(taken)


def test_the_flags_of_a_descriptor(callers: Callers) -> None:
    """Also when the number stands for another file, and whichever one was looked at before."""
    with socket.socket() as one, socket.socket() as other:
        other.setblocking(False)
        number, spare = one.fileno(), os.dup(one.fileno())
        for _ in range(2):
            callers.find_leader(os.getpid())
            assert callers.read_flags(os.getpid(), number) == os.O_RDWR | os.O_CLOEXEC
            assert callers.read_flags(os.getpid(), other.fileno()) & os.O_NONBLOCK
            assert callers.read_flags(os.getpid(), number) == os.O_RDWR | os.O_CLOEXEC
            os.dup2(other.fileno(), number, inheritable=True)
            assert callers.read_flags(os.getpid(), number) == os.O_RDWR | os.O_NONBLOCK
            os.dup2(spare, number, inheritable=False)
        os.close(spare)


@pytest.mark.parametrize("is_known", [True, False])
def test_the_flags_where_the_number_is_another_threads(callers: Callers, is_known: bool) -> None:
    """It is another process's by now, or that of a thread of which there is no pidfd."""
    with socket.socket() as made:
        number = made.fileno()
        made.setblocking(False)
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[number])
        try:
            callers.find_leader(child.pid)
            assert not callers.read_flags(child.pid, number) & os.O_CLOEXEC
        finally:
            child.communicate()
        if is_known:
            callers.find_leader(os.getpid())
        assert callers.read_flags(os.getpid(), number) & os.O_CLOEXEC
        made.setblocking(True)
        assert not callers.read_flags(os.getpid(), number) & os.O_NONBLOCK


def test_so_many_are_remembered(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLERS", 2)
    threads = [Thread() for _ in range(4)]
    try:
        for thread in threads:
            callers.find_leader(thread.number)
        assert list(callers.known) == [thread.number for thread in threads[2:]]
    finally:
        for thread in threads:
            thread.end()


def test_the_keeper_counts_what_it_remembers() -> None:
    """Those are not for connections that it relays; the last three are the exchanger's."""
    most = module.MAX_CALLERS + epolls.MAX_PROCESSES + 3
    assert most <= agreement.REMEMBERED_DESCRIPTORS


def test_memory() -> None:
    text = b"0123456789"
    pointer = ctypes.create_string_buffer(text)
    address = ctypes.addressof(pointer)
    memory = Memory(8)
    assert memory.read(os.getpid(), address, 8) == text[:8]
    assert memory.read(os.getpid(), address + 2, 3) == text[2:5]
    assert module.read_memory_file(os.getpid(), address, 8) == text[:8]
    with pytest.raises(OSError):
        memory.read(os.getpid(), 8, 8)
