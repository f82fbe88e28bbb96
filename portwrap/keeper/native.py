"""The hand-over: the server inside is given the host's own listening socket, and serves by itself.

The keeper stays in the host's namespaces. Each listen(2) and bind(2) inside waits for its answer
(`seccomp.py`). When a server calls listen on the guest port, its socket is replaced, under the same
number, by the host's; from then on it accepts the host's connections itself, at native speed. The
keeper listens on the socket that was replaced: so the guest port stays taken inside, and clients
inside still reach the server there, relayed to the host port.

Where that cannot be done, the keeper enters the sandbox and becomes the relay, for good.
"""

from __future__ import annotations

import fcntl
import os
import time

import _socket

from ..kernel import libc, seccomp
from ..kernel.sockets import BACKLOG
from .relay import GUESTS, Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .relay import Relay
    from .responder import Responder
    from .session import Session

LOOK_SOON, LOOK_FIRST, LOOK_LAST = 0.001, 0.05, 1.0
"""Seconds until the next look for a server whose socket was not replaced, while clients wait: the
first one, if we know of such a server and if not, and the last one; doubles in between. No client,
no look."""
UNWATCHED = "the server listens without the system call that we watch"
OTHER_FAMILY = "the server listens on another address family than the host port"

SOL_SOCKET, IPPROTO_TCP = _socket.SOL_SOCKET, _socket.IPPROTO_TCP
O_ASYNC = 0o20000  # asm-generic/fcntl.h
SO_BUF_LOCK = 72  # asm-generic/socket.h, Linux 5.14: which buffer sizes were set by hand
SNDBUF_LOCK, RCVBUF_LOCK = 1, 2
IPPROTO_MPTCP = 262  # Go's listeners are MPTCP sockets by default
COPIED_OPTIONS = (
    (SOL_SOCKET, _socket.SO_KEEPALIVE),
    (SOL_SOCKET, _socket.SO_OOBINLINE),
    (SOL_SOCKET, _socket.SO_LINGER),
    (SOL_SOCKET, _socket.SO_RCVLOWAT),
    (SOL_SOCKET, _socket.SO_RCVTIMEO),
    (SOL_SOCKET, _socket.SO_SNDTIMEO),
    (IPPROTO_TCP, _socket.TCP_NODELAY),
    (IPPROTO_TCP, _socket.TCP_KEEPIDLE),
    (IPPROTO_TCP, _socket.TCP_KEEPINTVL),
    (IPPROTO_TCP, _socket.TCP_KEEPCNT),
    (IPPROTO_TCP, _socket.TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, _socket.TCP_USER_TIMEOUT),
)
"""What a server may have set on its listening socket and accept(2) hands on to connections."""


class Native:
    """Gives the server the host's socket, and keeps the guest port in the sandbox."""

    def __init__(
        self,
        session: Session,
        responder: Responder,
        relay: Relay,
        explain: Callable[[str], None],
        complain: Callable[[str], None],
        relay_inside: Callable[[list[_socket.socket], int], None],
    ) -> None:
        go = session.go
        self.command = go.command
        self.guest_port = go.guest_port
        self.network = os.fstat(go.descriptors.network_namespace).st_ino
        self.relay = relay
        self.explain = explain
        self.complain = complain
        self.relay_inside = relay_inside  # relay from these sockets to this port in there
        self.place = Place(self.guest_port, GUESTS)  # where the clients inside are led
        self.hosts = [_socket.socket(fileno=number) for number in go.descriptors.listeners]
        self.host_links = {link_of(host) for host in self.hosts}
        self.original: _socket.socket | None = None  # the server's own, which we listen on
        self.server = ""  # the entry in /proc of the descriptor that was replaced last
        self.process = -1  # pidfd of a process that serves
        self.relaying = False  # for good
        self.reason = UNWATCHED  # why we would have to relay
        self.waiting = False  # clients of the host port wait for a server
        self.first_pause = LOOK_FIRST
        self.next_look, self.pause = 0.0, LOOK_FIRST
        machine = seccomp.this_machine()
        assert machine is not None
        responder.on(machine.bind, self.on_bind)
        responder.on(machine.listen, self.on_listen)
        self.wait_for_clients()

    # -- system calls ----------------------------------------------------------------------

    def on_bind(self, _: seccomp.Notification) -> None:
        """A server that listens anew needs the guest port that we keep."""
        if self.original is not None and not self.is_served():
            self.start_over()

    def on_listen(self, notification: seccomp.Notification) -> int | None:
        """0: the caller has the host's socket now, which listens already."""
        if self.relaying:
            return None
        number = seccomp.take_descriptor(notification.thread, notification.descriptor)
        try:
            socket = _socket.socket(fileno=number)
        except OSError:
            os.close(number)
            return None
        try:
            seccomp.id_valid(notification)
            own = next((host for host in self.hosts if link_of(host) == link_of(socket)), None)
            if own is not None:
                listen_again(own, backlog_of(notification))
                return 0
            done = self.is_the_servers(socket) and self.hand_over(socket, notification)
            return 0 if done else None
        finally:
            if socket is not self.original:
                socket.close()

    def hand_over(self, socket: _socket.socket, notification: seccomp.Notification) -> bool:
        """Replace this socket of a server, unless there is a reason not to."""
        links = [link for _, link in descriptors_of_others()]
        if not self.host_links.isdisjoint(links):
            return False  # another process serves
        host = self.host_for(socket)
        if host is None:
            self.expect_relay(OTHER_FAMILY, LOOK_FIRST)  # its next socket may be of this one
            return False
        try:
            why = why_not(socket, notification, links)
            if not why:
                self.replace(socket, host, notification)
        except OSError as error:
            why = f"the server's socket could not be replaced: {error.strerror}"
        if why:
            self.expect_relay(why, LOOK_SOON)
        return not why

    def is_the_servers(self, socket: _socket.socket) -> bool:
        """Whether this is a TCP socket on the guest port of the sandbox itself. One of the host's,
        whose port may have the same number, is of another namespace."""
        return (
            socket.proto in (IPPROTO_TCP, IPPROTO_MPTCP)
            and socket.getsockname()[1] == self.guest_port
            and seccomp.network_namespace_of(socket.fileno()) == self.network
        )

    def is_served(self) -> bool:
        """Whether a process holds one of the host's sockets that listens: a server may have ended
        that with shutdown(2)."""
        links = {link_of(host) for host in self.hosts if listens(host)}
        try:
            if os.readlink(self.server) in links:
                return True
        except OSError:
            pass
        return any(link in links for _, link in descriptors_of_others())

    def host_for(self, socket: _socket.socket) -> _socket.socket | None:
        """The host's socket of the same address family."""
        return next((host for host in self.hosts if host.family == socket.family), None)

    def replace(
        self, socket: _socket.socket, host: _socket.socket, notification: seccomp.Notification
    ) -> None:
        """Put the host's socket in the place of the server's. Raises OSError."""
        copy_settings(socket, host)
        process = seccomp.leader_of(notification.thread)
        place = f"/proc/{notification.thread}/fdinfo/{notification.descriptor}"
        close_on_exec = descriptor_flags(place) & os.O_CLOEXEC
        socket.listen(BACKLOG)
        seccomp.addfd(notification, host.fileno(), close_on_exec)
        # As long as the server has asked for, not longer: what is queued here can only fill it up.
        # The kernel lowers it to net.core.somaxconn, a negative one, which is a large one, too.
        listen_again(host, backlog_of(notification))
        self.server = f"/proc/{process}/fd/{notification.descriptor}"
        self.keep(socket, host)
        self.explain("forward: native, the server has the host port's own socket")
        if not self.watch_server(process):
            self.on_server_end()

    def keep(self, socket: _socket.socket, host: _socket.socket) -> None:
        """Keep the guest port taken inside, and lead its clients to the server, as those of the
        host port's other address family."""
        self.let_go()
        self.stop_waiting()
        self.original = socket
        self.place.aim(host.getsockname()[1], [(host.family, reachable(host.getsockname()[0]))])
        for listener in [socket, *(other for other in self.hosts if other is not host)]:
            self.relay.serve(listener, self.place)

    def let_go(self) -> None:
        """Relay nothing; free the guest port inside."""
        for host in self.hosts:
            if host.fileno() in self.relay.listeners:
                self.relay.release(host)
        if self.original is not None:
            self.relay.stop_serving(self.original)
            self.original = None

    # -- the server's end ------------------------------------------------------------------

    def watch_server(self, process: int) -> bool:
        """Be told when this process ends. False: it has ended."""
        self.stop_watching_server()
        try:
            self.process = libc.pidfd_open(process)
        except OSError:
            return False
        self.relay.watch(self.process, self.on_server_end)
        return True

    def stop_watching_server(self) -> None:
        if self.process >= 0:
            self.relay.unwatch(self.process)
            os.close(self.process)
            self.process = -1

    def on_server_end(self) -> None:
        """Another one that holds the socket serves now, or the next that listens will."""
        self.stop_watching_server()
        for process, link in descriptors_of_others():
            if link in self.host_links and self.watch_server(process):
                return
        self.start_over()

    def start_over(self) -> None:
        """Nobody serves any more: whoever listens next is given the socket."""
        self.stop_watching_server()
        self.let_go()
        self.expect_relay(UNWATCHED, LOOK_FIRST)
        for host in self.hosts:
            try:
                listen_again(host, BACKLOG)
            except OSError as error:
                self.complain(f"the host port is lost: {error.strerror}")
        self.wait_for_clients()

    # -- clients before there is a server --------------------------------------------------

    def wait_for_clients(self) -> None:
        """Be told when somebody asks at the host port: the answer is the server's to give."""
        for host in self.hosts:
            if host.fileno() not in self.relay.watched:
                self.relay.watch(host.fileno(), self.on_client, edge=True)

    def on_client(self) -> None:
        if not self.waiting:
            self.waiting = True
            self.look_in(self.first_pause)

    def stop_waiting(self) -> None:
        """Whoever waits is served now."""
        self.waiting = False
        for host in self.hosts:
            if host.fileno() in self.relay.watched:
                self.relay.unwatch(host.fileno())

    def look(self) -> None:
        """See whether a server listens whose socket was not replaced."""
        if not self.waiting or time.monotonic() < self.next_look:
            return
        if listens_inside(self.command, self.guest_port):
            self.become_relay(self.reason)
        self.look_in(min(2 * self.pause, LOOK_LAST))

    def look_in(self, seconds: float) -> None:
        self.pause = seconds
        self.next_look = time.monotonic() + seconds

    def expect_relay(self, why: str, pause: float) -> None:
        """Should a server turn out to listen on its own socket, this is why."""
        self.reason = why
        self.first_pause = pause
        self.look_in(pause)

    def patience(self) -> float:
        """Seconds until the next look is due, while clients wait."""
        return max(0.0, self.next_look - time.monotonic())

    # -- the other way ---------------------------------------------------------------------

    def become_relay(self, why: str) -> None:
        """Have the host port relayed from inside the sandbox, for good."""
        self.explain(f"forward: relay, because {why}")
        self.relaying = True
        self.stop_watching_server()
        self.let_go()
        self.stop_waiting()
        self.relay_inside(self.hosts, self.guest_port)


def why_not(socket: _socket.socket, notification: seccomp.Notification, links: list[str]) -> str:
    """Why this socket cannot be replaced, or nothing."""
    if is_registered(notification.thread, notification.descriptor, socket):
        return "the server had its socket in an epoll or an io_uring before it called listen"
    if link_of(socket) not in links:
        return "the server does not let its descriptors be seen"
    if links.count(link_of(socket)) != 1:
        return "the server shares its socket, or holds it twice, before it called listen"
    if fcntl.fcntl(socket.fileno(), fcntl.F_GETFL) & O_ASYNC:
        return "the server wants a signal for each client"  # F_SETOWN is the replaced file's
    return ""


def listens(socket: _socket.socket) -> bool:
    return bool(socket.getsockopt(SOL_SOCKET, _socket.SO_ACCEPTCONN))


def listen_again(host: _socket.socket, backlog: int) -> None:
    """Have a socket of the host listen, or change its backlog. Raises OSError.

    One that was shut down has to get past the socket that reserves its port (`ports.py`): at no
    moment is there a place for one of another user.
    """
    host.setsockopt(SOL_SOCKET, _socket.SO_REUSEPORT, 1)
    try:
        host.listen(min(backlog, BACKLOG))
    finally:
        host.setsockopt(SOL_SOCKET, _socket.SO_REUSEPORT, 0)


def backlog_of(notification: seccomp.Notification) -> int:
    """The second argument of listen."""
    return int(notification.arguments[1]) & 0xFFFFFFFF


def link_of(socket: _socket.socket) -> str:
    """How /proc/PID/fd names this socket (proc_pid_fd(5))."""
    return f"socket:[{os.fstat(socket.fileno()).st_ino}]"


def reachable(address: str) -> str:
    """Where a client on this host reaches a socket that is bound to this address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def descriptors_of_others() -> Iterator[tuple[int, str]]:
    """Process number and link of each descriptor of all processes in other user namespaces than
    ours, which is the host's, as far as we may look.

    Who is in ours has none of the sandbox's sockets, and on a node with many sessions most of what
    there is to read: their keepers'.
    """
    ours = os.readlink("/proc/self/ns/user")
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/ns/user") == ours:
                continue
            numbers = os.listdir(f"/proc/{name}/fd")
        except OSError:
            continue  # another user's, or gone
        for number in numbers:
            try:
                yield int(name), os.readlink(f"/proc/{name}/fd/{number}")
            except OSError:
                continue


def descriptor_flags(place: str) -> int:
    """File status flags and O_CLOEXEC of a descriptor, from its fdinfo (proc_pid_fdinfo(5))."""
    with open(place, "rb") as file:
        for line in file:
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8)
    return 0


def is_registered(thread: int, descriptor: int, socket: _socket.socket) -> bool:
    """Whether the caller has this socket in an epoll, or any file in an io_uring: both hold the
    socket itself, and would never see a client of the one that replaces it."""
    node = os.fstat(socket.fileno()).st_ino
    folder = f"/proc/{thread}/fdinfo"
    for name in os.listdir(folder):
        try:
            with open(f"{folder}/{name}", "rb") as file:
                lines = [line.split() for line in file]
        except OSError:
            continue
        for words in lines:
            if words[:1] == [b"tfd:"]:  # an entry of an epoll (proc_pid_fdinfo(5))
                nodes = [int(word[4:], 16) for word in words if word.startswith(b"ino:")]
                if int(words[1]) == descriptor or node in nodes:
                    return True
            elif words[:1] == [b"UserFiles:"] and int(words[1]) > 0:
                return True
    return False


def copy_settings(source: _socket.socket, target: _socket.socket) -> None:
    """Give the host's socket what the server had set on its own."""
    flags = fcntl.fcntl(source.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(target.fileno(), fcntl.F_SETFL, flags)
    for level, option in COPIED_OPTIONS:
        try:
            target.setsockopt(level, option, source.getsockopt(level, option, 16))
        except OSError:
            continue  # not of this kernel
    try:
        locked = source.getsockopt(SOL_SOCKET, SO_BUF_LOCK)
    except OSError:
        return
    for lock, option in (
        (SNDBUF_LOCK, _socket.SO_SNDBUF),
        (RCVBUF_LOCK, _socket.SO_RCVBUF),
    ):
        if locked & lock:  # the kernel doubles what it is given (socket(7))
            target.setsockopt(SOL_SOCKET, option, source.getsockopt(SOL_SOCKET, option) // 2)


def listens_inside(process: int, port: int) -> bool:
    """Whether anything listens on this TCP port of the process's network namespace (proc(5))."""
    ending, listening = b":%04X" % port, b"0A"
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{process}/net/{name}", "rb") as file:
                rows = [line.split() for line in file]
        except OSError:
            continue
        if any(row[1].endswith(ending) and row[3] == listening for row in rows[1:]):
            return True
    return False
