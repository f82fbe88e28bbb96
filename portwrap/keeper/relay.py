"""The relay: carries connections from listening sockets in one network namespace into another one.

One thread, one epoll, edge-triggered for connections: each descriptor is registered once, and an
event says that something has changed since it was last read or written until EAGAIN.
"""

from __future__ import annotations

import errno
import os
import select
import time

import _socket

from ..kernel import libc
from ..kernel.sockets import MAPPED, OUT_OF_RESOURCES, accept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .unserved import Unserved

CHUNK = 256 * 1024
"""Bytes moved by one read at most; one buffer of this size serves every connection."""
FIRST_CHUNK = 64 * 1024
SMALLEST_CHUNK = 8 * 1024
PIPE_SIZE = 1024 * 1024
"""Bytes moved by one splice at most: what an account may give a pipe (pipe(7), pipe-max-size)."""
MOST_PIPES = 8
"""Of the 64 of this size that all sessions of an account have (pipe(7), pipe-user-pages-soft)."""
MAX_UNSENT = 2 * 1024 * 1024
"""Bytes that all connections together keep for slow readers. Beyond it what these do not take stays
in the kernel, which bounds it for each connection."""
TURN = 16
"""Reads in a row for one connection before the others have their turn."""
ACCEPTS = 64
"""Connections accepted in a row before those that are there have their turn."""
REDIAL_FIRST, REDIAL_LAST = 0.01, 0.25
"""Seconds until connections that the server's full backlog swallowed are tried again; doubles while
none gets through."""
LATE_RETRY = 1.0
"""Seconds until accepting goes on after the system had no descriptor or memory for us."""
GUESTS = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))
"""Family and address of where a server may listen inside; tried in this order."""

SMALL = 16 * 1024
"""A read of less may be a message that the kernel has not acknowledged yet."""
PROMPT = 16
"""Messages that are acknowledged at once after one that followed another of the same sender."""

splice: Any = getattr(os, "splice", None)  # Python 3.10
F_SETPIPE_SZ = 1031  # linux/fcntl.h
SPLICE_F_NONBLOCK = 2  # linux/splice.h

MSG_DONTWAIT, MSG_PEEK = _socket.MSG_DONTWAIT, _socket.MSG_PEEK
MSG_TRUNC = _socket.MSG_TRUNC  # TCP throws away what it would copy (tcp(7))
IN_OR_END = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
END = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
CONNECTION_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds
NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EPERM)
"""A kernel, or an outer sandbox, without splice(2) for these sockets."""


class Pipe:
    """What bytes go through from one socket to the other without being copied (splice(2)).

    It is kept for others when it is empty, and closed if what it holds can be sent no more.
    """

    __slots__ = ("held", "reader", "writer")

    def __init__(self) -> None:
        """Raises OSError."""
        self.held = 0  # bytes
        self.reader, self.writer = os.pipe()
        try:
            libc.call("fcntl", self.writer, F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Side:
    """One of the two sockets of a relayed connection, and what flows out of it."""

    __slots__ = (
        "broken",
        "bulk",
        "chunk",
        "continues",
        "descriptor",
        "dialling",
        "ended",
        "full",
        "hung_up",
        "inward",
        "peer",
        "prompt",
        "readable",
        "socket",
        "taken",
        "unsent",
    )

    peer: Side

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket
        self.descriptor = socket.fileno()
        self.readable = False  # something may be there to read
        self.hung_up = False  # the kernel told that an end or an error is among it
        self.ended = False  # its end of file was read
        self.dialling = False  # connect(2) is under way
        self.broken = False  # its connection was reset, or timed out
        self.inward = False  # the end in the sandbox
        self.full = False  # takes no more until an event tells of room
        # read from the peer, not yet taken by this socket
        self.unsent: memoryview | Pipe | None = None
        self.taken = 0  # bytes of a memoryview that this socket has taken meanwhile
        self.chunk = FIRST_CHUNK
        self.bulk = False  # it fills the largest chunks: its bytes are better not copied
        self.continues = False  # it has spoken, and nothing was said to it since
        self.prompt = 0  # messages from it that are still to be acknowledged at once


class Place:
    """Where clients are led: a TCP port, and the family and address of each target to try.

    `inward` tells whether that is in the sandbox; else the clients are. Clients from elsewhere than
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
        self.unserved = unserved
        self.targets = targets
        self.inward = inward
        self.allowed = allowed  # networks of the clients (see `ports.parse_networks`); (): all
        self.last = 0  # the entry of targets that answered last

    def aim(self, port: int, targets: Sequence[tuple[int, str]]) -> None:
        """Lead clients elsewhere from now on."""
        self.port, self.targets, self.last = port, targets, 0


class Dial:
    """A connection that has not been answered yet."""

    __slots__ = ("begun", "place", "refused", "side", "target")

    def __init__(self, side: Side, place: Place) -> None:
        self.side = side
        self.place = place
        self.target = place.last
        self.refused = False  # nobody listens there; another target is to be tried
        self.begun = time.monotonic()


class Relay:
    """Accepts on listening sockets and connects each client to the place of its listener."""

    def __init__(self, most_connections: int) -> None:
        self.pipes: list[Pipe] = []  # empty ones
        # Two descriptors each, as a connection has.
        self.pipes_to_make = min(MOST_PIPES, most_connections // 16) if splice else 0
        self.most_connections = most_connections - self.pipes_to_make
        self.epoll = select.epoll()
        self.watched: dict[int, Callable[[], None]] = {}
        self.listeners: dict[int, _socket.socket] = {}
        self.places: dict[int, Place] = {}  # of the listeners
        self.sides: dict[int, Side] = {}
        self.dials: dict[int, Dial] = {}
        self.redial_pause = REDIAL_FIRST
        self.redial_at = 0.0
        self.kept = 0  # bytes of ours that hold what is unsent
        self.turned_off: list[Side] = []  # have had their turn and have more to read
        self.paused = False
        self.resume_at = 0.0
        self.buffer: memoryview | None = None

    @property
    def view(self) -> memoryview:
        """Room for what one read brings, in use until the next one: an idle session spares it."""
        if self.buffer is None:
            self.buffer = memoryview(bytearray(CHUNK))
        return self.buffer

    # -- what is watched -------------------------------------------------------------------

    def watch(self, descriptor: int, action: Callable[[], None], edge: bool = False) -> None:
        """Call `action` whenever this descriptor is readable or at its end; with `edge` only when
        it has become so."""
        self.watched[descriptor] = action
        events = select.EPOLLIN | select.EPOLLRDHUP
        self.epoll.register(descriptor, events | select.EPOLLET if edge else events)

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""
        del self.watched[descriptor]
        self.epoll.unregister(descriptor)

    def serve(self, listener: _socket.socket, place: Place) -> None:
        """Relay every connection that this listening socket takes to this place."""
        # Sockets from accept(2) inherit it (tcp(7)): small messages must not wait for an answer.
        listener.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        self.listeners[listener.fileno()] = listener
        self.places[listener.fileno()] = place
        self.watch(listener.fileno(), lambda: None)

    def release(self, listener: _socket.socket) -> None:
        """Undo `serve`; connections that are there go on."""
        self.unwatch(listener.fileno())
        del self.listeners[listener.fileno()]
        del self.places[listener.fileno()]

    def stop_serving(self, listener: _socket.socket) -> None:
        """Undo `serve` and close the socket."""
        self.release(listener)
        listener.close()

    def stop_listening(self, inward: bool = False) -> None:
        """Undo every `serve` and close its socket; with `inward` of those that lead inside only."""
        for listener in list(self.listeners.values()):
            if self.places[listener.fileno()].inward or not inward:
                self.stop_serving(listener)

    # -- the loop --------------------------------------------------------------------------

    def turn(self, limit: float = -1.0) -> None:
        """Wait for events, `limit` seconds at most (-1: without end), and deal with them."""
        accepting = False
        events = self.epoll.poll(self.patience(limit))
        turned_off, self.turned_off = self.turned_off, []
        for descriptor, event in events:
            side = self.sides.get(descriptor)
            if side is not None:
                self.advance(side, event)
            elif descriptor in self.listeners:
                accepting = True
            elif descriptor in self.watched:
                self.watched[descriptor]()
        for side in turned_off:
            self.pump(side)
        # New sockets come last: a number closed above must not meet an event of its past here.
        self.redial()
        if accepting or self.paused:
            self.accept()

    def patience(self, limit: float) -> float:
        """Seconds to wait for events."""
        if self.turned_off:
            return 0.0
        moments = [self.redial_at] if self.dials else []
        if self.paused and self.resume_at:
            moments.append(self.resume_at)
        if moments:
            wait = max(0.0, min(moments) - time.monotonic())
            return wait if limit < 0 else min(limit, wait)
        return limit

    # -- new connections -------------------------------------------------------------------

    def accept(self) -> None:
        """Take what waits at the listening sockets, as far as there are descriptors for it."""
        if self.paused and not self.may_resume():
            return
        for listener in self.listeners.values():
            for _ in range(ACCEPTS):
                if len(self.sides) >= 2 * self.most_connections:
                    self.pause(0.0)
                    return
                try:
                    client, address = accept(listener)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in OUT_OF_RESOURCES:
                        self.pause(time.monotonic() + LATE_RETRY)
                        return
                    continue  # ECONNABORTED and its like: this client is gone (accept(2))
                place = self.places[listener.fileno()]
                if place.allowed and not is_among(client.family, address, place.allowed):
                    reset(client)
                else:
                    self.connect(client, place)

    def pause(self, resume_at: float) -> None:
        """Accept nothing until a connection has ended, or until a moment of time.monotonic()."""
        self.paused, self.resume_at = True, resume_at
        for descriptor in self.listeners:
            self.epoll.modify(descriptor, 0)

    def may_resume(self) -> bool:
        """Start to accept again if there is room."""
        if len(self.sides) >= 2 * self.most_connections:
            self.resume_at = 0.0  # room comes with the end of a connection only
            return False
        if time.monotonic() < self.resume_at:
            return False
        self.paused = False
        for descriptor in self.listeners:
            self.epoll.modify(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        return True

    def connect(self, client: _socket.socket, place: Place) -> None:
        """Connect a new client to its place."""
        outer = Side(client)
        outer.inward = not place.inward
        try:
            self.add(outer)
            inner = self.dial(outer, place, place.last)
        except OSError as error:
            self.sides.pop(outer.descriptor, None)
            reset(client)
            if error.errno in OUT_OF_RESOURCES:
                self.pause(time.monotonic() + LATE_RETRY)
            return
        outer.peer = inner
        if not self.dials:
            self.redial_pause = REDIAL_FIRST
            self.redial_at = time.monotonic() + REDIAL_FIRST
        self.dials[inner.descriptor] = Dial(inner, place)

    def dial(self, outer: Side, place: Place, target: int) -> Side:
        """Start a connection to an entry of the place's targets. Raises OSError."""
        family, address = place.targets[target]
        kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        inner = Side(_socket.socket(family, kind))
        inner.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        inner.peer = outer
        inner.dialling = True
        inner.inward = place.inward
        inner.socket.connect_ex((address, place.port))  # the answer comes as an event
        self.add(inner)
        return inner

    def add(self, side: Side) -> None:
        """Raises OSError."""
        self.epoll.register(side.descriptor, CONNECTION_EVENTS)
        self.sides[side.descriptor] = side

    def answered(self, inner: Side, event: int) -> None:
        """The server has taken the connection, or nobody listens there."""
        dial = self.dials.pop(inner.descriptor)
        if not event & (select.EPOLLERR | select.EPOLLHUP):
            inner.dialling = False
            dial.place.last = dial.target
            if dial.place.unserved is not None:
                dial.place.unserved.on_served()
            return
        tried = (dial.target + 1) % len(dial.place.targets)
        if tried != dial.place.last:
            # After this turn's events: a new socket may get a number that one of them still means.
            dial.target, dial.refused = tried, True
            self.dials[inner.descriptor] = dial
            return
        self.abort(inner)
        if dial.place.unserved is not None:
            dial.place.unserved.on_client()

    def redial(self) -> None:
        """Try again where the server's backlog was full: the kernel itself would wait a second.

        Oldest first, and for each place only until one finds the backlog still full: the others
        would, too, and all at once they would keep the server from the processor.
        """
        for dial in [dial for dial in self.dials.values() if dial.refused]:
            self.replace(dial)
        if not self.dials or time.monotonic() < self.redial_at:
            return
        progress = False
        full = set()
        for dial in sorted(self.dials.values(), key=lambda dial: dial.begun):
            if dial.place in full:
                continue
            if not self.is_connected(dial):
                if not self.replace(dial):
                    continue
                if not self.is_connected(dial):
                    full.add(dial.place)
                    continue
            progress = True
        self.redial_pause = REDIAL_FIRST if progress else min(2 * self.redial_pause, REDIAL_LAST)
        self.redial_at = time.monotonic() + self.redial_pause

    def is_connected(self, dial: Dial) -> bool:
        """Whether the server's backlog has taken this connection; its event tells it later."""
        _, address = dial.place.targets[dial.target]
        # A second connect(2) gives the state of the first one.
        answer = dial.side.socket.connect_ex((address, dial.place.port))
        return answer in (0, errno.EISCONN)

    def replace(self, dial: Dial) -> bool:
        """Give a client that waits for the server another socket inward. False: it cannot."""
        outer = dial.side.peer
        del self.dials[dial.side.descriptor]
        self.drop(dial.side)
        try:
            dial.side = outer.peer = self.dial(outer, dial.place, dial.target)
        except OSError:
            self.drop(outer, with_reset=True)
            return False
        dial.refused = False
        self.dials[dial.side.descriptor] = dial
        return True

    # -- moving bytes ----------------------------------------------------------------------

    def advance(self, side: Side, event: int) -> None:
        """Move what this event allows to move, out of and into this side."""
        peer = side.peer
        if side.dialling:
            self.answered(side, event)
            if side.dialling:
                return
        if event & IN_OR_END:
            side.readable = True
            if event & END:
                side.hung_up = True
            if event & select.EPOLLERR:
                side.broken = True
        if event & select.EPOLLOUT:
            side.full = False
            if side.unsent is not None:
                self.flush(side)
            self.pump(peer)
        self.pump(side)

    def pump(self, side: Side) -> None:
        """Read from this side and send to its peer, until one of the two would block."""
        for _ in range(TURN):
            if not side.readable:  # a side that was dropped is not, either
                return
            peer = side.peer
            if peer.full or peer.dialling or side.dialling:
                if side.broken:  # no reason to wait: without us, who reads too late loses it, too
                    self.abort(side)
                return
            if not (side.bulk and self.pipe_through(side)):
                self.copy(side)
        if side.readable:
            self.turned_off.append(side)

    def copy(self, side: Side) -> None:
        """Read once from this side and send it to its peer."""
        wanted, peer = side.chunk, side.peer
        peek = MSG_PEEK if self.kept >= MAX_UNSENT else 0
        try:
            count = side.socket.recv_into(self.view[:wanted], 0, MSG_DONTWAIT | peek)
        except BlockingIOError:
            side.readable = False
            return
        except OSError:
            self.abort(side)
            return
        if count == 0:
            side.readable = False
            if not side.ended:
                side.ended = True
                self.end(peer)
            return
        if not (self.send_peeked if peek else self.send)(peer, self.view[:count]):
            return
        peer.continues = False
        if count < wanted:
            if side.continues or side.prompt:
                acknowledge(side, count)
            side.continues = True
            # A stream that gave less than was asked for is empty (epoll(7)), but an end that was
            # announced together with it is announced only once.
            if not side.hung_up:
                side.readable = False
        elif wanted < CHUNK:
            side.chunk = 2 * wanted
        elif not side.bulk:
            side.bulk = True
            # SPLICE_F_NONBLOCK is about the pipe; of the sockets it is their own (splice(2)).
            side.socket.setblocking(False)
            peer.socket.setblocking(False)

    def pipe_through(self, side: Side) -> bool:
        """Do the same through a pipe. False: only recv(2) can tell what comes next."""
        pipe = self.empty_pipe()
        if pipe is None:
            return False
        try:
            pipe.held = splice(side.descriptor, pipe.writer, PIPE_SIZE, flags=SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return False  # nothing is there, or urgent data, which splice does not pass
        except OSError as error:
            if error.errno not in NOT_HERE:
                self.abort(side)
                return True
            self.pipes_to_make = 0
            self.pipes.pop().close()
            return False
        if pipe.held < FIRST_CHUNK:
            side.bulk = False
        if pipe.held == 0:
            return False  # the end, or urgent data before it
        side.peer.unsent = self.pipes.pop()
        self.flush(side.peer)
        return True

    def empty_pipe(self) -> Pipe | None:
        """The pipe to use next. None: all are full, or the account may have no more."""
        if not self.pipes and self.pipes_to_make:
            self.pipes_to_make -= 1
            try:
                self.pipes.append(Pipe())
            except OSError:
                self.pipes_to_make = 0
        return self.pipes[-1] if self.pipes else None

    def send(self, side: Side, data: memoryview) -> bool:
        """Send what this side takes and keep the rest for it. False: its peer must wait."""
        sent = self.try_to_send(side, data)
        if sent == len(data):
            return True
        if sent >= 0:
            side.unsent, side.taken = memoryview(bytes(data[sent:])), 0
            self.kept += len(data) - sent
        return False

    def send_peeked(self, side: Side, data: memoryview) -> bool:
        """The same for data that is still to be read: the rest stays with the kernel."""
        sent = self.try_to_send(side, data)
        if sent > 0:
            side.peer.socket.recv_into(data[:sent], 0, MSG_DONTWAIT | MSG_TRUNC)
        return sent == len(data)

    def try_to_send(self, side: Side, data: memoryview) -> int:
        """Return how much this side has taken; -1: the connection is no more."""
        try:
            sent = side.socket.send(data, MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.last_answer(side)
            self.abort(side)
            return -1
        if sent < len(data):
            side.full = True
            # Its reader is slow: keep less for it.
            side.peer.chunk = max(SMALLEST_CHUNK, side.peer.chunk // 4)
        return sent

    def flush(self, side: Side) -> None:
        """Send what was kept for this side."""
        try:
            if isinstance(side.unsent, Pipe):
                self.empty(side.unsent, side)
                return
            assert side.unsent is not None
            side.taken += side.socket.send(side.unsent[side.taken :], MSG_DONTWAIT)
        except BlockingIOError:
            side.full = True
            return
        except OSError:
            self.last_answer(side)
            self.abort(side)
            return
        if side.taken == len(side.unsent):
            self.forget_unsent(side)
        else:
            side.full = True

    def forget_unsent(self, side: Side) -> None:
        """Keep nothing for this side any more."""
        unsent, side.unsent = side.unsent, None
        if isinstance(unsent, Pipe):
            unsent.close()
            self.pipes_to_make += 1
        elif unsent is not None:
            self.kept -= len(unsent)

    def empty(self, pipe: Pipe, side: Side) -> None:
        """Send what this pipe holds, and have one back. Raises OSError as send(2) does."""
        while pipe.held:
            pipe.held -= splice(pipe.reader, side.descriptor, pipe.held, flags=SPLICE_F_NONBLOCK)
        side.unsent = None
        if self.pipes:  # one is enough most of the time, and the account's programs want some, too
            pipe.close()
            self.pipes_to_make += 1
        else:
            self.pipes.append(pipe)

    def end(self, side: Side) -> None:
        """Pass an end of file on to this side, which has all that came before: while something is
        unsent, nothing more is read."""
        if side.ended:
            self.drop(side.peer)
            self.drop(side)
            return
        try:
            side.socket.shutdown(_socket.SHUT_WR)
        except OSError:
            self.abort(side)

    def last_answer(self, side: Side) -> None:
        """This side takes no more; what it said before that still reaches its peer."""
        view = self.view
        try:
            while not side.peer.full:
                count = side.socket.recv_into(view, 0, MSG_DONTWAIT)
                if count == 0 or side.peer.socket.send(view[:count], MSG_DONTWAIT) < count:
                    return
        except OSError:
            return

    def abort(self, side: Side) -> None:
        """Pass a reset on."""
        for each in (side.peer, side):
            self.dials.pop(each.descriptor, None)
            self.drop(each, with_reset=True)

    def drop(self, side: Side, with_reset: bool = False) -> None:
        """Close this socket; the kernel takes it out of the epoll by itself."""
        if self.sides.pop(side.descriptor, None) is None:
            return
        side.readable = False
        self.forget_unsent(side)
        del side.peer  # each refers to the other: what they hold would wait for the collector
        if with_reset:
            reset(side.socket)
        else:
            side.socket.close()

    def finish(self, limit: float) -> None:
        """Deliver what has been sent already: `limit` seconds at most."""
        self.stop_listening(inward=True)
        self.accept()  # a client in the sandbox may have sent all that it had to, and gone
        self.stop_listening()
        until = time.monotonic() + limit
        for descriptor in self.sides:
            # What is told once only may have been told together with the end of the command: so it
            # is told again (epoll_ctl(2), EPOLL_CTL_MOD).
            self.epoll.modify(descriptor, CONNECTION_EVENTS)
        while time.monotonic() < until and self.undelivered():
            self.turn(until - time.monotonic())

    def undelivered(self) -> bool:
        """Whether anything is left that the sandbox has sent. The end of file of a process that
        has gone comes after all that it has sent, part of which may still be on its way."""
        return bool(self.turned_off) or any(
            side.unsent or (side.inward and not side.ended) for side in self.sides.values()
        )


def acknowledge(side: Side, count: int) -> None:
    """Spare who sends messages in a row the wait between them: by Nagle's algorithm (RFC 1122,
    4.2.3.4) the second waits for the acknowledgement of the first, which Linux delays by 40 ms.

    Where each is answered, the answer acknowledges it: a segment of its own costs requests a fifth.
    """
    if side.continues:
        side.prompt = PROMPT
    if count < SMALL:
        side.prompt -= 1
        try:
            # Sends what is due; it does not stay set (tcp(7)).
            side.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_QUICKACK, 1)
        except OSError:
            pass  # a connection over MPTCP does not have it


def is_among(family: int, address: Any, networks: Sequence[tuple[int, int, int]]) -> bool:
    """Whether the address of a client is one of these networks."""
    packed = _socket.inet_pton(family, address[0])
    if packed.startswith(MAPPED):
        packed = packed[len(MAPPED) :]  # of an IPv4 client, at a socket for both
    number = int.from_bytes(packed, "big")
    return any(
        len(packed) == length and number >> ignored == rest for length, ignored, rest in networks
    )


def reset(socket: _socket.socket) -> None:
    """Close a connection so that its other end sees a reset (socket(7), SO_LINGER)."""
    try:
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, RESET_AT_CLOSE)
    except OSError:
        pass
    socket.close()
