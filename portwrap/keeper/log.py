"""The keeper's lines in the job's log.

The log's file system may stand still for minutes, and to poll(2) a regular file is always writable.
So whoever writes a line does nothing else: a child of the keeper, or the keeper at its very end.
"""

from __future__ import annotations

import os
import select
import time

import _signal as signal

from ..kernel.processes import close_all_but

WRITE_TIMEOUT = 10
"""Seconds after which whoever writes a line is ended, where the file system lets it."""
PROMPT_TIMEOUT = 0.1
"""Seconds to wait for a child that writes: lines come in order then, and no child is left over."""
REAP_PAUSE = 0.001
"""Seconds between two looks at it."""
MAX_PENDING = 8
"""Lines that wait until the account may have a process again."""
S_IFMT, S_IFREG = 0o170000, 0o100000  # inode(7)


class Log:
    """Writes lines to standard error."""

    def __init__(self, program: str, verbose: bool) -> None:
        self.program = program
        self.verbose = verbose
        self.writer = 0  # the child that writes; 0: none
        self.pending: list[str] = []  # there was no process to write them
        self.is_file = os.fstat(2).st_mode & S_IFMT == S_IFREG

    def explain(self, text: str) -> None:
        """Log what happens, where the user has asked for it."""
        if self.verbose:
            self.report(text)

    def report(self, text: str) -> None:
        """Have a child log this; while an earlier one is stuck, do without."""
        if self.is_writing():
            return
        self.pending = [*self.pending[: MAX_PENDING - 1], text]
        try:
            self.writer = os.fork()
        except OSError:
            # The account may have no more processes. poll(2) is right about pipes and terminals.
            if not self.is_file:
                self.write()
            return
        if self.writer == 0:
            try:
                self.write_last()
            finally:
                os._exit(0)
        self.pending.clear()
        until = time.monotonic() + PROMPT_TIMEOUT
        while self.is_writing() and time.monotonic() < until:
            time.sleep(REAP_PAUSE)

    def is_writing(self) -> bool:
        """Whether a child that writes is left."""
        try:
            if self.writer and os.waitpid(self.writer, os.WNOHANG)[0]:
                self.writer = 0
        except ChildProcessError:
            self.writer = 0  # the keeper's, and this is a worker
        return self.writer != 0

    def write_last(self, *texts: str) -> None:
        """Log what is pending and this, and do nothing else any more: every other file descriptor
        is closed before, and the process may be stuck then, or ended by SIGALRM."""
        os.close(0)  # room to list the others
        try:
            close_all_but({2})
        except OSError:
            pass  # a security module forbids to list them: the end of the process closes them
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.alarm(WRITE_TIMEOUT)
        self.pending += texts
        self.write()

    def write(self) -> None:
        """Write what is pending; where nobody reads, do without."""
        text = "".join(f"{self.program}: {line}\n" for line in self.pending)
        self.pending.clear()
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        try:
            if poll.poll(0):
                os.write(2, text.encode())
        except OSError:
            pass
