"""Native forwarding: the server has the host's own listening socket, and serves by itself.

The keeper stays in the host's namespaces. Each listen(2) and bind(2) in the sandbox waits for our
response (`responder.py`). When a server calls listen on the guest port, its socket is exchanged for
the host's, under the same number (`exchange.py`); from then on it accepts the host's connections
itself, at native speed, and the keeper keeps the guest port for it (`guest_port.py`).

Where that cannot be done, forwarding is relayed, for good (`lookout.py`).
"""

from __future__ import annotations

import errno
import os

import _socket

from ..kernel import procfs, seccomp
from ..kernel.processes import take_descriptor
from ..kernel.sockets import OUT_OF_RESOURCES, network_namespace_of
from .epolls import NotMovable
from .exchange import EXCHANGED, PUT_BACK
from .guest_port import GuestPort
from .host_sockets import HostSockets, listen_again
from .lookout import MAX_PAUSE, SHORT_PAUSE, Lookout
from .server_socket import bind_beside, copy_settings, why_not

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .exchange import Exchanger, Place
    from .log import Log
    from .relay import Relay
    from .responder import Responder
    from .sandbox_sockets import SandboxSockets
    from .session import Session
    from .unserved import Unserved

OTHER_FAMILY = "the server listens on another address family than the host port"
SHARES = "the server shares its socket, or holds it twice, before it called listen"
IPPROTO_MPTCP = 262  # Go's listeners are MPTCP sockets by default
NO_PROCESS = (errno.EAGAIN, *OUT_OF_RESOURCES)
"""Errors of a start of the relay that may pass: the account's processes are used up (fork(2))."""


class Native:
    """Decides which server gets the host's socket."""

    def __init__(
        self,
        session: Session,
        responder: Responder,
        relay: Relay,
        unserved: Unserved,
        exchanger: Exchanger,
        sandbox_sockets: SandboxSockets,
        log: Log,
        relay_inside: Callable[[list[_socket.socket], int], None],
    ) -> None:
        go = session.go
        self.network = os.fstat(go.descriptors.network_namespace).st_ino
        self.log = log
        self.relay_inside = relay_inside  # relay from these sockets to this port in the sandbox
        self.hosts = HostSockets(go.descriptors.listeners, relay.reactor, self.start_over)
        self.guest_port = GuestPort(go.guest_port, relay, self.hosts.sockets)
        self.exchanger = exchanger
        self.sandbox = sandbox_sockets
        self.served = False  # a server has got a socket of the host's
        self.relaying = False  # for good
        self.delayed = False  # there was no process for the relay
        self.lookout = Lookout(
            relay.reactor,
            unserved,
            self.hosts.sockets,
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
        if self.served and not self.hosts.are_served():
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
            own = self.hosts.find(socket)
            if own is not None:
                listen_again(own, backlog_of(notification))
                return 0
            done = self.is_on_guest_port(socket) and self.offer(socket, notification)
            return 0 if done else None
        finally:
            socket.close()

    def is_on_guest_port(self, socket: _socket.socket) -> bool:
        """Whether this is a TCP socket on the guest port of the sandbox itself. One of the host's,
        whose port may have the same number, is of another namespace."""
        return (
            socket.proto in (_socket.IPPROTO_TCP, IPPROTO_MPTCP)
            and socket.getsockname()[1] == self.guest_port.port
            and network_namespace_of(socket.fileno()) == self.network
        )

    # -- the host's socket -----------------------------------------------------------------

    def offer(self, socket: _socket.socket, notification: seccomp.Notification) -> bool:
        """Give the caller the host's socket in place of this one, unless there is a reason not to.
        False: its own call is to proceed."""
        if self.served and self.hosts.are_served():
            return False
        if self.served:
            self.start_over()
        host = self.hosts.of_family(socket.family)
        if host is None:
            self.lookout.expect(OTHER_FAMILY)  # its next socket may be of this one
            return False
        outcome = PUT_BACK
        try:
            why = why_not(socket, notification)
            if not why:
                place = self.exchanger.place(notification, socket)
                outcome = self.give(socket, host, place)
                why = "" if outcome == EXCHANGED else SHARES
        except NotMovable as error:
            why = f"the server's socket could not be replaced: {error}"
        except OSError as error:
            why = f"the server's socket could not be replaced: {error.strerror}"
        if why:
            self.lookout.expect(why, SHORT_PAUSE)
        return outcome != PUT_BACK

    def give(self, socket: _socket.socket, host: _socket.socket, place: Place) -> str:
        """Exchange the server's socket for the host's; returns what came of it. Raises OSError."""
        notification = place.notification
        stand_in = self.sandbox.make(socket.family)
        process = procfs.leader_of(notification.thread)
        copy_settings(socket, host, self.sandbox.pristine[socket.family, socket.proto])
        bind_beside(socket, stand_in)
        outcome = self.exchanger.exchange(place, socket, host.fileno())
        if outcome != EXCHANGED:
            stand_in.close()
            return outcome
        # As long as the server has asked for, not longer: what is queued here can only fill it up.
        # The kernel lowers it to net.core.somaxconn, a negative one, which is a large one, too.
        listen_again(host, backlog_of(notification))
        self.served = True
        self.lookout.end()
        self.guest_port.keep(stand_in, host)
        self.log.explain("forward: native, the server has the host port's own socket")
        self.hosts.watch(process, notification.descriptor)
        return outcome

    def start_over(self) -> None:
        """Nobody serves any more: whoever listens next is given the socket."""
        self.served = False
        self.hosts.stop_watching()
        self.guest_port.let_go()
        self.lookout.expect()
        for host in self.hosts.sockets:
            try:
                listen_again(host)
            except OSError as error:
                self.log.report(f"the host port is lost: {error.strerror}")
        self.lookout.begin()

    # -- the other kind of forwarding ------------------------------------------------------

    def become_relay(self, why: str) -> None:
        """Have the host port relayed from inside the sandbox, for good. Raises OSError."""
        self.hosts.stop_watching()
        self.guest_port.let_go()
        self.lookout.end()
        try:
            self.relay_inside(self.hosts.sockets, self.guest_port.port)
        except OSError as error:
            if error.errno not in NO_PROCESS:
                raise
            self.wait_for_relay(why, error)
            return
        self.relaying = True
        report = self.log.report if self.delayed else self.log.explain
        report(f"forward: relay, because {why}")

    def wait_for_relay(self, why: str, error: OSError) -> None:
        """Try again as long as clients wait."""
        if not self.delayed:
            self.log.report(
                f"clients of the host port wait: no process for the relay ({error.strerror})"
            )
        self.delayed = True
        self.lookout.expect(why, MAX_PAUSE)
        self.lookout.begin()


def backlog_of(notification: seccomp.Notification) -> int:
    """The second argument of listen."""
    return int(notification.arguments[1]) & 0xFFFFFFFF
