"""The epolls of a process, and a socket's entries in them; the process is this one."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import socket
import subprocess
import threading
from contextlib import ExitStack
from queue import Queue
from typing import Callable, Iterator

import pytest

from portwrap.keeper import epolls as module
from portwrap.keeper.epolls import EPOLL_EVENT, Epolls, NotMovable, control, entries_of
from portwrap.kernel.callers import Callers
from portwrap.kernel.machines import this_machine

IN, OUT, EDGE, ONESHOT = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET, select.EPOLLONESHOT
ALWAYS = select.EPOLLERR | select.EPOLLHUP
DATA = 0x1234567890ABCDEF
MACHINE = this_machine()
KCMP = MACHINE.kcmp if MACHINE else 0

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def known() -> Iterator[Callable[..., Epolls]]:
    """Makes an Epolls, whose descriptors are closed afterwards."""
    made = []

    def make(kcmp: int = KCMP, hears_of_new: bool = True) -> Epolls:
        made.append(Epolls(Callers(), kcmp, hears_of_new))
        return made[-1]

    yield make
    for each in made:
        for leader in list(each.processes):
            each.forget(leader)
        for caller in each.callers.known.values():
            os.close(caller.pidfd)


def epoll(stack: ExitStack, *watched: tuple[socket.socket, int]) -> select.epoll:
    made = stack.enter_context(select.epoll())
    for each, events in watched:
        made.register(each, events)
    return made


def pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    stack.enter_context(one)
    stack.enter_context(other)
    return one, other


def found(epolls: Epolls, of: socket.socket) -> list[tuple[int, int, int, int]]:
    """Epoll, number, events and data of each entry of a socket of this process."""
    with of.dup() as taken:
        entries = epolls.entries(threading.get_native_id(), of.fileno(), taken)
    return [(e.epoll, e.number, *EPOLL_EVENT.unpack(e.event)) for e in entries]


def own(data: int) -> int:
    """What select.epoll sets of an entry's data: the file descriptor, and not the other half."""
    return data & 0xFFFFFFFF


@pytest.mark.parametrize("kcmp", [KCMP, 9999], ids=["kcmp", "without-kcmp"])
def test_entries(stack: ExitStack, known: Callable[..., Epolls], kcmp: int) -> None:
    one, other = pair(stack)
    level = epoll(stack, (one, IN), (other, OUT))
    edge = epoll(stack, (one, OUT | EDGE))
    epoll(stack, (other, IN))
    number = one.fileno()
    entries = sorted(found(known(kcmp), one))
    assert [(*entry[:3], own(entry[3])) for entry in entries] == [
        (level.fileno(), number, IN | ALWAYS, number),
        (edge.fileno(), number, OUT | EDGE | ALWAYS, number),
    ]


def test_data_of_its_own(stack: ExitStack, known: Callable[..., Epolls]) -> None:
    one, _ = pair(stack)
    made = epoll(stack)
    assert libc.epoll_ctl(made.fileno(), 1, one.fileno(), EPOLL_EVENT.pack(OUT, DATA)) == 0
    [(_, _, events, data)] = found(known(), one)
    assert (events, data) == (OUT | ALWAYS, DATA)


def test_another_file_under_the_same_number(stack: ExitStack, known: Callable[..., Epolls]) -> None:
    """It lives on under another one, and its entry with it."""
    one, other = pair(stack)
    made = epoll(stack, (one, IN))
    with one.dup():
        number = one.fileno()
        os.dup2(other.fileno(), number)
        with socket.socket(fileno=number) as now:
            assert found(known(), now) == []
            made.register(now, OUT)
            [entry] = found(known(), now)
            assert entry[:3] == (made.fileno(), number, OUT | ALWAYS)
        one.detach()  # its number was closed just now


def test_an_entry_under_an_earlier_number(stack: ExitStack) -> None:
    """Nobody could move it: the number is closed, or means something else."""
    one, _ = pair(stack)
    made = epoll(stack, (one, IN))
    with one.dup() as other:
        inode = os.fstat(one.fileno()).st_ino
        with pytest.raises(NotMovable):
            list(entries_of(os.getpid(), other.fileno(), inode, made.fileno()))


def test_an_entry_that_is_used_up(stack: ExitStack, known: Callable[..., Epolls]) -> None:
    """Added anew it would report errors at once (EPOLLONESHOT, epoll_ctl(2))."""
    one, _ = pair(stack)
    made = epoll(stack, (one, OUT | ONESHOT))
    assert len(found(known(), one)) == 1
    assert made.poll(0)
    with pytest.raises(NotMovable):
        found(known(), one)
    made.modify(one, OUT | ONESHOT)
    assert len(found(known(), one)) == 1


def test_a_list_is_kept_until_it_is_told_of_another_epoll(
    stack: ExitStack, known: Callable[..., Epolls], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair(stack)
    epolls, thread = known(), threading.get_native_id()
    assert found(epolls, one) == []
    second = epoll(stack, (one, IN))
    assert found(epolls, one) == []  # the control: nobody has told of it
    epolls.on_creation(thread)
    assert [entry[0] for entry in found(epolls, one)] == [second.fileno()]


def test_one_that_is_being_made_is_looked_for_until_it_is_there(
    stack: ExitStack, known: Callable[..., Epolls], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes it has been let go, but may not have it yet when another thread's turn comes."""
    one, _ = pair(stack)
    epolls, maker = known(), threading.get_native_id()

    def found_by_another() -> list[tuple[int, int, int, int]]:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(found(epolls, one)))
        thread.start()
        thread.join()
        return answers[0]

    epolls.on_creation(maker)
    assert found_by_another() == []
    made = epoll(stack, (one, IN))
    assert [entry[0] for entry in found_by_another()] == [made.fileno()]
    # After some time it has certainly been made: the list is kept again.
    monkeypatch.setattr(module, "SETTLE_TIMEOUT", -1.0)
    epolls.on_creation(maker)
    assert len(found_by_another()) == 1
    epoll(stack, (one, OUT))
    assert len(found_by_another()) == 1


def test_threads_that_make_one_and_are_never_heard_of_again(
    known: Callable[..., Epolls], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their numbers must not fill the keeper's memory."""
    now = [100.0]
    monkeypatch.setattr("portwrap.keeper.epolls.time.monotonic", lambda: now[0])
    process = known().process(os.getpid())
    for number in range(1, 101):
        process.begins(number)
    assert len(process.creating) == 100  # the control: each of them may still be at it
    now[0] += module.SETTLE_TIMEOUT + 1
    process.begins(101)
    assert list(process.creating) == [101]
    for number in range(1, 5000):
        process.begins(number)
    assert 0 < len(process.creating) <= module.MAX_CREATING + 1
    assert module.EVERY_THREAD in process.creating  # for those that are not among them
    now[0] += module.SETTLE_TIMEOUT + 1
    process.begins(1)
    assert list(process.creating) == [1]


def test_a_list_from_before_one_of_many_was_made_is_not_kept(
    stack: ExitStack, known: Callable[..., Epolls]
) -> None:
    one, _ = pair(stack)
    epolls, thread = known(), threading.get_native_id()
    process = epolls.process(os.getpid())
    for number in range(module.MAX_CREATING + 1):
        process.begins(thread + 1 + number)
    assert found(epolls, one) == []
    made = epoll(stack, (one, IN))  # by one of those whose number was not kept
    assert [entry[0] for entry in found(epolls, one)] == [made.fileno()]


def test_without_being_told_a_list_is_never_kept(
    stack: ExitStack, known: Callable[..., Epolls]
) -> None:
    one, _ = pair(stack)
    epolls = known(hears_of_new=False)
    assert found(epolls, one) == []
    epoll(stack, (one, IN))
    assert len(found(epolls, one)) == 1


def test_an_epoll_that_is_closed_meanwhile(stack: ExitStack, known: Callable[..., Epolls]) -> None:
    """And its number used for something else."""
    one, other = pair(stack)
    made = select.epoll()
    made.register(one, IN)
    epolls = known()
    assert len(found(epolls, one)) == 1
    number = made.fileno()
    made.close()
    assert found(epolls, one) == []
    made = select.epoll()
    assert made.fileno() == number
    epolls.on_creation(threading.get_native_id())
    assert found(epolls, one) == []
    made.close()
    os.dup2(other.fileno(), number)
    assert found(epolls, one) == []
    os.close(number)


CLONE_FILES = 0x400  # linux/sched.h


def test_a_thread_with_descriptors_of_its_own(
    stack: ExitStack, known: Callable[..., Epolls]
) -> None:
    """What is known of its process says nothing of its epolls, nor the other way round."""
    one, _ = pair(stack)
    taken = stack.enter_context(one.dup())
    epolls = known()
    assert found(epolls, one) == []
    threads: Queue[int] = Queue()
    looked = threading.Event()

    def run() -> None:
        assert libc.unshare(CLONE_FILES) == 0
        with select.epoll() as made:
            made.register(one, IN)
            threads.put(threading.get_native_id())
            looked.wait(10)

    thread = threading.Thread(target=run)
    thread.start()
    entries = epolls.entries(threads.get(timeout=10), one.fileno(), taken)
    looked.set()
    thread.join()
    assert [entry.number for entry in entries] == [one.fileno()]
    assert found(epolls, one) == []


def test_another_process_with_the_same_number(
    stack: ExitStack, known: Callable[..., Epolls]
) -> None:
    """What was known of the first one is not the second one's."""
    epolls = known()
    child = os.fork()
    if child == 0:
        os._exit(0)
    process = epolls.process(child)
    process.known = True
    os.waitpid(child, 0)
    with pytest.raises(OSError) as caught:
        epolls.process(child)
    assert caught.value.errno == errno.ESRCH
    assert child not in epolls.processes


# ---- as if another number were ours ------------------------------------------------------------


@pytest.mark.parametrize("taken", [False, True], ids=["free-number", "number-in-use"])
def test_an_entry_under_another_number(stack: ExitStack, taken: bool) -> None:
    """Whatever of ours has that number goes on having it, in its own epolls, too."""
    one, other = pair(stack)
    ours, theirs = epoll(stack), epoll(stack)
    number = 400
    if taken:
        os.dup2(other.fileno(), number, inheritable=True)
        ours.register(number, OUT)
    before = [os.fstat(number).st_ino, os.get_inheritable(number)] if taken else []
    control(theirs.fileno(), module.EPOLL_CTL_ADD, number, one.fileno(), EPOLL_EVENT.pack(OUT, 7))
    assert theirs.poll(0) == [(7, OUT)]
    if taken:
        assert [os.fstat(number).st_ino, os.get_inheritable(number)] == before
        assert ours.poll(0) == [(number, OUT)]
        os.close(number)
    else:
        with pytest.raises(OSError):
            os.fstat(number)
    control(theirs.fileno(), module.EPOLL_CTL_DEL, number, one.fileno(), EPOLL_EVENT.pack(0, 0))
    assert theirs.poll(0) == []


def test_the_number_may_be_that_of_the_file_or_of_the_epoll(stack: ExitStack) -> None:
    one, _ = pair(stack)
    theirs = epoll(stack)
    for number in (one.fileno(), theirs.fileno()):
        event = EPOLL_EVENT.pack(OUT, number)
        control(theirs.fileno(), module.EPOLL_CTL_ADD, number, one.fileno(), event)
    assert {data for data, _ in theirs.poll(0)} == {one.fileno(), theirs.fileno()}


def test_a_number_above_our_limit(stack: ExitStack) -> None:
    one, _ = pair(stack)
    theirs = epoll(stack)
    with pytest.raises(OSError) as caught:
        control(
            theirs.fileno(), module.EPOLL_CTL_ADD, 1 << 30, one.fileno(), EPOLL_EVENT.pack(1, 1)
        )
    assert caught.value.errno == errno.EBADF
    assert theirs.poll(0) == []


def test_one_that_was_missed(stack: ExitStack, known: Callable[..., Epolls]) -> None:
    """Who makes it could not be looked at: from then on no list is kept."""
    one, _ = pair(stack)
    epolls = known()
    assert found(epolls, one) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError):
            epolls.on_creation(os.getppid())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found(epolls, one) == []  # it is not there yet
    made = epoll(stack, (one, IN))
    assert [entry[0] for entry in found(epolls, one)] == [made.fileno()]


def test_so_many_processes_are_remembered(
    known: Callable[..., Epolls], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PROCESSES", 2)
    epolls = known()
    children = [subprocess.Popen(["sleep", "100"]) for _ in range(3)]
    try:
        for child in children:
            epolls.process(child.pid)
        assert list(epolls.processes) == [child.pid for child in children[1:]]
    finally:
        for child in children:
            child.kill()
            child.wait()
