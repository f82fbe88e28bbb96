"""Ephemeral ports: where a program leaves the choice of a port to the kernel (bind(2) with port 0),
we choose a published one for it.

The socket stays the caller's own. If it calls listen, it is given the host's socket, as at every
published port. Programs that connect only do not call bind, or not for a port.
"""

from __future__ import annotations

import errno

import _socket

from ..kernel import libc, seccomp
from ..kernel.addresses import is_loopback
from ..kernel.callers import Memory
from ..kernel.machines import this_machine
from ..kernel.processes import take_descriptor
from ..kernel.sockets import IP_BIND_ADDRESS_NO_PORT, as_socket
from .destinations import MAX_SIZE, read_destination
from .native import PROTOCOLS
from .network_namespaces import SANDBOX, NetworkNamespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .destinations import Destination
    from .responder import Responder

REUSE = (_socket.SO_REUSEADDR, _socket.SO_REUSEPORT)
bind_file = libc.prepare("bind")


class EphemeralPorts:
    """Chooses them from these ports of the sandbox, one after the other."""

    def __init__(
        self,
        ports: Sequence[int],
        network_namespace: int,
        responder: Responder,
        free_ended: Callable[[seccomp.Notification], None] | None,
    ) -> None:
        """`free_ended` lets go of the ports of servers that have ended. Raises OSError."""
        machine = this_machine()
        assert machine is not None
        self.ports = list(ports)
        self.networks = NetworkNamespaces(network_namespace)
        self.free_ended = free_ended
        self.memory = Memory(MAX_SIZE)
        responder.before(machine.bind, self.on_bind)

    def on_bind(self, notification: seccomp.Notification) -> int | None:
        """0: the socket is bound to one of the ports. None: the caller's own call is to proceed."""
        address = self.address(notification)
        if address is None:
            return None
        socket = as_socket(take_descriptor(notification.thread, notification.descriptor))
        try:
            seccomp.id_valid(notification)  # so it was the caller's memory, and is its socket
            if not self.is_for_us(socket, address):
                return None
            if self.free_ended is not None:
                self.free_ended(notification)
            return 0 if self.bind(socket, address) else None
        finally:
            socket.close()

    def address(self, notification: seccomp.Notification) -> Destination | None:
        """What the caller binds to, if that is port 0 of an address at which other hosts can
        connect. Raises OSError."""
        address = read_destination(notification, self.memory)
        if address is None or address.port:
            return None
        return None if is_loopback(address.address) else address

    def is_for_us(self, socket: _socket.socket, address: Destination) -> bool:
        """Whether it may become a server of the sandbox's at this address. Raises OSError."""
        return (
            socket.proto in PROTOCOLS
            and socket.family == address.family
            and not socket.getsockopt(_socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT)
            and self.networks.of(socket) == SANDBOX
        )

    def bind(self, socket: _socket.socket, address: Destination) -> bool:
        """Bind it to the first port that is free; whether it is bound now. Raises OSError."""
        # With these two options it would share a port with another one that has them, too.
        before = [(option, socket.getsockopt(_socket.SOL_SOCKET, option)) for option in REUSE]
        for option in REUSE:
            socket.setsockopt(_socket.SOL_SOCKET, option, 0)
        try:
            return self.bind_to_free(socket.fileno(), address.data)
        finally:
            for option, value in before:
                socket.setsockopt(_socket.SOL_SOCKET, option, value)

    def bind_to_free(self, number: int, data: bytes) -> bool:
        for tried, port in enumerate(self.ports, 1):
            result = bind_file(number, data[:2] + port.to_bytes(2, "big") + data[4:], len(data))
            if result != -errno.EADDRINUSE:
                # The one that has been free for longest is the next.
                self.ports = self.ports[tried:] + self.ports[:tried]
                return result == 0
        return False
