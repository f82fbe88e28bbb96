"""One measured session: a command started in some way, and every process that this leaves.

Each session has a holder, a child of ours that the kernel makes the parent of every orphan below
it (PR_SET_CHILD_SUBREAPER). So the holder knows all processes of its session, however they were
forked, and nothing of them outlives it; it ends when we do (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .accounts import Account, fork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from .lab import Network

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE = 5.0
"""Seconds that a session has to end after SIGTERM before it is killed."""
STAT_STATE, STAT_PARENT = 0, 1  # fields of /proc/PID/stat after the name

libc = ctypes.CDLL(None, use_errno=True)


class Process(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    parent: int
    name: str

    @property
    def folder(self) -> Path:
        """Its directory in /proc."""
        return Path("/proc", str(self.pid))

    def runs(self, command: Sequence[str]) -> bool:
        """Whether this is the program that it runs."""
        try:
            return (self.folder / "cmdline").read_text().split("\0")[:-1] == list(command)
        except OSError:
            return False

    @property
    def is_init(self) -> bool:
        """Whether it is the first of a PID namespace: such a one is deaf to SIGTERM unless it
        handles that (pid_namespaces(7))."""
        try:
            text = (self.folder / "status").read_text()
        except OSError:
            return False
        return any(line.split()[2:][-1:] == ["1"] for line in text.splitlines() if "NSpid" in line)


def look_at(pid: int) -> Process | None:
    """A process; None if it has ended, or is a zombie."""
    try:
        head, _, tail = Path("/proc", str(pid), "stat").read_text().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    if fields[STAT_STATE] in "ZX":
        return None
    return Process(pid, int(fields[STAT_PARENT]), head.partition("(")[2])


def by_parent() -> dict[int, list[Process]]:
    """Every process, by its parent."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        process = look_at(int(entry)) if entry.isdigit() else None
        if process:
            children.setdefault(process.parent, []).append(process)
    return children


def children_of(pid: int) -> list[Process]:
    """The children of one process, without a look at all others (proc(5))."""
    found = []
    for task in _list(Path("/proc", str(pid), "task")):
        try:
            numbers = (task / "children").read_text().split()
        except OSError:
            continue  # it has ended
        found += [process for process in map(look_at, map(int, numbers)) if process]
    return found


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


HAS_CHILDREN = Path("/proc/thread-self/children").exists()
"""Whether the kernel lists them: a session among hundreds must not look at everybody's."""


def below(ancestor: int, children: Mapping[int, Sequence[Process]] | None = None) -> list[Process]:
    """Every process below this one; `children` is what by_parent said, where one has asked."""
    if children is None and not HAS_CHILDREN:
        children = by_parent()
    found: list[Process] = []
    todo = [ancestor]
    while todo:
        pid = todo.pop()
        more = children_of(pid) if children is None else children.get(pid, [])
        found += more
        todo += [process.pid for process in more]
    return found


class Session:
    """A command that runs, with everything around it. Use as a context manager."""

    def __init__(
        self,
        words: Sequence[str],
        environ: Mapping[str, str],
        account: Account,
        log: Path,
        network: Network | None = None,
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            os.chmod(log, 0o644)
            read, write = os.pipe()
            self.holder = fork()
            if self.holder == 0:
                os.close(read)
                _hold(words, environ, account, output.fileno(), write, network)
        os.close(write)
        with open(read, "rb") as told:
            self.started = int(told.readline() or 0)
        """When exec began, in nanoseconds of time.time_ns()."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask_to_end(self) -> None:
        """Have every process of the session ended, without waiting for that."""
        if self.holder:
            os.kill(self.holder, signal.SIGTERM)

    def end(self) -> None:
        """End every process of the session."""
        if self.holder:
            os.kill(self.holder, signal.SIGTERM)
            os.waitpid(self.holder, 0)
            self.holder = 0

    def processes(self, children: Mapping[int, Sequence[Process]] | None = None) -> list[Process]:
        """Every process of the session; see below() for `children`."""
        return below(self.holder, children)

    def is_over(self) -> bool:
        """Whether nothing of the session runs any more."""
        return not self.processes()

    def said(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")


def end_all(sessions: Sequence[Session]) -> None:
    """End these at the same time: each of them may take a while."""
    for session in sessions:
        session.ask_to_end()
    for session in sessions:
        session.end()


def _hold(
    words: Sequence[str],
    environ: Mapping[str, str],
    account: Account,
    output: int,
    write: int,
    network: Network | None,
) -> NoReturn:
    """Be the holder: start the command, and at SIGTERM end all that there is."""
    status = 1
    try:
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        os.setsid()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        parent = os.getppid()
        if network:
            network.enter(account)
        account.become()
        # A change of user or of capabilities clears the setting (prctl(2)): it comes after that.
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        os.write(write, b"%d\n" % time.time_ns())
        if os.fork() == 0:
            os.closerange(3, output)
            _start(words, environ, output, handled)
        os.close(write)
        while signal.sigwait(handled) == signal.SIGCHLD:
            _reap()
        _end_all()
        status = 0
    finally:
        os._exit(status)


def _start(
    words: Sequence[str], environ: Mapping[str, str], output: int, blocked: Sequence[int]
) -> NoReturn:
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.closerange(3, 256)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(words[0], list(words), dict(environ))
    except OSError as error:
        os.write(2, f"{words[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _reap() -> bool:
    """Bury the dead. False: there are no children left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _end_all() -> None:
    """SIGTERM for everything below, then SIGKILL, until nothing is left."""
    me = os.getpid()
    number, until = signal.SIGTERM, time.monotonic() + GRACE
    while _reap():
        for process in below(me):
            try:
                os.kill(process.pid, signal.SIGKILL if process.is_init else number)
            except OSError:
                pass  # it has just ended
        # Once more and once only: a second SIGTERM makes some servers skip their clean-up.
        number = signal.SIGKILL if time.monotonic() > until else signal.Signals(signal.SIGCONT)
        signal.sigtimedwait((signal.SIGCHLD,), 0.05)
