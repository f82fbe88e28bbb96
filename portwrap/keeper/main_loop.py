"""The main loop: what the keeper does for the rest of its life.

It ends when the command is gone, ends the command when the network driver is gone (`lifecycle.py`),
and in between runs the relay (`relay.py`) or native forwarding (`native.py`). It is in the sandbox
where it relays into it only; else it stays with the host, and a worker (`worker.py`) is in there.
"""

from __future__ import annotations

import os

import _socket

from ..diagnostics.errors import reason_of
from ..kernel.processes import enter
from .connector import GUESTS, Upstream
from .driver import how_ended
from .reactor import Reactor
from .relay import Relay
from .unserved import Unserved
from .worker import DELIVERY_TIMEOUT, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from ..protocol import SeccompListener
    from .lifecycle import Lifecycle
    from .native import Native
    from .reactor import Timer
    from .responder import Responder
    from .session import Session

PROC_INTERVAL = 2.0
"""Seconds between two looks at the command's /proc entry where the kernel has no pidfd."""


def load(session: Session) -> None:
    """Import what serves this session: later the file may be gone. Raises ImportError.

    The largest come first: the memory that it took to compile them serves those that follow.
    """
    if session.has_native_outbound:
        from . import outbound  # noqa: F401
    if session.forwards_natively:
        from . import forwarded_port, native  # noqa: F401
    if session.seccomp is not None:
        from . import exchange, responder, sandbox_sockets  # noqa: F401
    if session.go.ephemeral:
        from . import ephemeral_ports  # noqa: F401
    if session.go.descriptors.services:
        from . import datagrams  # noqa: F401


class Keeper:
    """Watches over the command, the network driver and the lifeline, and runs the relay."""

    def __init__(self, session: Session, lifecycle: Lifecycle) -> None:
        self.session = session
        self.lifecycle = lifecycle
        self.native: Native | None = None
        self.for_published: Worker | None = None  # relays what cannot be native of them
        self.look_again: Timer | None = None
        self.reactor = Reactor()
        self.relay = Relay(self.reactor, session.max_connections)
        self.unserved = Unserved(session, lifecycle.log.report)
        self.own = list(map(family_and_address, session.go.own_addresses))
        self.guests = [*GUESTS, *self.own]

    def run(self) -> NoReturn:
        """Serve until the command is gone."""
        self.begin_forwarding()
        self.watch()
        while True:
            self.reactor.run_once()

    def begin_forwarding(self) -> None:
        """Forward every port, or be ready to give the host port's socket to the server."""
        go, descriptors = self.session.go, self.session.go.descriptors
        if not self.session.forwards_natively:
            guest = self.guest_upstream(go.guest_port)
            inward = [(_socket.socket(fileno=number), guest) for number in descriptors.listeners]
            inward += [
                (_socket.socket(fileno=number), self.published_upstream(port))
                for number, port in go.published
            ]
            if self.session.inside:
                self.serve_inward(inward)
            else:
                self.start_worker(inward)
        for number in descriptors.services:
            self.offer(_socket.socket(fileno=number))
        if self.session.seccomp is not None:
            self.begin_responding(self.session.seccomp)

    def begin_responding(self, listener: SeccompListener) -> None:
        """Respond to the system calls that what is native has to know of."""
        from ..kernel.callers import Callers
        from ..kernel.machines import this_machine
        from .epolls import Epolls
        from .exchange import Exchanger
        from .responder import Responder
        from .sandbox_sockets import SandboxSockets

        machine = this_machine()
        assert machine is not None
        responder = Responder(listener.descriptor, self.reactor)
        sockets = SandboxSockets(listener.spares)
        exchanger = Exchanger(Epolls(Callers(), machine.kcmp, hears_of_new=listener.outbound))
        if listener.forward:
            from .forwarded_port import Tools
            from .native import Native

            tools = Tools(exchanger, sockets, self.relay, self.unserved, self.lifecycle.log)
            self.native = Native(
                self.session, responder, tools, self.relay_host_port, self.relay_published
            )
        if self.session.go.ephemeral:
            self.choose_ports(responder)
        if listener.outbound:
            from .outbound import Outbound

            Outbound(self.session, responder, exchanger, sockets)

    def choose_ports(self, responder: Responder) -> None:
        """Have programs that leave the choice of a port to the kernel get a published one."""
        from .ephemeral_ports import EphemeralPorts

        go = self.session.go
        free_ended = self.native.on_bind if self.native is not None else None
        EphemeralPorts(go.ephemeral, go.descriptors.network_namespace, responder, free_ended)

    def guest_upstream(self, port: int) -> Upstream:
        """Where clients of the host port are forwarded to in the sandbox."""
        return Upstream(port, self.guests, allowed=self.session.go.allowed, unserved=self.unserved)

    def published_upstream(self, port: int) -> Upstream:
        """Where clients of a published port are forwarded to in the sandbox. Of an ephemeral one
        not to a server on the loopback: it has asked for a free port, not to be published."""
        guests = self.own if port in self.session.go.ephemeral else self.guests
        return Upstream(port, guests, allowed=self.session.go.allowed)

    def serve_inward(self, routes: Sequence[tuple[_socket.socket, Upstream]]) -> None:
        """Relay from these sockets of the host to these upstreams in the sandbox, where we are."""
        for listener, upstream in routes:
            self.relay.serve(listener, upstream)

    def offer(self, listener: _socket.socket) -> None:
        """Relay from this socket of the sandbox to the same address and port of the host, where we
        are."""
        if listener.type == _socket.SOCK_DGRAM:
            from .datagrams import Datagrams

            Datagrams(self.reactor, listener)
            return
        address, port = listener.getsockname()[:2]
        self.relay.serve(listener, Upstream(port, [(listener.family, address)], inward=False))

    def relay_host_port(self, hosts: Sequence[_socket.socket], port: int) -> None:
        """Relay from these sockets of the host to this port in the sandbox, for good. Raises
        OSError: they are as they were if there was no process for it."""
        routes = [(host, self.guest_upstream(port)) for host in hosts]
        go = self.session.go
        if go.descriptors.services or go.descriptors.published or self.session.has_native_outbound:
            self.start_worker(routes)  # the host is reached from out here only
            return
        enter(self.session.namespaces)
        self.session.inside = True
        self.serve_inward(routes)

    def relay_published(self, hosts: Sequence[_socket.socket], port: int) -> None:
        """The same for a published port. One worker is enough for all of them."""
        routes = [(host, self.published_upstream(port)) for host in hosts]
        if self.for_published is None:
            self.for_published = self.start_worker(routes)
        else:
            self.for_published.add(routes)

    def start_worker(self, routes: Sequence[tuple[_socket.socket, Upstream]]) -> Worker:
        """Have a process in the sandbox relay from these sockets of the host. Raises OSError."""
        worker = Worker(routes, self.session.namespaces, self.session.max_connections)
        worker.wait_until_ready()
        self.lifecycle.workers.append(worker)
        self.reactor.watch(worker.link.fileno(), lambda: self.on_worker_end(worker))
        return worker

    def watch(self) -> None:
        """Be notified of everything that can end the session."""
        lifecycle = self.lifecycle
        if lifecycle.is_gone():
            self.finish()
        self.reactor.watch(lifecycle.lifeline.fileno(), self.on_lifeline)
        driver = lifecycle.driver
        if driver is not None:
            self.reactor.watch(driver.messages, self.on_driver_messages)
        if not lifecycle.has_pidfd:
            self.look_again = self.reactor.call_in(PROC_INTERVAL, self.look_at_both)
            return
        self.reactor.watch(lifecycle.process, self.finish)
        if driver is not None:
            self.reactor.watch(driver.pidfd, self.on_driver_end)

    # -- the command -----------------------------------------------------------------------

    def on_lifeline(self) -> None:
        """End of file is no end of the command: some launchers close whatever they do not know."""
        if self.lifecycle.is_gone():
            self.finish()
        self.reactor.unwatch(self.lifecycle.lifeline.fileno())

    def finish(self) -> NoReturn:
        """Deliver what the command sent before it ended, and end."""
        links = [worker.link.fileno() for worker in self.lifecycle.workers]
        # Whatever ends meanwhile, too, changes nothing any more.
        for descriptor in (self.lifecycle.lifeline.fileno(), self.lifecycle.process, *links):
            if self.reactor.is_watched(descriptor):
                self.reactor.unwatch(descriptor)
        self.reactor.cancel(self.look_again)
        if self.native is not None:
            self.native.end()
        for worker in self.lifecycle.workers:
            worker.finish()
        self.relay.finish(DELIVERY_TIMEOUT)
        for worker in self.lifecycle.workers:
            worker.has_message(DELIVERY_TIMEOUT)
        self.lifecycle.leave()

    def look_at_both(self) -> None:
        """Without pidfds: see whether the command or the network driver has ended."""
        if self.lifecycle.is_gone():
            self.finish()
        self.on_driver_end()
        self.look_again = self.reactor.call_in(PROC_INTERVAL, self.look_at_both)

    # -- ours ------------------------------------------------------------------------------

    def on_driver_messages(self) -> None:
        driver = self.lifecycle.driver
        if driver is not None and not driver.read_messages():
            self.reactor.unwatch(driver.messages)
            self.on_driver_end()

    def on_driver_end(self) -> None:
        """End the session if the network driver is gone: a job without a network is lost."""
        driver = self.lifecycle.driver
        pid, status = driver.reap() if driver is not None else (0, 0)
        if driver is None or pid == 0:
            return
        driver.drain()
        # One that was killed had no time to report why: its last messages are about its start.
        messages = "" if os.WIFSIGNALED(status) else driver.last_messages()
        self.lifecycle.end_session(f"{driver.name} {how_ended(status)}{messages}")

    def on_worker_end(self, worker: Worker) -> None:
        """End the session if a worker is gone: nobody serves what it relayed."""
        self.lifecycle.workers.remove(worker)
        self.lifecycle.end_session(f"the relay in the sandbox {how_ended(worker.end())}")


def family_and_address(address: str) -> tuple[int, str]:
    """Where a server in the sandbox may listen."""
    return (_socket.AF_INET6 if ":" in address else _socket.AF_INET), address


def main(session: Session, lifecycle: Lifecycle) -> NoReturn:
    """Serve this session."""
    try:
        Keeper(session, lifecycle).run()
    except (OSError, ImportError) as error:  # a limit is used up, or the kernel forbids a step
        lifecycle.fail(f"the keeper failed: {reason_of(error)}")
