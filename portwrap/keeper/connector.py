"""The connector: gives each client a connection to its upstream.

Until the upstream has taken it a connection is pending. Where nobody listens another address of the
upstream is tried at once. Where the server's backlog is full it is tried again soon: the kernel
itself would wait a second.
"""

from __future__ import annotations

import errno
import os
import select
import time

import _socket

from .streams import Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .reactor import Reactor, Timer
    from .streams import Streams
    from .unserved import Unserved

MIN_RETRY_PAUSE, MAX_RETRY_PAUSE = 0.01, 0.25
"""Seconds until pending connections are tried again; they double while none gets through."""
GUESTS = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))
"""Family and address of where a server may listen in the sandbox; tried in this order."""
STREAM = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC


class Upstream:
    """Where clients are forwarded to: a TCP port, and the family and address of each target to try.

    `inward` is whether that is in the sandbox; else the clients are. Clients from elsewhere than
    the `allowed` networks are reset. `unserved` is notified of those that find no server.
    """

    __slots__ = ("allowed", "inward", "last", "port", "targets", "unserved")

    def __init__(
        self,
        port: int,
        targets: Sequence[tuple[int, str]],
        inward: bool = True,
        allowed: Sequence[tuple[int, int, int]] = (),
        unserved: Unserved | None = None,
    ) -> None:
        self.port = port
        self.targets = targets
        self.inward = inward
        self.allowed = allowed  # networks of the clients (see `ports.parse_networks`); (): all
        self.unserved = unserved
        self.last = 0  # the entry of targets that answered last

    def aim(self, port: int, targets: Sequence[tuple[int, str]]) -> None:
        """Forward clients to somewhere else from now on."""
        self.port, self.targets, self.last = port, targets, 0

    def on_client(self, served: bool) -> None:
        """A client has found a server, or none."""
        if self.unserved is None:
            return
        if served:
            self.unserved.on_served()
        else:
            self.unserved.on_client()


class PendingConnection:
    """A connection that its upstream has not taken yet."""

    __slots__ = ("began", "endpoint", "first", "target", "upstream")

    def __init__(self, endpoint: Endpoint, upstream: Upstream) -> None:
        self.endpoint = endpoint  # ours towards the upstream
        self.upstream = upstream
        # Entries of the upstream's targets; which answered last may change meanwhile.
        self.target = self.first = upstream.last
        self.began = time.monotonic()

    def is_connected(self) -> bool:
        """Whether the server's backlog has taken it; its event reports it later."""
        _, address = self.upstream.targets[self.target]
        # A second connect(2) gives the state of the first one.
        answer = self.endpoint.socket.connect_ex((address, self.upstream.port))
        return answer in (0, errno.EISCONN)


class Connector:
    """Connects clients to their upstreams."""

    def __init__(self, reactor: Reactor, streams: Streams) -> None:
        self.reactor = reactor
        self.streams = streams
        self.pending: dict[int, PendingConnection] = {}
        self.pause = MIN_RETRY_PAUSE
        self.timer: Timer | None = None  # of the next retry, while connections are pending
        streams.on_drop.append(self.on_drop)

    def connect(self, client: _socket.socket, upstream: Upstream) -> None:
        """Forward this client to its upstream. Raises OSError: it is to be let go."""
        outer = Endpoint(client, not upstream.inward)
        self.streams.add(outer)
        outer.peer = outer  # it has none yet
        try:
            inner = self.start(outer, upstream, upstream.last)
        except OSError:
            self.streams.drop(outer, with_reset=True)
            raise
        if not self.pending:
            self.pause = MIN_RETRY_PAUSE
        self.wait_for(PendingConnection(inner, upstream))

    def wait_for(self, pending: PendingConnection) -> None:
        """Its upstream has to answer."""
        self.pending[pending.endpoint.descriptor] = pending
        if self.timer is None:
            self.timer = self.reactor.call_in(self.pause, self.retry)

    def on_drop(self, endpoint: Endpoint) -> None:
        """It is pending no more."""
        self.pending.pop(endpoint.descriptor, None)
        if not self.pending and self.timer is not None:
            self.reactor.cancel(self.timer)
            self.timer = None

    def on_event(self, descriptor: int, event: int) -> None:
        """The upstream has taken the connection, or nobody listens there."""
        pending = self.pending[descriptor]
        upstream, endpoint = pending.upstream, pending.endpoint
        if not event & (select.EPOLLERR | select.EPOLLHUP):
            self.on_drop(endpoint)
            endpoint.connecting = False
            upstream.last = pending.target
            upstream.on_client(served=True)
            self.reactor.set_handler(descriptor, self.streams.on_event)
            self.streams.on_event(descriptor, event)
            return
        following = (pending.target + 1) % len(upstream.targets)
        if following != pending.first:
            pending.target = following
            self.replace(pending)
        else:
            self.streams.abort(endpoint)
            upstream.on_client(served=False)

    def retry(self) -> None:
        """Try again where the server's backlog was full.

        Oldest first, and for each upstream only until one finds the backlog still full: the others
        would, too, and all at once they would keep the server from the processor.
        """
        self.timer = None
        progress = False
        full = set()
        for pending in sorted(self.pending.values(), key=lambda pending: pending.began):
            if pending.upstream in full:
                continue
            if not pending.is_connected():
                if not self.replace(pending):
                    continue
                if not pending.is_connected():
                    full.add(pending.upstream)
                    continue
            progress = True
        self.pause = MIN_RETRY_PAUSE if progress else min(2 * self.pause, MAX_RETRY_PAUSE)
        self.reactor.cancel(self.timer)
        self.timer = self.reactor.call_in(self.pause, self.retry) if self.pending else None

    def replace(self, pending: PendingConnection) -> bool:
        """Give a client that waits for its upstream another socket there. False: it cannot."""
        outer = pending.endpoint.peer
        self.streams.drop(pending.endpoint)
        try:
            inner = self.start(outer, pending.upstream, pending.target)
        except OSError:
            self.streams.drop(outer, with_reset=True)
            return False
        pending.endpoint = inner
        self.wait_for(pending)
        return True

    def start(self, outer: Endpoint, upstream: Upstream, target: int) -> Endpoint:
        """Start a connection to a target of this upstream; an event reports the answer. Raises
        OSError."""
        if not upstream.targets:  # an ephemeral port, on a node with no address but the loopback's
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        family, address = upstream.targets[target]
        inner = Endpoint(_socket.socket(family, STREAM), upstream.inward)
        inner.connecting = True
        inner.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        inner.socket.connect_ex((address, upstream.port))
        self.streams.add(inner, self.on_event)
        outer.peer, inner.peer = inner, outer
        return inner
