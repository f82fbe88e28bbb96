"""The hand-over: the server inside is given the host's own listening socket, and serves by itself.

The keeper stays in the host's namespaces. Each listen(2) and bind(2) inside waits for its answer
(`notify.py`). When a server calls listen on the guest port, its socket is replaced, under the same
number, by the host's; from then on it accepts the host's connections itself, at native speed. The
keeper listens on the socket that was replaced: so the guest port stays taken inside, and clients
inside still reach the server there, relayed to the host port.

Where that cannot be done, the keeper enters the sandbox and becomes the relay, for good.
"""

from __future__ import annotations

import fcntl
import posix
import select

import _socket

from . import notify
from .relay import BACKLOG, GUESTS, Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .relay import Relay

LOOK_AGAIN = 0.25
"""Seconds between two looks for a server whose listen(2) nobody was asked about, while clients
wait. No client, no look."""

SOL_SOCKET, IPPROTO_TCP = _socket.SOL_SOCKET, _socket.IPPROTO_TCP
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


class Handover:
    """Answers the sandbox's questions, and keeps the guest port inside."""

    def __init__(
        self,
        settings: dict[str, Any],
        relay: Relay,
        explain: Callable[[str], None],
        go_inside: Callable[[list[_socket.socket], int], None],
    ) -> None:
        self.command: int = settings["command"]
        self.guest_port: int = settings["guest_port"]
        self.questions: int = settings["questions"]
        self.network = posix.fstat(settings["namespaces"][-1]).st_ino  # user, network
        machine = notify.this_machine()
        assert machine is not None
        self.listen_call = machine.listen
        self.relay = relay
        self.explain = explain
        self.go_inside = go_inside  # relay from these sockets to this port in there
        self.place = Place(self.guest_port, GUESTS)  # where the clients inside are led
        self.hosts = [_socket.socket(fileno=number) for number in settings["serving"]]
        self.host_links = {link_of(host) for host in self.hosts}
        self.original: _socket.socket | None = None  # the server's own, which we listen on
        self.server = ""  # the entry in /proc of the descriptor that was replaced last
        self.relaying = False  # for good
        self.waiting = False  # clients of the host port wait for a server
        relay.watch(self.questions, self.on_question)
        self.wait_for_clients()

    # -- questions -------------------------------------------------------------------------

    def on_question(self) -> None:
        """Answer one question. Whatever goes wrong, the caller's own call proceeds."""
        poll = select.poll()
        poll.register(self.questions, select.POLLIN)
        if not any(event & select.POLLIN for _, event in poll.poll(0)):
            # Nobody is left to ask; receiving would wait for ever before Linux 6.12.
            self.relay.unwatch(self.questions)
            return
        try:
            question = notify.receive(self.questions)
        except OSError:
            return  # a signal has ended the call, or the caller
        refused = ""
        proceed = True
        try:
            if question.call == self.listen_call:
                proceed, refused = self.on_listen(question)
            else:
                self.on_bind()
        except (OSError, ValueError):
            pass
        try:
            notify.answer(self.questions, question, proceed)
        except OSError:
            pass  # a signal has ended the call, or the caller
        if refused:
            self.become_relay(refused)

    def on_bind(self) -> None:
        """A server that listens anew needs the guest port that we keep."""
        if self.original is not None and not self.is_served():
            self.let_go()
            self.wait_for_clients()

    def on_listen(self, question: notify.Question) -> tuple[bool, str]:
        """Whether the call may proceed, and why its socket was not replaced where it should be."""
        if self.relaying:
            return True, ""
        number = notify.take_descriptor(question.thread, question.descriptor)
        try:
            socket = _socket.socket(fileno=number)
        except OSError:
            posix.close(number)
            return True, ""
        try:
            if not self.is_the_servers(socket):
                return True, ""
            links = links_of_others()
            if not self.host_links.isdisjoint(links):
                return True, ""  # another process serves
            why = self.why_not(socket, question, links)
            if why:
                return True, why
            self.replace(socket, question)
        except BaseException:
            if socket is not self.original:
                socket.close()
            raise
        if socket is not self.original:
            socket.close()
        return False, ""

    def is_the_servers(self, socket: _socket.socket) -> bool:
        """Whether this is a TCP socket on the guest port of the sandbox itself."""
        return (
            socket.family in (_socket.AF_INET, _socket.AF_INET6)
            and socket.type == _socket.SOCK_STREAM
            and socket.proto in (IPPROTO_TCP, IPPROTO_MPTCP)
            and socket.getsockname()[1] == self.guest_port
            and link_of(socket) not in self.host_links  # the guest port may equal the host port
            and notify.network_namespace_of(socket.fileno()) == self.network
        )

    def is_served(self) -> bool:
        """Whether a process holds one of the host's sockets."""
        try:
            if self.server and posix.readlink(self.server) in self.host_links:
                return True
        except OSError:
            pass
        return not self.host_links.isdisjoint(links_of_others())

    def host_for(self, socket: _socket.socket) -> _socket.socket | None:
        """The host's socket of the same address family."""
        return next((host for host in self.hosts if host.family == socket.family), None)

    def why_not(self, socket: _socket.socket, question: notify.Question, links: list[str]) -> str:
        """Why this socket cannot be replaced, or nothing."""
        if self.host_for(socket) is None:
            return "the server listens on another address family than the host port"
        if in_epoll(question.thread, question.descriptor, socket):
            return "the server had its socket in an epoll before it called listen"
        if links.count(link_of(socket)) != 1:
            return "the server shares its socket, or holds it twice, before it called listen"
        return ""

    def replace(self, socket: _socket.socket, question: notify.Question) -> None:
        """Put the host's socket in the place of the server's. Raises OSError."""
        host = self.host_for(socket)
        assert host is not None
        copy_settings(socket, host)
        place = f"/proc/{question.thread}/fdinfo/{question.descriptor}"
        close_on_exec = descriptor_flags(place) & posix.O_CLOEXEC
        socket.listen(BACKLOG)
        notify.check_waiting(self.questions, question)
        notify.replace_descriptor(self.questions, question, host.fileno(), close_on_exec)
        self.server = f"/proc/{question.thread}/fd/{question.descriptor}"
        self.keep(socket, host)

    def keep(self, socket: _socket.socket, host: _socket.socket) -> None:
        """Keep the guest port taken inside, and lead its clients to the server, as those of the
        host port's other address family."""
        self.let_go()
        self.original = socket
        self.place.aim(host.getsockname()[1], [(host.family, reachable(host.getsockname()[0]))])
        self.stop_waiting()
        for listener in [socket, *(other for other in self.hosts if other is not host)]:
            if listener.fileno() not in self.relay.listeners:
                self.relay.serve(listener, self.place)

    def let_go(self) -> None:
        """Free the guest port inside."""
        if self.original is not None:
            self.relay.stop_serving(self.original)
            self.original = None

    # -- clients before there is a server --------------------------------------------------

    def wait_for_clients(self) -> None:
        """Be told when somebody asks at the host port: the answer is the server's to give."""
        for host in self.hosts:
            if host.fileno() not in self.relay.watched:
                self.relay.watch(host.fileno(), self.on_client, edge=True)

    def on_client(self) -> None:
        self.waiting = True
        self.look()

    def stop_waiting(self) -> None:
        """Whoever waits is served now."""
        self.waiting = False
        for host in self.hosts:
            if host.fileno() not in self.relay.listeners and host.fileno() in self.relay.watched:
                self.relay.unwatch(host.fileno())

    def look(self) -> None:
        """See whether a server listens that we were not asked about."""
        if self.waiting and listens_inside(self.command, self.guest_port):
            self.become_relay("the server listens without the system call that we watch")

    def patience(self) -> float:
        """Seconds until the next look is due; -1: none is."""
        return LOOK_AGAIN if self.waiting else -1.0

    # -- the other way ---------------------------------------------------------------------

    def become_relay(self, why: str) -> None:
        """Have the host port relayed from inside the sandbox, for good."""
        self.explain(f"forward: relay, because {why}")
        self.relaying = True
        self.let_go()
        self.stop_waiting()
        for host in self.hosts:
            if host.fileno() in self.relay.listeners:
                self.relay.release(host)
        self.go_inside(self.hosts, self.guest_port)


def link_of(socket: _socket.socket) -> str:
    """How /proc/PID/fd names this socket (proc_pid_fd(5))."""
    return f"socket:[{posix.fstat(socket.fileno()).st_ino}]"


def reachable(address: str) -> str:
    """Where a client on this host reaches a socket that is bound to this address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def links_of_others() -> list[str]:
    """What the descriptors of all processes but this one are, as far as we may look."""
    links = []
    me = posix.getpid()
    for name in posix.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        try:
            numbers = posix.listdir(f"/proc/{name}/fd")
        except OSError:
            continue  # another user's, or gone
        for number in numbers:
            try:
                links.append(posix.readlink(f"/proc/{name}/fd/{number}"))
            except OSError:
                continue
    return links


def descriptor_flags(place: str) -> int:
    """File status flags and O_CLOEXEC of a descriptor, from its fdinfo (proc_pid_fdinfo(5))."""
    with open(place, "rb") as file:
        for line in file:
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8)
    return 0


def in_epoll(thread: int, descriptor: int, socket: _socket.socket) -> bool:
    """Whether the caller has this descriptor in an epoll: replaced, it would never fire there."""
    node = posix.fstat(socket.fileno()).st_ino
    folder = f"/proc/{thread}/fdinfo"
    for name in posix.listdir(folder):
        try:
            with open(f"{folder}/{name}", "rb") as file:
                targets = [line.split() for line in file if line.startswith(b"tfd:")]
        except OSError:
            continue
        for words in targets:
            nodes = [int(word[4:], 16) for word in words if word.startswith(b"ino:")]
            if int(words[1]) == descriptor or node in nodes:
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
