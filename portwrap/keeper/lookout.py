"""The look-out for a server that has to be relayed: it listens, but not on the host's socket.

Its call of listen may have gone past us (io_uring, 32-bit programs), or its socket could not be
replaced. The kernel does not report that, so we look, as long as clients wait; no client, no look.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import _socket

    from .reactor import Reactor, Timer
    from .unserved import Unserved

FIRST_PAUSE, SHORT_PAUSE, MAX_PAUSE = 0.05, 0.001, 1.0
"""Seconds until the next look while clients wait: the first one, the first one where a server is
known to listen on its own socket, and the last one; they double in between."""
UNWATCHED = "the server listens by a call that the filter does not see"


class Lookout:
    """Looks for a server while clients wait at the host's sockets."""

    def __init__(
        self,
        reactor: Reactor,
        unserved: Unserved,
        hosts: Sequence[_socket.socket],
        listens: Callable[[], bool],
        on_server: Callable[[str], None],
    ) -> None:
        self.reactor = reactor
        self.unserved = unserved
        self.hosts = hosts
        self.listens = listens  # whether a server listens on the guest port
        self.on_server = on_server  # called when one does, with the reason that is known
        self.watched: list[int] = []  # the hosts' descriptors, as long as we watch them
        self.waiting = False  # clients of the host port wait for a server
        self.timer: Timer | None = None  # of the next look, while they do
        self.expect()

    def expect(self, reason: str = UNWATCHED, pause: float = FIRST_PAUSE) -> None:
        """Should a server turn out to listen on its own socket, this is why."""
        self.reason = reason
        self.first_pause = pause
        self.look_in(pause)

    def begin(self) -> None:
        """Be told when somebody asks at the host port."""
        for host in self.hosts:
            if not self.reactor.is_watched(host.fileno()):
                self.reactor.watch(host.fileno(), self.on_client, edge=True)
                self.watched.append(host.fileno())

    def end(self) -> None:
        """Whoever waits is served now."""
        self.waiting = False
        self.reactor.cancel(self.timer)
        self.unserved.on_served()
        while self.watched:  # the relay may have the others by now
            self.reactor.unwatch(self.watched.pop())

    def on_client(self) -> None:
        if not self.waiting:
            self.waiting = True
            self.unserved.on_client()
            self.look_in(self.first_pause)

    def look_in(self, seconds: float) -> None:
        self.pause = seconds
        self.reactor.cancel(self.timer)
        if self.waiting:
            self.timer = self.reactor.call_in(seconds, self.look)

    def look(self) -> None:
        """See whether a server listens on its own socket."""
        self.look_in(min(2 * self.pause, MAX_PAUSE))
        if self.listens():
            self.on_server(self.reason)
        else:
            self.unserved.on_client()


class BriefLookout:
    """Looks for a server at whose call of listen there was something in the way, and for a short
    time only: it is about to listen by itself, or never will."""

    def __init__(
        self,
        reactor: Reactor,
        listens: Callable[[], bool],
        on_server: Callable[[str], None],
        on_none: Callable[[], None],
    ) -> None:
        self.reactor = reactor
        self.listens = listens
        self.on_server = on_server
        self.on_none = on_none  # called at the end, when none has listened
        self.reason = ""
        self.timer: Timer | None = None

    def expect(self, reason: str, pause: float = FIRST_PAUSE) -> None:
        """Should a server turn out to listen on its own socket, this is why."""
        self.reason = reason
        self.look_in(pause)

    def begin(self) -> None:
        """Nobody waits."""

    def end(self) -> None:
        self.reactor.cancel(self.timer)

    def look_in(self, seconds: float) -> None:
        self.pause = seconds
        self.reactor.cancel(self.timer)
        self.timer = self.reactor.call_in(seconds, self.look)

    def look(self) -> None:
        if self.listens():
            self.on_server(self.reason)
        elif self.pause < MAX_PAUSE:
            self.look_in(2 * self.pause)
        else:
            self.on_none()
