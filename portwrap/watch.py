"""The watch: what the keeper does for the rest of its life.

It runs in a lean interpreter that `keeper.py` starts with `python -I -S`, its code handed over as
text (`loader.py`), and imports C modules only: `os`, `socket` and `signal` would add 1.3 MB to
every session. What comes before is in `preparing.py`. It ends when the command is gone, ends the
command when the network helper is gone, and in between runs the relay (`relay.py`) or the hand-over
(`handover.py`). It is in the sandbox where it relays into it only; else it stays with the host, and
a worker (`worker.py`) is in there.
"""

from __future__ import annotations

import posix
import select
import time

import _socket

from .relay import GUESTS, Place, Relay
from .worker import LAST_WORDS, Worker, enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from .datagrams import Datagrams
    from .handover import Handover

PROC_INTERVAL = 2.0
"""Seconds between two looks at the command's /proc entry where the kernel has no pidfd."""


class Keeper:
    """Watches over the command, the network helper and the lifeline, and runs the relay."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.command = settings["command"]  # process number
        self.process = settings["process"]  # its pidfd, or the directory of its /proc entry
        self.has_pidfd = bool(settings["has_pidfd"])
        self.helper = settings["helper"]  # process number; 0: no way out
        self.helper_words = settings.get("helper_words", -1)  # pipe from its standard error
        self.tail = b""  # the end of what it said
        kind = _socket.SOCK_SEQPACKET
        self.lifeline = _socket.socket(_socket.AF_UNIX, kind, 0, settings["lifeline"])
        self.lifeline_whole = True
        self.ready = False
        self.helper_piped = True
        self.handover: Handover | None = None
        self.relay = Relay(settings["most_connections"])
        self.workers: list[Worker] = []
        self.datagrams: list[Datagrams] = []

    def run(self) -> NoReturn:
        """Wait until the network helper is ready, say so, and serve until the command is gone."""
        self.begin_forwarding()
        if self.helper:
            self.wait_for_helper()
        self.watch()
        self.tell("ready")
        self.ready = True
        while True:
            self.relay.turn(self.patience())
            if not self.has_pidfd:
                self.look_at_both()
            if self.handover is not None:
                self.handover.look()
            for datagrams in self.datagrams:
                datagrams.look()

    def begin_forwarding(self) -> None:
        """Serve every port that leads in or out, or be ready to hand the host port over."""
        settings = self.settings
        inward = [
            (_socket.socket(fileno=number), Place(port, GUESTS))
            for number, port in settings["published"]
        ]
        if "questions" not in settings:
            hosts = [_socket.socket(fileno=number) for number in settings["serving"]]
            guest = Place(settings["guest_port"], GUESTS, allowed=settings["allowed"])
            inward += [(host, guest) for host in hosts]
        if "namespaces" not in settings:  # we are in there
            self.serve_inward(inward)
        elif inward:
            self.start_worker(inward)
        for number in settings["guards"]:
            self.relay.refuse(_socket.socket(fileno=number))
        for number in settings["services"]:
            self.offer(_socket.socket(fileno=number))
        if "questions" in settings:
            from .handover import Handover

            self.handover = Handover(settings, self.relay, self.explain, self.go_inside)

    def serve_inward(self, routes: Sequence[tuple[_socket.socket, Place]]) -> None:
        """Relay from these sockets of the host to these places inside, where we are."""
        for listener, place in routes:
            self.relay.serve(listener, place)

    def offer(self, listener: _socket.socket) -> None:
        """Relay from this socket inside to the same address and port of the host, where we are."""
        if listener.type == _socket.SOCK_DGRAM:
            from .datagrams import Datagrams

            self.datagrams.append(Datagrams(self.relay, listener))
            return
        address, port = listener.getsockname()[:2]
        self.relay.serve(listener, Place(port, [(listener.family, address)], inward=False))

    def go_inside(self, hosts: list[_socket.socket], port: int) -> None:
        """Relay from these sockets of the host to this port inside, for good."""
        routes = [(host, Place(port, GUESTS)) for host in hosts]
        if self.settings["services"]:
            self.start_worker(routes)  # the host's services are reached from out here only
            return
        enter(self.settings["namespaces"])
        self.serve_inward(routes)

    def start_worker(self, routes: Sequence[tuple[_socket.socket, Place]]) -> None:
        """Have a process inside relay from these sockets of the host."""
        limit = self.settings["most_connections"]
        worker = Worker(routes, self.settings["namespaces"], limit)
        self.workers.append(worker)
        why = worker.wait_until_ready()
        if why:
            self.fail(f"the relay in the sandbox {why}")
        self.relay.watch(worker.link.fileno(), lambda: self.on_worker_end(worker))

    def patience(self) -> float:
        """Seconds until something is to be looked at that gives no event; -1: nothing is."""
        limits = [PROC_INTERVAL] if not self.has_pidfd else []
        if self.handover is not None and self.handover.waiting:
            limits.append(self.handover.patience())
        limits += [datagrams.patience() for datagrams in self.datagrams if datagrams.clients]
        return min(limits, default=-1.0)

    def wait_for_helper(self) -> None:
        """Return when the network helper has said that it is ready; else tell the command why."""
        ready, name = self.settings["ready"], self.settings["helper_name"]
        poll = select.poll()
        for descriptor in (ready, self.lifeline.fileno(), self.helper_words):
            poll.register(descriptor, select.POLLIN)
        limit = time.monotonic() + self.settings["ready_limit"]
        while True:
            events = dict(poll.poll(max(0, 1000 * (limit - time.monotonic()))))
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
                limit = self.settings["ready_limit"]
                self.give_up(f"{name} was not ready in {limit} s{self.verdict()}")

    def watch(self) -> None:
        """Put everything that can end the session into the relay's loop."""
        if self.is_gone():
            self.leave()
        self.relay.watch(self.lifeline.fileno(), self.on_lifeline)
        if self.helper:
            self.relay.watch(self.helper_words, self.on_helper_words)
        if self.has_pidfd:
            self.relay.watch(self.process, self.on_command_end)
        if self.has_pidfd and self.helper:
            self.relay.watch(self.settings["helper_process"], self.on_helper_end)

    # -- the command -----------------------------------------------------------------------

    def is_gone(self) -> bool:
        """Whether the command has ended: a zombie has, too."""
        if self.has_pidfd:
            poll = select.poll()
            poll.register(self.process, select.POLLIN)
            return bool(poll.poll(0))
        return has_ended(self.process)

    def on_command_end(self) -> None:
        self.relay.unwatch(self.process)
        self.finish()

    def on_lifeline(self) -> None:
        """End of file is no end of the command: some launchers close whatever they do not know."""
        self.relay.unwatch(self.lifeline.fileno())
        self.lifeline_whole = False
        if self.is_gone():
            self.finish()

    def finish(self) -> NoReturn:
        """Deliver what the command sent before it ended, and end."""
        for worker in self.workers:
            self.relay.unwatch(worker.link.fileno())
            worker.finish()
        self.relay.finish(LAST_WORDS)
        for worker in self.workers:
            worker.has_word(LAST_WORDS)
        self.leave()

    def look_at_both(self) -> None:
        """Without pidfds: see whether the command or the network helper has ended."""
        if self.is_gone():
            self.finish()
        self.on_helper_end()

    # -- the network helper ----------------------------------------------------------------

    def on_helper_words(self) -> None:
        if not self.listen_to_helper():
            self.relay.unwatch(self.helper_words)
            self.helper_piped = False
            self.on_helper_end()

    def listen_to_helper(self) -> bool:
        """Keep the end of what the network helper says. False: it has closed its pipe."""
        words = posix.read(self.helper_words, 4096)
        self.tail = (self.tail + words)[-1024:]
        return bool(words)

    def on_helper_end(self) -> None:
        """End the session if the network helper is gone: a job without a network is lost."""
        process, status = posix.waitpid(self.helper, posix.WNOHANG) if self.helper else (0, 0)
        if process == 0:
            return
        self.helper = 0
        self.hear_out()
        # One that was killed had no time to say why: its last words are about its start.
        words = "" if posix.WIFSIGNALED(status) else self.last_words()
        self.end_session(f"{self.settings['helper_name']} {self.how(status)}{words}")

    def hear_out(self) -> None:
        """Read what is left in the pipe of a helper that has ended, without waiting."""
        posix.set_blocking(self.helper_words, False)
        try:
            while self.helper_piped and self.listen_to_helper():
                pass
        except OSError:
            pass

    def how(self, status: int) -> str:
        """How a process ended."""
        if posix.WIFSIGNALED(status):
            return f"ended by signal {posix.WTERMSIG(status)}"
        return f"ended with status {posix.WEXITSTATUS(status)}"

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
        return f" ({self.how(status)}{self.last_words()})"

    def reap(self, limit: float) -> tuple[int, int]:
        """waitpid for the network helper, `limit` seconds at most."""
        until = time.monotonic() + limit
        while True:
            process, status = posix.waitpid(self.helper, posix.WNOHANG)
            if process or time.monotonic() > until:
                self.helper = 0 if process else self.helper
                return process, status
            time.sleep(0.005)

    # -- the worker ------------------------------------------------------------------------

    def on_worker_end(self, worker: Worker) -> None:
        """End the session if a worker is gone: the way in is lost."""
        self.workers.remove(worker)
        self.end_session(f"the relay in the sandbox {self.how(worker.end())}")

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

    def end_command(self) -> None:
        """SIGTERM for the command, exactly once.

        The kernel sends it when the last descriptor of our end of the lifeline closes
        (F_SETSIG, fcntl(2)); by hand only where the command has let its own end go.
        """
        poll = select.poll()
        poll.register(self.lifeline.fileno(), select.POLLIN)
        if poll.poll(0):
            posix.kill(self.command, 15)

    def give_up(self, why: str) -> NoReturn:
        """Have the launching process say why there is no session."""
        self.tell(why)
        self.leave()

    def tell(self, word: str) -> None:
        """Answer the command; if it has ended in the meantime, nobody is left to serve."""
        try:
            self.lifeline.send(word.encode("utf-8", "replace"))
        except OSError:
            self.leave()

    def explain(self, text: str) -> None:
        """Say what happens, where the user has asked to be told."""
        if self.settings["verbose"]:
            self.complain(text)

    def complain(self, text: str) -> None:
        """Say it; where nobody reads it, do without: to wait would keep the command unwatched."""
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        try:
            if poll.poll(0):
                posix.write(2, f"{self.settings['program']}: {text}\n".encode())
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


def main(settings: dict[str, Any]) -> NoReturn:
    """Serve as the keeper that `preparing.py` has completed in these settings."""
    keeper = Keeper(settings)
    try:
        keeper.run()
    except (OSError, ImportError) as error:  # a limit is used up, or the kernel forbids a step
        keeper.fail(f"the keeper failed: {error}")
