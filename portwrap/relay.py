"""The keeper at work: the relay and the watch over the command. Runs alone, in a lean interpreter.

`keeper.py` starts this file with `python -I -S` inside the sandbox's namespaces, its code handed over
in memory. It imports C modules only: `os`, `socket` and `signal` would add 1.3 MB to every session.

One thread, one epoll, edge-triggered for connections: each descriptor is registered once, and an
event says that something has changed since it was last read or written until EAGAIN.
"""

from __future__ import annotations

import errno
import posix
import select
import time

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

CHUNK = 256 * 1024
"""Bytes moved by one read at most; one buffer of this size serves every connection."""
FIRST_CHUNK = 64 * 1024
SMALLEST_CHUNK = 8 * 1024
TURN = 16
"""Reads in a row for one connection before the others have their turn."""
ACCEPTS = 64
"""Connections accepted in a row before those that are there have their turn."""
REDIAL_FIRST, REDIAL_LAST = 0.01, 1.0
"""Seconds until a connection that the server's full backlog swallowed is tried again; doubles."""
LATE_RETRY = 1.0
"""Seconds until accepting goes on after the system had no descriptor or memory for us."""
LAST_WORDS = 0.5
"""Seconds to deliver what the command sent before it ended."""
PROC_INTERVAL = 2.0
"""Seconds between two looks at the command's /proc entry where the kernel has no pidfd."""
GUESTS = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))

MSG_DONTWAIT = _socket.MSG_DONTWAIT
IN_OR_END = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
END = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
CONNECTION_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Side:
    """One of the two sockets of a relayed connection, and what flows out of it."""

    __slots__ = ("chunk", "descriptor", "dialling", "ended", "hung_up", "peer", "readable")
    __slots__ += ("socket", "unsent")

    peer: Side

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket
        self.descriptor = socket.fileno()
        self.readable = False  # something may be there to read
        self.hung_up = False  # the kernel told that an end or an error is among it
        self.ended = False  # its end of file was read
        self.dialling = False  # connect(2) is under way
        self.unsent: memoryview | None = None  # read from the peer, not yet taken by this socket
        self.chunk = FIRST_CHUNK


class Dial:
    """A connection inward that has not been answered yet."""

    __slots__ = ("again", "guest", "pause", "side")

    def __init__(self, side: Side, guest: int) -> None:
        self.side = side
        self.guest = guest
        self.pause = REDIAL_FIRST
        self.again = time.monotonic() + self.pause


class Relay:
    """Accepts on listening sockets of the host and connects each client to the guest port."""

    def __init__(self, guest_port: int, most_connections: int) -> None:
        self.guest_port = guest_port
        self.most_connections = most_connections
        self.epoll = select.epoll()
        self.watched: dict[int, Callable[[], None]] = {}
        self.listeners: dict[int, _socket.socket] = {}
        self.sides: dict[int, Side] = {}
        self.dials: dict[int, Dial] = {}
        self.turned_off: list[Side] = []  # have had their turn and have more to read
        self.paused = False
        self.resume_at = 0.0
        self.guest = 0  # the entry of GUESTS that answered last
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)

    # -- what is watched -------------------------------------------------------------------

    def watch(self, descriptor: int, action: Callable[[], None]) -> None:
        """Call `action` whenever this descriptor is readable or at its end."""
        self.watched[descriptor] = action
        self.epoll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP)

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""
        del self.watched[descriptor]
        self.epoll.unregister(descriptor)

    def serve(self, listener: _socket.socket) -> None:
        """Relay every connection that this listening socket takes."""
        # Sockets from accept(2) inherit it (tcp(7)): small messages must not wait for an answer.
        listener.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        self.listeners[listener.fileno()] = listener
        self.watch(listener.fileno(), lambda: None)

    def refuse(self, listener: _socket.socket) -> None:
        """Reset every connection that this listening socket takes."""
        listener.setblocking(False)

        def turn_away() -> None:
            try:
                descriptor, _ = listener._accept()
            except OSError:
                return
            reset(_socket.socket(_socket.AF_INET6, _socket.SOCK_STREAM, 0, descriptor))

        self.watch(listener.fileno(), turn_away)

    def stop_listening(self) -> None:
        """Free the host port; connections that are there go on."""
        for descriptor, listener in self.listeners.items():
            self.unwatch(descriptor)
            listener.close()
        self.listeners.clear()

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
        moments = [dial.again for dial in self.dials.values()]
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
                    descriptor, _ = listener._accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in OUT_OF_RESOURCES:
                        self.pause(time.monotonic() + LATE_RETRY)
                        return
                    continue  # ECONNABORTED and its like: this client is gone (accept(2))
                self.connect(_socket.socket(listener.family, listener.type, 0, descriptor))

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

    def connect(self, client: _socket.socket) -> None:
        """Connect a new client inward."""
        outer = Side(client)
        try:
            inner = self.dial(outer, self.guest)
        except OSError as error:
            reset(client)
            if error.errno in OUT_OF_RESOURCES:
                self.pause(time.monotonic() + LATE_RETRY)
            return
        outer.peer = inner
        self.add(outer)
        self.dials[inner.descriptor] = Dial(inner, self.guest)

    def dial(self, outer: Side, guest: int) -> Side:
        """Start a connection to the guest port. Raises OSError."""
        family, address = GUESTS[guest]
        kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        inner = Side(_socket.socket(family, kind))
        inner.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        inner.peer = outer
        inner.dialling = True
        inner.socket.connect_ex((address, self.guest_port))  # the answer comes as an event
        self.add(inner)
        return inner

    def add(self, side: Side) -> None:
        self.sides[side.descriptor] = side
        self.epoll.register(side.descriptor, CONNECTION_EVENTS)

    def answered(self, inner: Side, event: int) -> None:
        """The server has taken the connection, or nobody listens there."""
        dial = self.dials.pop(inner.descriptor)
        if not event & (select.EPOLLERR | select.EPOLLHUP):
            inner.dialling = False
            self.guest = dial.guest
            return
        tried = (dial.guest + 1) % len(GUESTS)
        if tried != self.guest:
            self.replace(dial, tried)
        else:
            self.abort(inner)

    def redial(self) -> None:
        """Try again where the server's backlog was full: the kernel itself would wait a second."""
        if not self.dials:
            return
        now = time.monotonic()
        for dial in [dial for dial in self.dials.values() if dial.again <= now]:
            del self.dials[dial.side.descriptor]
            dial.pause = min(2 * dial.pause, REDIAL_LAST)
            self.replace(dial, dial.guest)

    def replace(self, dial: Dial, guest: int) -> None:
        """Give a client that waits for the server another socket inward."""
        outer = dial.side.peer
        self.drop(dial.side)
        try:
            dial.side = outer.peer = self.dial(outer, guest)
        except OSError:
            self.drop(outer, with_reset=True)
            return
        dial.guest = guest
        dial.again = time.monotonic() + dial.pause
        self.dials[dial.side.descriptor] = dial

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
        if event & select.EPOLLOUT:
            if side.unsent is not None:
                self.flush(side)
            if peer.readable and side.descriptor in self.sides:
                self.pump(peer)
        if side.readable and side.descriptor in self.sides:
            self.pump(side)

    def pump(self, side: Side) -> None:
        """Read from this side and send to its peer, until one of the two would block."""
        peer = side.peer
        if peer.dialling or side.dialling or side.descriptor not in self.sides:
            return
        view = self.view
        for _ in range(TURN):
            if not side.readable or peer.unsent is not None:
                return
            wanted = side.chunk
            try:
                count = side.socket.recv_into(view[:wanted], 0, MSG_DONTWAIT)
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
            if not self.send(peer, view[:count]):
                return
            if count < wanted:
                # A stream that gave less than was asked for is empty (epoll(7)), but an end that
                # was announced together with it is announced only once.
                if not side.hung_up:
                    side.readable = False
            elif wanted < CHUNK:
                side.chunk = 2 * wanted
        if side.readable:
            self.turned_off.append(side)

    def send(self, side: Side, data: memoryview) -> bool:
        """Send what this side takes and keep the rest for it. False: its peer must wait."""
        try:
            sent = side.socket.send(data, MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.last_answer(side)
            self.abort(side)
            return False
        if sent == len(data):
            return True
        side.unsent = memoryview(bytes(data[sent:]))
        # Its reader is slow: keep less for it.
        side.peer.chunk = max(SMALLEST_CHUNK, side.peer.chunk // 4)
        return False

    def flush(self, side: Side) -> None:
        """Send what was kept for this side."""
        assert side.unsent is not None
        try:
            sent = side.socket.send(side.unsent, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self.last_answer(side)
            self.abort(side)
            return
        rest = side.unsent[sent:]
        side.unsent = rest if len(rest) else None
        if side.unsent is None and side.peer.ended:
            self.end(side)

    def end(self, side: Side) -> None:
        """Pass an end of file on to this side, once it has all that came before."""
        if side.unsent is not None:
            return
        if side.ended and side.peer.unsent is None:
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
            while side.peer.unsent is None:
                count = side.socket.recv_into(view, 0, MSG_DONTWAIT)
                if count == 0 or side.peer.socket.send(view[:count], MSG_DONTWAIT) < count:
                    return
        except OSError:
            return

    def abort(self, side: Side) -> None:
        """Pass a reset on."""
        self.dials.pop(side.descriptor, None)
        self.dials.pop(side.peer.descriptor, None)
        self.drop(side.peer, with_reset=True)
        self.drop(side, with_reset=True)

    def drop(self, side: Side, with_reset: bool = False) -> None:
        """Close this socket; the kernel takes it out of the epoll by itself."""
        if self.sides.pop(side.descriptor, None) is None:
            return
        side.readable = False
        if with_reset:
            reset(side.socket)
        else:
            side.socket.close()

    def finish(self, limit: float) -> None:
        """Deliver what has been sent already: `limit` seconds at most."""
        self.stop_listening()
        until = time.monotonic() + limit
        for side in list(self.sides.values()):
            side.readable = True
            self.pump(side)
        while time.monotonic() < until and self.undelivered():
            self.turn(until - time.monotonic())

    def undelivered(self) -> bool:
        """Whether anything is left that a client has not taken."""
        return bool(self.turned_off) or any(side.unsent for side in self.sides.values())


def reset(socket: _socket.socket) -> None:
    """Close a connection so that its other end sees a reset (socket(7), SO_LINGER)."""
    try:
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, RESET_AT_CLOSE)
    except OSError:
        pass
    socket.close()


# -- the watch ---------------------------------------------------------------------------------


class Keeper:
    """Watches over the command, the network helper and the lifeline, and runs the relay."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.command = settings["command"]  # process number
        self.process = settings["process"]  # its pidfd, or the directory of its /proc entry
        self.has_pidfd = bool(settings["has_pidfd"])
        self.helper = settings["helper"]  # process number
        self.helper_words = settings["helper_words"]  # pipe from its standard error
        self.tail = b""  # the end of what it said
        kind = _socket.SOCK_SEQPACKET
        self.lifeline = _socket.socket(_socket.AF_UNIX, kind, 0, settings["lifeline"])
        self.lifeline_whole = True
        self.helper_piped = True
        self.relay = Relay(settings["guest_port"], settings["most_connections"])

    def run(self) -> NoReturn:
        """Wait until the network helper is ready, say so, and serve until the command is gone."""
        for descriptor in self.settings["serving"]:
            self.relay.serve(_socket.socket(fileno=descriptor))
        for descriptor in self.settings["guards"]:
            self.relay.refuse(_socket.socket(fileno=descriptor))
        self.wait_for_helper()
        self.watch()
        self.lifeline.send(b"ready")
        while True:
            self.relay.turn(-1.0 if self.has_pidfd else PROC_INTERVAL)
            if not self.has_pidfd:
                self.look_at_both()

    def wait_for_helper(self) -> None:
        """Return when the network helper has said that it is ready; else tell the command why."""
        ready = self.settings["ready"]
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
                self.give_up(f"ended before it was ready{self.verdict()}")
            if not events:
                self.give_up(f"was not ready in {self.settings['ready_limit']} s{self.verdict()}")

    def watch(self) -> None:
        """Put everything that can end the session into the relay's loop."""
        if self.is_gone():
            self.leave()
        self.relay.watch(self.lifeline.fileno(), self.on_lifeline)
        self.relay.watch(self.helper_words, self.on_helper_words)
        if self.has_pidfd:
            self.relay.watch(self.process, self.on_command_end)
            self.relay.watch(self.settings["helper_process"], self.on_helper_end)

    # -- the command -----------------------------------------------------------------------

    def is_gone(self) -> bool:
        """Whether the command has ended: a zombie has, too."""
        if self.has_pidfd:
            poll = select.poll()
            poll.register(self.process, select.POLLIN)
            return bool(poll.poll(0))
        try:
            stat = posix.open("stat", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=self.process)
        except OSError:
            return True
        try:
            # proc(5): the state stands behind the name, which may hold anything but is in brackets
            return posix.read(stat, 4096).rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except OSError:
            return True
        finally:
            posix.close(stat)

    def on_command_end(self) -> None:
        self.relay.unwatch(self.process)
        self.relay.finish(LAST_WORDS)
        self.leave()

    def on_lifeline(self) -> None:
        """End of file is no end of the command: some launchers close whatever they do not know."""
        self.relay.unwatch(self.lifeline.fileno())
        self.lifeline_whole = False
        if self.is_gone():
            self.relay.finish(LAST_WORDS)
            self.leave()

    def look_at_both(self) -> None:
        """Without pidfds: see whether the command or the network helper has ended."""
        if self.is_gone():
            self.relay.finish(LAST_WORDS)
            self.leave()
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
        process, status = posix.waitpid(self.helper, posix.WNOHANG)
        if process == 0:
            return
        self.helper = 0
        self.hear_out()
        if not self.is_gone():
            self.complain(f"network helper {self.how(status)}; ending the command (SIGTERM)")
            self.end_command()
        self.leave()

    def hear_out(self) -> None:
        """Read what is left in the pipe of a helper that has ended, without waiting."""
        posix.set_blocking(self.helper_words, False)
        try:
            while self.helper_piped and self.listen_to_helper():
                pass
        except OSError:
            pass

    def how(self, status: int) -> str:
        """How a process ended, with its last line."""
        if posix.WIFSIGNALED(status):
            text = f"was ended by signal {posix.WTERMSIG(status)}"
        else:
            text = f"ended with status {posix.WEXITSTATUS(status)}"
        return text + self.last_words()

    def last_words(self) -> str:
        lines = self.tail.decode("utf-8", "replace").split("\n")
        said = "; ".join(line.strip() for line in lines if line.strip())
        return f": {said[-400:]}" if said else ""

    def verdict(self) -> str:
        """Why the network helper did not become ready."""
        process, status = self.reap(0.2)
        self.hear_out()
        if process == 0:
            return self.last_words()
        return f" ({self.how(status)})"

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
        self.lifeline.send(why.encode("utf-8", "replace"))
        self.leave()

    def complain(self, text: str) -> None:
        try:
            posix.write(2, f"{self.settings['program']}: {text}\n".encode())
        except OSError:
            pass

    def leave(self) -> NoReturn:
        """End the network helper and this process; the kernel closes the rest."""
        if self.helper:
            posix.kill(self.helper, 9)
            posix.waitpid(self.helper, 0)
        posix._exit(0)



def main(settings: dict[str, Any]) -> NoReturn:
    """Serve as the keeper that `keeper.py` has described in these settings."""
    with open("/proc/self/comm", "w") as comm:
        comm.write("portwrap-keeper")
    Keeper(settings).run()
