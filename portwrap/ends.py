"""The ends: the keeper's view of those whose end it waits for, and what it does then.

Part of the keeper's lean interpreter (see `watch.py`), from when it waits for the network helper.
"""

from __future__ import annotations

import posix
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    import _socket

    from .worker import Worker


class Ends:
    """The command, the network helper, the workers, and the keeper's end of the lifeline."""

    def __init__(self, settings: dict[str, Any], lifeline: _socket.socket) -> None:
        self.program = settings["program"]
        self.verbose = settings["verbose"]
        self.lifeline = lifeline
        self.command = settings["command"]  # process number
        self.process = settings["process"]  # its pidfd, or the directory of its /proc entry
        self.has_pidfd = bool(settings["has_pidfd"])
        self.ready = False  # what fails from here on ends the command; before, there is none
        self.helper = settings["helper"]  # process number; 0: no way out
        self.helper_name = settings["helper_name"]
        self.helper_process = settings.get("helper_process", -1)  # its pidfd
        self.helper_words = settings.get("helper_words", -1)  # pipe from its standard error
        self.helper_piped = True
        self.tail = b""  # the end of what it said
        self.workers: list[Worker] = []

    # -- the command -----------------------------------------------------------------------

    def is_gone(self) -> bool:
        """Whether the command has ended: a zombie has, too."""
        if self.has_pidfd:
            poll = select.poll()
            poll.register(self.process, select.POLLIN)
            return bool(poll.poll(0))
        return has_ended(self.process)

    def end_command(self) -> None:
        """SIGTERM for the command, exactly once.

        The kernel sends it when the last descriptor of our end of the lifeline closes
        (F_SETSIG, fcntl(2)); by hand only where the command has let its own end go.
        """
        poll = select.poll()
        poll.register(self.lifeline.fileno(), select.POLLIN)
        if poll.poll(0):
            posix.kill(self.command, 15)
        self.lifeline.close()  # now: the command may let its end go while we end the helper

    # -- the network helper ----------------------------------------------------------------

    def wait_for_helper(self, ready: int, limit: float) -> None:
        """Return when the network helper has said in this pipe that it is ready, which it may take
        `limit` seconds for; else have the launching process say why not."""
        name = self.helper_name
        poll = select.poll()
        for descriptor in (ready, self.lifeline.fileno(), self.helper_words):
            poll.register(descriptor, select.POLLIN)
        until = time.monotonic() + limit
        while True:
            events = dict(poll.poll(max(0, 1000 * (until - time.monotonic()))))
            if self.lifeline.fileno() in events:
                self.leave()  # the command ended before it began
            if self.helper_words in events and not self.listen_to_helper():
                poll.unregister(self.helper_words)
            if ready in events and posix.read(ready, 1):
                posix.close(ready)
                return
            if ready in events:
                self.give_up(f"{name} ended before it was ready{self.verdict()}")
            if not events:
                self.give_up(f"{name} was not ready in {limit} s{self.verdict()}")

    def listen_to_helper(self) -> bool:
        """Keep the end of what the network helper says. False: it has closed its pipe."""
        words = posix.read(self.helper_words, 4096)
        self.tail = (self.tail + words)[-1024:]
        return bool(words)

    def hear_out(self) -> None:
        """Read what is left in the pipe of a helper that has ended, without waiting."""
        posix.set_blocking(self.helper_words, False)
        try:
            while self.helper_piped and self.listen_to_helper():
                pass
        except OSError:
            pass

    def last_words(self) -> str:
        lines = self.tail.decode("utf-8", "replace").split("\n")
        # pasta also tells that nobody takes what it tells, on nodes without a system log
        told = (line.strip() for line in lines if not line.startswith("Failed to send "))
        said = "; ".join(filter(None, told))
        return f": {said[-400:]}" if said else ""

    def verdict(self) -> str:
        """Why the network helper did not become ready."""
        process, status = self.reap(0.2)
        self.hear_out()
        if process == 0:
            return self.last_words()
        return f" ({how(status)}{self.last_words()})"

    def reap(self, limit: float) -> tuple[int, int]:
        """waitpid for the network helper, `limit` seconds at most."""
        until = time.monotonic() + limit
        while True:
            process, status = posix.waitpid(self.helper, posix.WNOHANG)
            if process or time.monotonic() > until:
                self.helper = 0 if process else self.helper
                return process, status
            time.sleep(0.005)

    # -- endings ---------------------------------------------------------------------------

    def fail(self, why: str) -> NoReturn:
        """End the session, or have none."""
        if self.ready:
            self.end_session(why)
        self.give_up(why)

    def end_session(self, why: str) -> NoReturn:
        """Say why, end the command and end."""
        if not self.is_gone():
            self.complain(f"{why}; ending the command (SIGTERM)")
            self.end_command()
        self.leave()

    def give_up(self, why: str) -> NoReturn:
        """Have the launching process say why there is no session."""
        self.tell(why)
        self.leave()

    def tell(self, word: str) -> None:
        """Answer the launching process; if it has ended meanwhile, nobody is left to serve."""
        try:
            self.lifeline.send(word.encode("utf-8", "replace"))
        except OSError:
            self.leave()

    def explain(self, text: str) -> None:
        """Say what happens, where the user has asked to be told."""
        if self.verbose:
            self.complain(text)

    def complain(self, text: str) -> None:
        """Say it; where nobody reads it, do without: to wait would keep the command unwatched."""
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        try:
            if poll.poll(0):
                posix.write(2, f"{self.program}: {text}\n".encode())
        except OSError:
            pass

    def leave(self) -> NoReturn:
        """End the other processes and this one; the kernel closes the rest."""
        for worker in self.workers:
            worker.end()
        if self.helper:
            posix.kill(self.helper, 9)
            posix.waitpid(self.helper, 0)
        posix._exit(0)


def has_ended(process: int) -> bool:
    """Whether the process of this directory of /proc is gone, or a zombie."""
    try:
        stat = posix.open("stat", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=process)
    except OSError:
        return True
    try:
        # proc_pid_stat(5): the state stands behind the name, which may hold anything but is in
        # brackets. A process whose first thread has ended before the others is no zombie yet.
        words = posix.read(stat, 4096).rpartition(b")")[2].split()
        return words[0] in (b"Z", b"X") and int(words[17]) <= 1
    except OSError:
        return True
    finally:
        posix.close(stat)


def how(status: int) -> str:
    """How a process ended."""
    if posix.WIFSIGNALED(status):
        return f"ended by signal {posix.WTERMSIG(status)}"
    return f"ended with status {posix.WEXITSTATUS(status)}"
