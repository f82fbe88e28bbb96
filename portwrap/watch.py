"""The watch: what the keeper does for the rest of its life.

It runs in a lean interpreter that `keeper.py` starts with `python -I -S`, its code handed over as
text (`loader.py`), and imports C modules only: `os`, `socket` and `signal` would add 1.3 MB to
every session. What comes before is in `preparing.py`. It ends when the command is gone, ends the
command when the network helper is gone (`ends.py`), and in between runs the relay (`relay.py`) or
the hand-over (`handover.py`). It is in the sandbox where it relays into it only; else it stays with
the host, and a worker (`worker.py`) is in there.
"""

from __future__ import annotations

import posix

import _socket

from .ends import how
from .preparing import enter
from .relay import GUESTS, Place, Relay
from .worker import LAST_WORDS, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from .datagrams import Datagrams
    from .ends import Ends
    from .handover import Handover

PROC_INTERVAL = 2.0
"""Seconds between two looks at the command's /proc entry where the kernel has no pidfd."""


class Keeper:
    """Watches over the command, the network helper and the lifeline, and runs the relay."""

    def __init__(self, settings: dict[str, Any], ends: Ends) -> None:
        self.settings = settings
        self.ends = ends
        self.handover: Handover | None = None
        self.relay = Relay(settings["most_connections"])
        self.datagrams: list[Datagrams] = []

    def run(self) -> NoReturn:
        """Serve until the command is gone."""
        self.begin_forwarding()
        self.watch()
        while True:
            self.relay.turn(self.patience())
            if not self.ends.has_pidfd:
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
            hosts = [_socket.socket(fileno=number) for number in settings["listeners"]]
            guest = Place(settings["guest_port"], GUESTS, allowed=settings["allowed"])
            inward += [(host, guest) for host in hosts]
        if "namespaces" not in settings:  # we are in there
            self.serve_inward(inward)
        elif inward:
            self.start_worker(inward)
        for number in settings["services"]:
            self.offer(_socket.socket(fileno=number))
        if "questions" in settings:
            from .handover import Handover

            ends = self.ends
            self.handover = Handover(
                settings, self.relay, ends.explain, ends.complain, self.go_inside
            )

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
        self.ends.workers.append(worker)
        why = worker.wait_until_ready()
        if why:
            self.ends.fail(f"the relay in the sandbox {why}")
        self.relay.watch(worker.link.fileno(), lambda: self.on_worker_end(worker))

    def patience(self) -> float:
        """Seconds until something is to be looked at that gives no event; -1: nothing is."""
        limits = [PROC_INTERVAL] if not self.ends.has_pidfd else []
        if self.handover is not None and self.handover.waiting:
            limits.append(self.handover.patience())
        limits += [datagrams.patience() for datagrams in self.datagrams if datagrams.clients]
        return min(limits, default=-1.0)

    def watch(self) -> None:
        """Put everything that can end the session into the relay's loop."""
        ends = self.ends
        if ends.is_gone():
            self.finish()
        self.relay.watch(ends.lifeline.fileno(), self.on_lifeline)
        if ends.helper:
            self.relay.watch(ends.helper_words, self.on_helper_words)
        if ends.has_pidfd:
            self.relay.watch(ends.process, self.finish)
        if ends.has_pidfd and ends.helper:
            self.relay.watch(ends.helper_process, self.on_helper_end)

    # -- the command -----------------------------------------------------------------------

    def on_lifeline(self) -> None:
        """End of file is no end of the command: some launchers close whatever they do not know."""
        if self.ends.is_gone():
            self.finish()
        self.relay.unwatch(self.ends.lifeline.fileno())

    def finish(self) -> NoReturn:
        """Deliver what the command sent before it ended, and end."""
        links = [worker.link.fileno() for worker in self.ends.workers]
        # Whatever ends meanwhile, too, changes nothing any more.
        for descriptor in (self.ends.lifeline.fileno(), self.ends.process, *links):
            if descriptor in self.relay.watched:
                self.relay.unwatch(descriptor)
        for worker in self.ends.workers:
            worker.finish()
        for number in self.settings["reserved"]:
            posix.close(number)
        self.relay.finish(LAST_WORDS)
        for worker in self.ends.workers:
            worker.has_word(LAST_WORDS)
        self.ends.leave()

    def look_at_both(self) -> None:
        """Without pidfds: see whether the command or the network helper has ended."""
        if self.ends.is_gone():
            self.finish()
        self.on_helper_end()

    # -- ours ------------------------------------------------------------------------------

    def on_helper_words(self) -> None:
        if not self.ends.listen_to_helper():
            self.relay.unwatch(self.ends.helper_words)
            self.ends.helper_piped = False
            self.on_helper_end()

    def on_helper_end(self) -> None:
        """End the session if the network helper is gone: a job without a network is lost."""
        ends = self.ends
        process, status = posix.waitpid(ends.helper, posix.WNOHANG) if ends.helper else (0, 0)
        if process == 0:
            return
        ends.helper = 0
        ends.hear_out()
        # One that was killed had no time to say why: its last words are about its start.
        words = "" if posix.WIFSIGNALED(status) else ends.last_words()
        ends.end_session(f"{ends.helper_name} {how(status)}{words}")

    def on_worker_end(self, worker: Worker) -> None:
        """End the session if a worker is gone: the way in is lost."""
        self.ends.workers.remove(worker)
        self.ends.end_session(f"the relay in the sandbox {how(worker.end())}")


def main(settings: dict[str, Any], ends: Ends) -> NoReturn:
    """Serve as the keeper that `preparing.py` has completed."""
    try:
        Keeper(settings, ends).run()
    except (OSError, ImportError) as error:  # a limit is used up, or the kernel forbids a step
        ends.fail(f"the keeper failed: {error}")
