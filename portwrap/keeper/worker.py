"""The worker: a relay in the sandbox for a keeper that has to stay outside.

A process makes sockets only in the network namespace that it is in, so that no single one can
relay in both directions. Where there are both, the keeper stays with the host and forks this one
off: it enters the sandbox and relays what comes from the host's listening sockets.

The two share a socket pair. A listening socket that comes over it is relayed, too. At its end of
file the worker delivers what has been sent and ends: the keeper has shut its end down, or has died.
The worker's death shows in the same way.
"""

from __future__ import annotations

import marshal
import os
import select
import sys

import _socket

from ..diagnostics.errors import reason_of
from ..kernel.processes import close_all_but, enter, send_signal
from ..kernel.waiting import Countdown
from .connector import Upstream
from .reactor import Reactor
from .relay import Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

READY_TIMEOUT = 5.0
"""Seconds that a new worker may take until it has entered the sandbox."""
MAX_ROUTE = 65536
"""Bytes of a message with a listening socket."""
READY = "ready"
"""The message of a worker that serves; that of another is an errno, or 0, and the reason."""
DELIVERY_TIMEOUT = 0.5
"""Seconds to deliver what the command sent before it ended."""


class Worker:
    """The keeper's view of a worker."""

    def __init__(
        self,
        routes: Sequence[tuple[_socket.socket, Upstream]],
        namespaces: Sequence[int],
        max_connections: int,
    ) -> None:
        """Start one for these listening sockets, each with its upstream in the sandbox. Raises
        OSError."""
        self.listeners = [listener for listener, _ in routes]
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
        self.link, theirs = _socket.socketpair(_socket.AF_UNIX, kind, 0)
        self.process = os.fork()
        if self.process == 0:
            run(theirs, routes, namespaces, max_connections)
        theirs.close()

    def wait_until_ready(self) -> None:
        """Return when the sockets are its own. Raises OSError: it does not serve, and is gone."""
        message = "0 did not answer in time"
        if self.has_message(READY_TIMEOUT):
            message = self.link.recv(4096).decode("utf-8", "replace") or "0 ended at once"
        if message != READY:
            self.end()
            number, _, why = message.partition(" ")
            raise OSError(int(number), f"the relay in the sandbox {why}")
        for listener in self.listeners:
            listener.close()

    def add(self, routes: Sequence[tuple[_socket.socket, Upstream]]) -> None:
        """Have it relay from more of them, which are its own then. Raises OSError."""
        for listener, upstream in routes:
            route = marshal.dumps((upstream.port, list(upstream.targets), list(upstream.allowed)))
            rights = listener.fileno().to_bytes(4, sys.byteorder)
            self.link.sendmsg([route], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
            listener.close()

    def has_message(self, timeout: float) -> bool:
        """Whether it has sent something, or has ended, within `timeout` seconds."""
        poll = select.poll()
        poll.register(self.link.fileno(), select.POLLIN)
        return bool(Countdown(timeout).poll(poll))

    def finish(self) -> None:
        """Ask it to deliver what has been sent, and to end."""
        self.link.shutdown(_socket.SHUT_WR)

    def end(self) -> int:
        """Make sure that it has ended; return its wait status."""
        if not send_signal(self.process, 9):
            self.link.close()  # at the end of which it ends, too
        return os.waitpid(self.process, 0)[1]


def run(
    link: _socket.socket,
    routes: Sequence[tuple[_socket.socket, Upstream]],
    namespaces: Sequence[int],
    max_connections: int,
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
        reactor = Reactor()
        relay = Relay(reactor, max_connections)
        for listener, upstream in routes:
            relay.serve(listener, upstream)

        def on_message() -> None:
            if not take_route(link, relay):
                reactor.unwatch(link.fileno())
                relay.finish(DELIVERY_TIMEOUT)
                os._exit(0)

        reactor.watch(link.fileno(), on_message)
        link.send(READY.encode())
        while True:
            reactor.run_once()
    except OSError as error:
        link.send(f"{error.errno} failed: {error.strerror}".encode("utf-8", "replace"))
    except Exception as error:
        link.send(f"0 failed: {reason_of(error)}".encode("utf-8", "replace"))
    finally:
        os._exit(1)


def take_route(link: _socket.socket, relay: Relay) -> bool:
    """Relay from the listening socket that the keeper has sent. False: it is the end of file.
    Raises OSError."""
    data, ancillary, _, _ = link.recvmsg(MAX_ROUTE, _socket.CMSG_SPACE(4))
    for _, _, rights in ancillary:
        port, targets, allowed = marshal.loads(data)
        descriptor = int.from_bytes(rights, sys.byteorder)
        relay.serve(_socket.socket(fileno=descriptor), Upstream(port, targets, allowed=allowed))
    return bool(data)
