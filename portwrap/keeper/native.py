"""Native forwarding: a server has the host's own listening socket, and serves by itself.

The keeper stays in the host's namespaces. Each listen(2) and bind(2) in the sandbox waits for our
response (`responder.py`). When a server calls listen on the guest port of the host port, or of a
published one, that forwarded port decides whether it gets the host's socket (`forwarded_port.py`).
"""

from __future__ import annotations

import _socket

from ..kernel import seccomp
from ..kernel.addresses import IPPROTO_MPTCP
from ..kernel.machines import this_machine
from ..kernel.processes import take_descriptor
from ..kernel.sockets import as_socket, is_bound_to_loopback
from .forwarded_port import ForwardedPort, HostPort, PublishedPort, Tools, backlog_of
from .host_sockets import listen_again
from .network_namespaces import HOST, SANDBOX, NetworkNamespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .forwarded_port import RelayInside
    from .responder import Responder
    from .session import Session

PROTOCOLS = (_socket.IPPROTO_TCP, IPPROTO_MPTCP)  # Go's listeners are of MPTCP by default


class Native:
    """Leads each call of listen to the forwarded port that it is about."""

    def __init__(
        self,
        session: Session,
        responder: Responder,
        tools: Tools,
        relay_host_port: RelayInside,
        relay_published: RelayInside,
    ) -> None:
        go = session.go
        self.networks = NetworkNamespaces(go.descriptors.network_namespace)
        # Programs ask for one as a free port, close it, and have a server for themselves there.
        self.ephemeral = frozenset(go.ephemeral)
        published: dict[int, list[int]] = {}
        for descriptor, guest in go.published:
            published.setdefault(guest, []).append(descriptor)
        # A server has one socket, in whose place there is one: so all that leads to it is one.
        hosts = [*go.descriptors.listeners, *published.pop(go.guest_port, ())]
        self.ports: dict[int, ForwardedPort] = {
            go.guest_port: HostPort(go.guest_port, hosts, tools, relay_host_port)
        }
        for guest, descriptors in published.items():
            self.ports[guest] = PublishedPort(guest, descriptors, tools, relay_published)
        machine = this_machine()
        assert machine is not None
        responder.on(machine.bind, self.on_bind)
        responder.on(machine.listen, self.on_listen)

    def end(self) -> None:
        """Look for no server any more, and for no server's end."""
        for port in self.ports.values():
            port.lookout.end()
            port.hosts.holder.forget()

    # -- system calls ----------------------------------------------------------------------

    def on_bind(self, _: seccomp.Notification) -> None:
        """A server that listens anew needs the guest port that we keep."""
        for port in self.ports.values():
            try:
                port.look_for_end()
            except OSError:
                continue  # another one may be theirs

    def on_listen(self, notification: seccomp.Notification) -> int | None:
        """0: the caller has a socket of the host's, which listens."""
        socket = as_socket(take_descriptor(notification.thread, notification.descriptor))
        try:
            seccomp.id_valid(notification)
            return 0 if self.is_done(socket, notification) else None
        finally:
            socket.close()

    def is_done(self, socket: _socket.socket, notification: seccomp.Notification) -> bool:
        """Whether we have done what the caller of listen wants. False: its own call is to
        proceed. Raises OSError."""
        if socket.proto not in PROTOCOLS:
            return False
        network = self.networks.of(socket)
        if network == SANDBOX:
            number = socket.getsockname()[1]
            if number in self.ephemeral and is_bound_to_loopback(socket):
                return False
            port = self.ports.get(number)
            return port is not None and port.offer(socket, notification)
        own = self.find(socket) if network == HOST else None
        if own is not None:
            listen_again(own, backlog_of(notification))
        return own is not None

    def find(self, socket: _socket.socket) -> _socket.socket | None:
        """The same socket of the host's, if a server has it from us."""
        ports = [port for port in self.ports.values() if not port.relaying]
        return next(filter(None, (port.hosts.find(socket) for port in ports)), None)
