"""The streams: what moves bytes between the two sockets of each relayed connection.

Edge-triggered: each socket is registered once, and an event says that something has changed since
it was last read or written until EAGAIN.
"""

from __future__ import annotations

import errno
import select

import _socket

from ..kernel.sockets import reset
from .pipes import Pipe, Pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .reactor import Handler, Reactor

MAX_CHUNK = 256 * 1024
"""Bytes moved by one read at most: the size of the reactor's buffer."""
FIRST_CHUNK = 64 * 1024
MIN_CHUNK = 8 * 1024
MAX_UNSENT = 2 * 1024 * 1024
"""Bytes that all connections together keep for slow readers. Beyond it what these do not take stays
in the kernel, which bounds it for each connection."""
MAX_READS = 16
"""Reads in a row for one connection before the others have their turn."""
SMALL_READ = 16 * 1024
"""A read of less may be a message that the kernel has not acknowledged yet."""
QUICK_ACKS = 16
"""Messages that are acknowledged at once after one that followed another of the same sender."""

MSG_DONTWAIT, MSG_PEEK = _socket.MSG_DONTWAIT, _socket.MSG_PEEK
MSG_TRUNC = _socket.MSG_TRUNC  # TCP throws away what it would copy (tcp(7))
END = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
IN_OR_END = select.EPOLLIN | END
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EPERM)
"""A kernel, or an outer sandbox, without splice(2) for these sockets."""


class Endpoint:
    """One of the two sockets of a relayed connection, and what flows out of it.

    Each of the two refers to the other until it is dropped: what they hold goes with them at once.
    """

    __slots__ = (
        "broken",
        "bulk",
        "chunk",
        "connecting",
        "continues",
        "descriptor",
        "ended",
        "full",
        "hung_up",
        "inward",
        "peer",
        "quick_acks",
        "readable",
        "socket",
        "taken",
        "unsent",
    )

    peer: Endpoint

    def __init__(self, socket: _socket.socket, inward: bool) -> None:
        self.socket = socket
        self.descriptor = socket.fileno()
        self.inward = inward  # the end in the sandbox
        self.connecting = False  # connect(2) is under way
        self.readable = False  # something may be there to read
        self.hung_up = False  # the kernel reported that an end or an error is among it
        self.ended = False  # its end of file was read
        self.broken = False  # its connection was reset, or timed out
        self.full = False  # takes no more until an event reports room
        # read from the peer, not yet taken by this socket
        self.unsent: memoryview | Pipe | None = None
        self.taken = 0  # bytes of a memoryview that this socket has taken meanwhile
        self.chunk = FIRST_CHUNK
        self.bulk = False  # it fills the largest chunks: its bytes are better not copied
        self.continues = False  # it has sent something, and nothing was sent to it since
        self.quick_acks = 0  # messages from it that are still to be acknowledged at once

    def adapt(self, wanted: int, count: int) -> None:
        """Choose how to read next time, after a read of `count` bytes that its peer has taken."""
        self.peer.continues = False
        if count < wanted:
            if self.continues or self.quick_acks:
                self.acknowledge(count)
            self.continues = True
            # A stream that gave less than was asked for is empty (epoll(7)), but an end that was
            # announced together with it is announced only once.
            if not self.hung_up:
                self.readable = False
        elif wanted < MAX_CHUNK:
            self.chunk = 2 * wanted
        elif not self.bulk:
            self.bulk = True
            # SPLICE_F_NONBLOCK is about the pipe; of the sockets it is their own (splice(2)).
            self.socket.setblocking(False)
            self.peer.socket.setblocking(False)

    def acknowledge(self, count: int) -> None:
        """Spare who sends messages in a row the wait between them: by Nagle's algorithm (RFC 1122,
        4.2.3.4) the second waits for the acknowledgement of the first, which Linux delays by 40 ms.

        Where each is answered, the answer acknowledges it: a segment of its own costs requests a
        fifth.
        """
        if self.continues:
            self.quick_acks = QUICK_ACKS
        if count < SMALL_READ:
            self.quick_acks -= 1
            try:
                # Sends what is due; it does not stay set (tcp(7)).
                self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_QUICKACK, 1)
            except OSError:
                pass  # a connection over MPTCP does not have it


class Streams:
    """Forwards between endpoints, in both directions of each connection."""

    def __init__(self, reactor: Reactor, pipes: Pipes) -> None:
        self.reactor = reactor
        self.pipes = pipes
        self.endpoints: dict[int, Endpoint] = {}
        self.kept = 0  # bytes of ours that hold what is unsent
        self.on_drop: list[Callable[[Endpoint], None]] = []

    def add(self, endpoint: Endpoint, handler: Handler | None = None) -> None:
        """Forward from and to this endpoint; its events go to this handler for now. Raises
        OSError."""
        self.reactor.register(endpoint.descriptor, handler or self.on_event, EVENTS)
        self.endpoints[endpoint.descriptor] = endpoint

    def on_event(self, descriptor: int, event: int) -> None:
        """Forward what this event allows to, out of and into this endpoint."""
        endpoint = self.endpoints[descriptor]
        peer = endpoint.peer
        if event & IN_OR_END:
            endpoint.readable = True
            if event & END:
                endpoint.hung_up = True
            if event & select.EPOLLERR:
                endpoint.broken = True
        if event & select.EPOLLOUT:
            endpoint.full = False
            if endpoint.unsent is not None:
                self.flush(endpoint)
            self.forward(peer)
        self.forward(endpoint)

    def forward(self, endpoint: Endpoint) -> None:
        """Read from this endpoint and send to its peer, until one of the two would block."""
        for _ in range(MAX_READS):
            if not endpoint.readable:  # one that was dropped is not, either
                return
            peer = endpoint.peer
            if peer.full or peer.connecting:
                if endpoint.broken:  # no reason to wait: without us, who reads late loses it, too
                    self.abort(endpoint)
                return
            if not (endpoint.bulk and self.pipe(endpoint)):
                self.copy(endpoint)
        if endpoint.readable:
            self.reactor.call_soon(lambda: self.forward(endpoint))

    # -- out of an endpoint ----------------------------------------------------------------

    def copy(self, endpoint: Endpoint) -> None:
        """Read once from this endpoint and send it to its peer."""
        wanted, buffer = endpoint.chunk, self.reactor.buffer
        peek = MSG_PEEK if self.kept >= MAX_UNSENT else 0
        try:
            count = endpoint.socket.recv_into(buffer[:wanted], 0, MSG_DONTWAIT | peek)
        except BlockingIOError:
            endpoint.readable = False
            return
        except OSError:
            self.abort(endpoint)
            return
        if count == 0:
            self.end(endpoint)
        elif (self.send_peeked if peek else self.send)(endpoint.peer, buffer[:count]):
            endpoint.adapt(wanted, count)

    def pipe(self, endpoint: Endpoint) -> bool:
        """Do the same through a pipe. False: only recv(2) can find out what comes next."""
        pipe = self.pipes.get()
        if pipe is None:
            return False
        try:
            pipe.fill_from(endpoint.descriptor)
        except OSError as error:
            self.pipes.put(pipe)
            if isinstance(error, BlockingIOError):
                return False  # nothing is there, or urgent data, which splice does not pass
            if error.errno in NOT_HERE:
                self.pipes.close()
                return False
            self.abort(endpoint)
            return True
        if pipe.held < FIRST_CHUNK:
            endpoint.bulk = False
        if pipe.held == 0:
            self.pipes.put(pipe)
            return False  # the end, or urgent data before it
        endpoint.peer.unsent = pipe
        self.flush(endpoint.peer)
        return True

    # -- into an endpoint ------------------------------------------------------------------

    def send(self, endpoint: Endpoint, data: memoryview) -> bool:
        """Send what this endpoint takes and keep the rest for it. False: its peer must wait."""
        sent = self.try_to_send(endpoint, data)
        if 0 <= sent < len(data):
            endpoint.unsent, endpoint.taken = memoryview(bytes(data[sent:])), 0
            self.kept += len(data) - sent
        return sent == len(data)

    def send_peeked(self, endpoint: Endpoint, data: memoryview) -> bool:
        """The same for data that is still to be read: the rest stays with the kernel."""
        sent = self.try_to_send(endpoint, data)
        if sent > 0:
            endpoint.peer.socket.recv_into(data[:sent], 0, MSG_DONTWAIT | MSG_TRUNC)
        return sent == len(data)

    def try_to_send(self, endpoint: Endpoint, data: memoryview) -> int:
        """Return how much this endpoint has taken; -1: the connection is no more."""
        try:
            sent = endpoint.socket.send(data, MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.fail(endpoint)
            return -1
        if sent < len(data):
            endpoint.full = True
            # Its reader is slow: keep less for it.
            endpoint.peer.chunk = max(MIN_CHUNK, endpoint.peer.chunk // 4)
        return sent

    def flush(self, endpoint: Endpoint) -> None:
        """Send what was kept for this endpoint."""
        unsent = endpoint.unsent
        assert unsent is not None
        try:
            if isinstance(unsent, Pipe):
                unsent.empty_into(endpoint.descriptor)
            else:
                endpoint.taken += endpoint.socket.send(unsent[endpoint.taken :], MSG_DONTWAIT)
        except BlockingIOError:
            endpoint.full = True
        except OSError:
            self.fail(endpoint)
        else:
            endpoint.full = not isinstance(unsent, Pipe) and endpoint.taken < len(unsent)
            if not endpoint.full:
                self.forget_unsent(endpoint)

    def forget_unsent(self, endpoint: Endpoint) -> None:
        """Keep nothing for this endpoint any more."""
        unsent, endpoint.unsent = endpoint.unsent, None
        if isinstance(unsent, Pipe):
            self.pipes.put(unsent)
        elif unsent is not None:
            self.kept -= len(unsent)

    # -- ends ------------------------------------------------------------------------------

    def end(self, endpoint: Endpoint) -> None:
        """Pass on the end of file of this endpoint. Its peer has all that came before: while
        something is unsent, nothing more is read."""
        peer = endpoint.peer
        endpoint.readable = False
        if endpoint.ended:
            return
        endpoint.ended = True
        if peer.ended:
            self.drop(peer)
            self.drop(endpoint)
            return
        try:
            peer.socket.shutdown(_socket.SHUT_WR)
        except OSError:
            self.abort(peer)

    def fail(self, endpoint: Endpoint) -> None:
        """This endpoint takes no more: pass on what it sent before, and a reset."""
        peer, buffer = endpoint.peer, self.reactor.buffer
        try:
            while not peer.full:
                count = endpoint.socket.recv_into(buffer, 0, MSG_DONTWAIT)
                if count == 0 or peer.socket.send(buffer[:count], MSG_DONTWAIT) < count:
                    break
        except OSError:
            pass
        self.abort(endpoint)

    def abort(self, endpoint: Endpoint) -> None:
        """Pass a reset on."""
        for each in (endpoint.peer, endpoint):
            self.drop(each, with_reset=True)

    def drop(self, endpoint: Endpoint, with_reset: bool = False) -> None:
        """Close this endpoint."""
        self.endpoints.pop(endpoint.descriptor, None)
        endpoint.readable = False
        self.forget_unsent(endpoint)
        del endpoint.peer  # a cycle would wait for the collector, with all that it holds
        self.reactor.forget(endpoint.descriptor)
        if with_reset:
            reset(endpoint.socket)
        else:
            endpoint.socket.close()
        for notify in self.on_drop:
            notify(endpoint)
