"""Native forwarding: the server has the host's own listening socket, and serves by itself.

The keeper stays in the host's namespaces. Each listen(2) and bind(2) in the sandbox waits for our
response (`responder.py`). When a server calls listen on the guest port, its socket is exchanged for
the host's, under the same number; from then on it accepts the host's connections itself, at native
speed. Another socket of the sandbox listens on the guest port in its stead: so the port stays taken
in there, and clients in the sandbox still reach the server at it, relayed to the host port.

Where that cannot be done, forwarding is relayed, for good.
"""

from __future__ import annotations

import errno
import os

import _socket

from ..kernel import procfs, seccomp
from ..kernel.processes import pidfd_open, take_descriptor
from ..kernel.sockets import BACKLOG, OUT_OF_RESOURCES, listens, network_namespace_of
from .exchange import EXCHANGED, PUT_BACK, exchange
from .lookout import MAX_PAUSE, SHORT_PAUSE, Lookout
from .relay import GUESTS, Place
from .sandbox_sockets import SandboxSockets
from .server_socket import bind_beside, copy_settings, why_not

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .lifecycle import Lifecycle
    from .relay import Relay
    from .responder import Responder
    from .session import Session
    from .unserved import Unserved

OTHER_FAMILY = "the server listens on another address family than the host port"
SHARES = "the server shares its socket, or holds it twice, before it called listen"
IPPROTO_MPTCP = 262  # Go's listeners are MPTCP sockets by default


NO_PROCESS = (errno.EAGAIN, *OUT_OF_RESOURCES)
"""Errors of a start of the relay that may pass: the account's processes are used up (fork(2))."""


class Native:
    """Gives the server the host's socket, and keeps the guest port in the sandbox."""

    def __init__(
        self,
        session: Session,
        responder: Responder,
        relay: Relay,
        unserved: Unserved,
        lifecycle: Lifecycle,
        relay_inside: Callable[[list[_socket.socket], int], None],
    ) -> None:
        go = session.go
        self.guest_port = go.guest_port
        self.network = os.fstat(go.descriptors.network_namespace).st_ino
        self.relay = relay
        self.lifecycle = lifecycle
        self.relay_inside = relay_inside  # relay from these sockets to this port in the sandbox
        self.place = Place(self.guest_port, GUESTS)  # where the clients in the sandbox are led
        self.sandbox = SandboxSockets(session.spare_sockets)
        self.hosts = [_socket.socket(fileno=number) for number in go.descriptors.listeners]
        self.stand_in: _socket.socket | None = None  # keeps the guest port
        self.served = False  # a server has got a socket of the host's
        self.server = (0, 0)  # process and descriptor that got it last
        self.pidfd = -1  # of a process that serves
        self.relaying = False  # for good
        self.delayed = False  # there was no process for the relay
        self.lookout = Lookout(
            relay,
            unserved,
            self.hosts,
            lambda: go.guest_port in unserved.listeners.ports(),
            self.become_relay,
        )
        machine = seccomp.this_machine()
        assert machine is not None
        responder.on(machine.bind, self.on_bind)
        responder.on(machine.listen, self.on_listen)
        self.lookout.begin()

    # -- system calls ----------------------------------------------------------------------

    def on_bind(self, _: seccomp.Notification) -> None:
        """A server that listens anew needs the guest port that we keep."""
        if self.served and not self.is_served():
            self.start_over()

    def on_listen(self, notification: seccomp.Notification) -> int | None:
        """0: the caller has a socket of the host's, which listens."""
        if self.relaying:
            return None
        number = take_descriptor(notification.thread, notification.descriptor)
        try:
            socket = _socket.socket(fileno=number)
        except OSError:
            os.close(number)
            return None
        try:
            seccomp.id_valid(notification)
            own = self.own(socket)
            if own is not None:
                listen_again(own, backlog_of(notification))
                return 0
            done = self.is_on_guest_port(socket) and self.offer(socket, notification)
            return 0 if done else None
        finally:
            socket.close()

    def own(self, socket: _socket.socket) -> _socket.socket | None:
        """Ours of the host's sockets, if this is a duplicate of one."""
        node = os.fstat(socket.fileno()).st_ino
        return next((host for host in self.hosts if os.fstat(host.fileno()).st_ino == node), None)

    def is_on_guest_port(self, socket: _socket.socket) -> bool:
        """Whether this is a TCP socket on the guest port of the sandbox itself. One of the host's,
        whose port may have the same number, is of another namespace."""
        return (
            socket.proto in (_socket.IPPROTO_TCP, IPPROTO_MPTCP)
            and socket.getsockname()[1] == self.guest_port
            and network_namespace_of(socket.fileno()) == self.network
        )

    # -- the host's socket -----------------------------------------------------------------

    def offer(self, socket: _socket.socket, notification: seccomp.Notification) -> bool:
        """Give the caller the host's socket in place of this one, unless there is a reason not to.
        False: its own call is to proceed."""
        if self.served and self.is_served():
            return False
        if self.served:
            self.start_over()
        host = next((host for host in self.hosts if host.family == socket.family), None)
        if host is None:
            self.lookout.expect(OTHER_FAMILY)  # its next socket may be of this one
            return False
        try:
            outcome = PUT_BACK
            why = why_not(socket, notification)
            if not why:
                outcome = self.give(socket, host, notification)
                why = "" if outcome == EXCHANGED else SHARES
        except OSError as error:
            why = f"the server's socket could not be replaced: {error.strerror}"
        if why:
            self.lookout.expect(why, SHORT_PAUSE)
        return outcome != PUT_BACK

    def give(
        self, socket: _socket.socket, host: _socket.socket, notification: seccomp.Notification
    ) -> str:
        """Exchange the server's socket for the host's; returns what came of it. Raises OSError."""
        stand_in = self.sandbox.make(socket.family)
        process = procfs.leader_of(notification.thread)
        copy_settings(socket, host, stand_in)
        bind_beside(socket, stand_in)
        outcome = exchange(notification, socket, host.fileno())
        if outcome != EXCHANGED:
            stand_in.close()
            return outcome
        # As long as the server has asked for, not longer: what is queued here can only fill it up.
        # The kernel lowers it to net.core.somaxconn, a negative one, which is a large one, too.
        listen_again(host, backlog_of(notification))
        stand_in.listen(BACKLOG)
        self.served = True
        self.server = process, notification.descriptor
        self.keep(stand_in, host)
        self.lifecycle.log.explain("forward: native, the server has the host port's own socket")
        if not self.watch_server(process):
            self.on_server_end()
        return outcome

    def keep(self, stand_in: _socket.socket, host: _socket.socket) -> None:
        """Keep the guest port taken in the sandbox, and lead its clients to the server, as those of
        the host port's other addresses."""
        self.lookout.end()
        self.stand_in = stand_in
        self.place.aim(host.getsockname()[1], [(host.family, reachable(host.getsockname()[0]))])
        for listener in [stand_in, *(other for other in self.hosts if other is not host)]:
            self.relay.serve(listener, self.place)

    def let_go(self) -> None:
        """Relay nothing; free the guest port in the sandbox."""
        for host in self.hosts:
            if host.fileno() in self.relay.listeners:
                self.relay.release(host)
        if self.stand_in is not None:
            self.relay.stop_serving(self.stand_in)
            self.stand_in = None

    # -- the server's end ------------------------------------------------------------------

    def is_served(self) -> bool:
        """Whether a process holds one of the host's sockets that listens: a server may have ended
        that with shutdown(2)."""
        links = {procfs.link_of(host.fileno()) for host in self.hosts if listens(host)}
        if procfs.link(*self.server) in links:
            return True
        return any(link in links for _, link in descriptors_of_others())

    def watch_server(self, process: int) -> bool:
        """Be told when this process ends. False: it has ended."""
        self.stop_watching_server()
        try:
            self.pidfd = pidfd_open(process)
        except OSError:
            return False
        self.relay.watch(self.pidfd, self.on_server_end)
        return True

    def stop_watching_server(self) -> None:
        if self.pidfd >= 0:
            self.relay.unwatch(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1

    def on_server_end(self) -> None:
        """Another one that holds the socket serves now, or the next that listens will."""
        self.stop_watching_server()
        links = {procfs.link_of(host.fileno()) for host in self.hosts}
        for process, link in descriptors_of_others():
            if link in links and self.watch_server(process):
                return
        self.start_over()

    def start_over(self) -> None:
        """Nobody serves any more: whoever listens next is given the socket."""
        self.served = False
        self.stop_watching_server()
        self.let_go()
        self.lookout.expect()
        for host in self.hosts:
            try:
                listen_again(host, BACKLOG)
            except OSError as error:
                self.lifecycle.log.report(f"the host port is lost: {error.strerror}")
        self.lookout.begin()

    # -- the other kind of forwarding ------------------------------------------------------

    def become_relay(self, why: str) -> None:
        """Have the host port relayed from inside the sandbox, for good. Raises OSError."""
        self.stop_watching_server()
        self.let_go()
        self.lookout.end()
        try:
            self.relay_inside(self.hosts, self.guest_port)
        except OSError as error:
            if error.errno not in NO_PROCESS:
                raise
            self.wait_for_relay(why, error)
            return
        self.relaying = True
        report = self.lifecycle.log.report if self.delayed else self.lifecycle.log.explain
        report(f"forward: relay, because {why}")

    def wait_for_relay(self, why: str, error: OSError) -> None:
        """Try again as long as clients wait."""
        if not self.delayed:
            self.lifecycle.log.report(
                f"clients of the host port wait: no process for the relay ({error.strerror})"
            )
        self.delayed = True
        self.lookout.expect(why, MAX_PAUSE)
        self.lookout.begin()


def backlog_of(notification: seccomp.Notification) -> int:
    """The second argument of listen."""
    return int(notification.arguments[1]) & 0xFFFFFFFF


def listen_again(host: _socket.socket, backlog: int) -> None:
    """Have a socket of the host listen, or change its backlog. Raises OSError.

    One that was shut down has to get past the socket that reserves its port (`ports.py`): at no
    moment is there a place for one of another user.
    """
    host.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
    try:
        host.listen(min(backlog, BACKLOG))
    finally:
        host.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 0)


def reachable(address: str) -> str:
    """Where a client on this host reaches a socket that is bound to this address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def descriptors_of_others() -> Iterator[tuple[int, str]]:
    """Process number and link of each descriptor of all processes in other user namespaces than
    ours, which is the host's, as far as we may look.

    Who is in ours has none of the sandbox's sockets, and on a node with many sessions most of what
    there is to read: their keepers'.
    """
    ours = procfs.namespace("self", "user")
    for process in procfs.processes():
        try:
            if procfs.namespace(process, "user") == ours:
                continue
        except OSError:
            continue  # another user's, or gone
        for _, link in procfs.descriptors(process):
            yield process, link
