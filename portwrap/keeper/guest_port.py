"""The guest port in the sandbox, while the server has the host's socket and not that port's.

A stand-in listens on it: so it stays taken (a second `jupyter lab` gets 8889, not a share of the
owner's connections), and clients in the sandbox still reach the server at it, relayed to the host
port.
"""

from __future__ import annotations

from ..kernel.addresses import BACKLOG
from .connector import GUESTS, Upstream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    import _socket

    from .relay import Relay


class GuestPort:
    """Keeps the guest port for a server."""

    def __init__(self, port: int, relay: Relay, hosts: Sequence[_socket.socket]) -> None:
        self.port = port
        self.relay = relay
        self.hosts = hosts
        self.upstream = Upstream(port, GUESTS)  # where its clients are forwarded to
        self.stand_in: _socket.socket | None = None

    def keep(self, stand_in: _socket.socket, host: _socket.socket) -> None:
        """Listen with this socket, bound to the guest port, and forward its clients to the server
        that has `host`; and with them those of the port's other sockets."""
        stand_in.listen(BACKLOG)
        self.stand_in = stand_in
        address, port = host.getsockname()[:2]
        self.upstream.aim(port, [(host.family, reachable(address))])
        for listener in [stand_in, *(other for other in self.hosts if other is not host)]:
            self.relay.serve(listener, self.upstream)

    def let_go(self) -> None:
        """Relay nothing; free the guest port."""
        for host in self.hosts:
            if self.relay.serves(host):
                self.relay.release(host)
        stand_in, self.stand_in = self.stand_in, None
        if stand_in is not None:
            if self.relay.serves(stand_in):  # else there was no room for it in the epoll
                self.relay.release(stand_in)
            stand_in.close()


def reachable(address: str) -> str:
    """Where a client on this host reaches a socket that is bound to this address."""
    every = {"0.0.0.0": "127.0.0.1", "::": "::1", "::ffff:0.0.0.0": "::ffff:127.0.0.1"}
    return every.get(address, address)
