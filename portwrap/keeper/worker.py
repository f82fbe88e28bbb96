"""The worker: a relay in the sandbox for a keeper that has to stay outside.

A process makes sockets only in the network namespace that it is in, so that no single one can
relay in both directions. Where there are both, the keeper stays with the host and forks this one
off: it enters the sandbox and relays what comes from the host's listening sockets.

The two share a socket pair. At its end of file the worker delivers what has been sent and ends:
the keeper says so by shutting its side down, or has died. The worker's death is the same sign.
"""

from __future__ import annotations

import os
import select

import _socket

from ..diagnostics.errors import reason_of
from ..kernel.processes import close_all_but, enter
from ..kernel.waiting import Countdown
from .relay import Place, Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

READY_TIMEOUT = 5.0
"""Seconds that a new worker may take until it has entered the sandbox."""
READY = "ready"
"""The first word of a worker that serves; that of another is an errno, or 0, and the reason."""
LAST_WORDS = 0.5
"""Seconds to deliver what the command sent before it ended."""


class Worker:
    """The keeper's view of a worker."""

    def __init__(
        self,
        routes: Sequence[tuple[_socket.socket, Place]],
        namespaces: Sequence[int],
        most_connections: int,
    ) -> None:
        """Start one for these listening sockets, each with its place inside. Raises OSError."""
        self.listeners = [listener for listener, _ in routes]
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
        self.link, theirs = _socket.socketpair(_socket.AF_UNIX, kind, 0)
        self.process = os.fork()
        if self.process == 0:
            run(theirs, routes, namespaces, most_connections)
        theirs.close()

    def wait_until_ready(self) -> None:
        """Return when the sockets are its own. Raises OSError: it does not serve, and is gone."""
        word = "0 did not answer in time"
        if self.has_word(READY_TIMEOUT):
            word = self.link.recv(4096).decode("utf-8", "replace") or "0 ended at once"
        if word != READY:
            self.end()
            number, _, why = word.partition(" ")
            raise OSError(int(number), f"the relay in the sandbox {why}")
        for listener in self.listeners:
            listener.close()

    def has_word(self, limit: float) -> bool:
        """Whether it has spoken, or has ended, within `limit` seconds."""
        poll = select.poll()
        poll.register(self.link.fileno(), select.POLLIN)
        return bool(Countdown(limit).poll(poll))

    def finish(self) -> None:
        """Ask it to deliver what has been sent, and to end."""
        self.link.shutdown(_socket.SHUT_WR)

    def end(self) -> int:
        """Make sure that it has ended; return its wait status."""
        os.kill(self.process, 9)
        return os.waitpid(self.process, 0)[1]


def run(
    link: _socket.socket,
    routes: Sequence[tuple[_socket.socket, Place]],
    namespaces: Sequence[int],
    most_connections: int,
) -> NoReturn:
    """Be the worker. Never returns into the keeper's code that it was forked from."""
    try:
        listeners = [listener.fileno() for listener, _ in routes]
        # Above all the keeper's end of the lifeline, by whose closing the kernel tells the command
        # that the keeper is gone.
        close_all_but({0, 1, 2, link.fileno(), *listeners, *namespaces})
        with open("/proc/self/comm", "w") as comm:
            comm.write("portwrap-relay")
        enter(namespaces)
        relay = Relay(most_connections)
        for listener, place in routes:
            relay.serve(listener, place)

        def on_end() -> None:
            relay.unwatch(link.fileno())
            relay.finish(LAST_WORDS)
            os._exit(0)

        relay.watch(link.fileno(), on_end)
        link.send(READY.encode())
        while True:
            relay.turn()
    except OSError as error:
        link.send(f"{error.errno} failed: {error.strerror}".encode("utf-8", "replace"))
    except Exception as error:
        link.send(f"0 failed: {reason_of(error)}".encode("utf-8", "replace"))
    finally:
        os._exit(1)
