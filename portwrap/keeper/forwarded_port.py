"""A forwarded port, natively: which server has the host's socket, and what becomes of its clients.

A server's socket on the guest port is exchanged for the host's, under the same number
(`exchange.py`); from then on the server accepts the host's connections itself, and we keep the
guest port for it (`guest_port.py`). Where that cannot be done the port is relayed, for good.

As long as nobody serves, clients of the host port wait: the session's server is about to start.
Those of a published port are refused, as they are at every port on which nothing listens.
"""

from __future__ import annotations

import errno

import _socket

from ..kernel import procfs
from ..kernel.sockets import OUT_OF_RESOURCES, listens
from .epolls import NotMovable
from .exchange import EXCHANGED, PUT_BACK
from .guest_port import GuestPort
from .host_sockets import HostSockets, listen_again
from .lookout import MAX_PAUSE, SHORT_PAUSE, BriefLookout, Lookout
from .published_sockets import PublishedSockets
from .server_socket import bind_beside, copy_settings, why_not

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..kernel import seccomp
    from .exchange import Exchanger, Place
    from .log import Log
    from .relay import Relay
    from .sandbox_sockets import SandboxSockets
    from .unserved import Unserved

    RelayInside = Callable[[Sequence[_socket.socket], int], None]

OTHER_FAMILY = "the server listens on another address family than the %s"
SHARES = "the server shared or duplicated its socket before listen"
LISTENED_BEFORE = "the server listened while another one served"
NO_PROCESS = (errno.EAGAIN, *OUT_OF_RESOURCES)
"""Errors of a start of the relay that may pass: the account's processes are used up (fork(2))."""


class Tools:
    """What every forwarded port works with."""

    def __init__(
        self,
        exchanger: Exchanger,
        sandbox: SandboxSockets,
        relay: Relay,
        unserved: Unserved,
        log: Log,
    ) -> None:
        self.exchanger = exchanger
        self.sandbox = sandbox
        self.relay = relay
        self.unserved = unserved
        self.log = log


class ForwardedPort:
    """What leads to one guest port. A subclass says what clients find while nobody serves."""

    SOCKETS: type[HostSockets | PublishedSockets]
    MAY_PASS: tuple[int, ...] = NO_PROCESS
    kind = ""  # for messages
    lookout: Lookout | BriefLookout

    def __init__(
        self,
        guest_port: int,
        descriptors: Sequence[int],
        tools: Tools,
        relay_inside: RelayInside,
    ) -> None:
        self.log = tools.log
        self.exchanger = tools.exchanger
        self.sandbox = tools.sandbox
        self.relay_inside = relay_inside  # relay from these sockets to this port in the sandbox
        self.hosts = self.SOCKETS(descriptors, tools.relay.reactor, self.start_over)
        self.guest_port = GuestPort(guest_port, tools.relay, self.hosts.sockets)
        self.served = False  # a server has got a socket of the host's
        self.relaying = False  # for good
        self.delayed = False  # there was no process for the relay
        listeners = tools.unserved.listeners
        self.lookout = self.make_lookout(tools, lambda: guest_port in listeners.ports())
        self.lookout.begin()

    def make_lookout(self, tools: Tools, listens: Callable[[], bool]) -> Lookout | BriefLookout:
        """For a server of which `listens` tells."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What a line of the log about it begins with."""
        raise NotImplementedError

    def await_server(self) -> None:
        """Nobody serves: have clients wait, or be refused."""
        raise NotImplementedError

    def explain(self, forward: str) -> None:
        """Log how clients reach the server. Once they had to wait for it, everybody reads it."""
        report = self.log.report if self.delayed else self.log.explain
        report(f"{self.label}: {forward}")

    def open_others(self) -> None:
        """Listen where a server that has got a socket does not, as far as that can be."""
        raise NotImplementedError

    def open_all(self) -> None:
        """Listen at all addresses of the port. Raises OSError."""
        raise NotImplementedError

    # -- the host's socket -----------------------------------------------------------------

    def look_for_end(self) -> None:
        """A server that listens anew needs the guest port that we keep for another one."""
        if self.served and not self.hosts.are_served():
            self.start_over()

    def offer(self, socket: _socket.socket, notification: seccomp.Notification) -> bool:
        """Give the caller the host's socket in place of this one, unless there is a reason not to.
        False: its own call is to proceed."""
        self.look_for_end()
        if self.relaying or self.served:
            return False
        outcome = PUT_BACK
        try:
            host = self.hosts.for_server(socket)
            if host is None:
                # its next socket may be of this one
                self.lookout.expect(OTHER_FAMILY % self.kind)
                return False
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
        if outcome != PUT_BACK:
            # The queue as long as the server has asked for, not longer: what waits here can only
            # fill it up. The kernel lowers it to net.core.somaxconn, a negative one, which is a
            # large one, too.
            listen_again(host, backlog_of(notification))
        if outcome != EXCHANGED:
            stand_in.close()
            return outcome
        self.open_others()
        self.served = True
        self.lookout.end()
        self.guest_port.keep(stand_in, host)
        self.hosts.watch(process, notification.descriptor)
        # Behind that: who writes the line may be slow to close what it has from us.
        self.explain(f"native, the server has the {self.kind}'s own socket")
        return outcome

    def start_over(self) -> None:
        """Nobody serves any more: whoever listens next is given the socket."""
        self.served = False
        self.hosts.holder.forget()
        self.guest_port.let_go()
        self.await_server()

    # -- the other kind of forwarding ------------------------------------------------------

    def become_relay(self, why: str) -> None:
        """Have this port relayed from inside the sandbox, for good. Raises OSError."""
        self.hosts.holder.forget()
        self.guest_port.let_go()
        self.lookout.end()
        try:
            self.open_all()
            self.relay_inside(self.hosts.sockets, self.guest_port.port)
        except OSError as error:
            if error.errno not in self.MAY_PASS:
                raise
            self.wait_for_relay(why, error)
            return
        self.relaying = True
        self.explain(f"relay, because {why}")

    def wait_for_relay(self, why: str, error: OSError) -> None:
        """Try again as long as clients wait."""
        if not self.delayed:
            self.log.report(
                f"clients of the {self.kind} wait: it cannot be relayed now ({error.strerror})"
            )
        self.delayed = True
        self.lookout.expect(why, MAX_PAUSE)
        self.lookout.begin()


class HostPort(ForwardedPort):
    """The host port: the server's. Clients wait for it."""

    SOCKETS = HostSockets
    kind = "host port"
    label = "forward"
    lookout: Lookout

    def make_lookout(self, tools: Tools, listens: Callable[[], bool]) -> Lookout:
        reactor, unserved = tools.relay.reactor, tools.unserved
        return Lookout(reactor, unserved, self.hosts.sockets, listens, self.become_relay)

    def open_others(self) -> None:
        """They have listened all the time."""

    open_all = open_others

    def await_server(self) -> None:
        self.lookout.expect()
        for host in self.hosts.sockets:
            try:
                listen_again(host)
            except OSError as error:
                self.log.report(f"the host port is lost: {error.strerror}")
        self.lookout.begin()


class PublishedPort(ForwardedPort):
    """A published port. Without a server its clients are refused, and nobody notices them: a range
    of them costs no more than its descriptors."""

    SOCKETS = PublishedSockets
    MAY_PASS = (*NO_PROCESS, errno.EADDRNOTAVAIL)  # an address may come back
    kind = "published port"
    hosts: PublishedSockets

    def make_lookout(self, tools: Tools, listens: Callable[[], bool]) -> BriefLookout:
        return BriefLookout(tools.relay.reactor, listens, self.become_relay, self.hosts.close)

    @property
    def label(self) -> str:
        return f"published port {self.hosts.places[0][1]}"

    def open_others(self) -> None:
        for error in self.hosts.open_others():
            self.log.report(f"{self.label}: clients are refused at an address: {error.strerror}")

    def await_server(self) -> None:
        self.hosts.close()
        self.lookout.expect(LISTENED_BEFORE)

    def open_all(self) -> None:
        if not all(map(listens, self.hosts.sockets)):
            self.hosts.close()  # what was made for a server that did not get it
        errors = self.hosts.open_others()
        if errors and not self.hosts.sockets:
            raise errors[0]


def backlog_of(notification: seccomp.Notification) -> int:
    """The second argument of listen."""
    return int(notification.arguments[1]) & 0xFFFFFFFF
