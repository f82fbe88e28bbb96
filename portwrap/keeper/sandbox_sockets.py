"""Sockets of the sandbox, for a keeper that stays outside.

A process makes sockets only in the network namespace that it is in, but accept(2) makes one in that
of the listening socket. So from two sockets of the sandbox that the launching process has made
there come as many as are needed: one listens for a moment, the other connects to it, and then
connect(2) with AF_UNSPEC makes all three as new again (the kernel's tcp_disconnect). Somebody else
who connects at that moment is reset.
"""

from __future__ import annotations

import _socket

from ..kernel.netlink import NetlinkSocket
from ..kernel.sockets import accept, disconnect
from .options import Pristine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT = 1.0
"""Seconds that a connection within the sandbox may take. It takes less than a millisecond."""


class SandboxSockets:
    """Makes TCP sockets in the sandbox's network namespace."""

    def __init__(self, spares: Sequence[int]) -> None:
        """`spares` are descriptors of two unbound TCP sockets of each address family, of one of
        MPTCP where there is such, and of one of NETLINK_SOCK_DIAG where there is that."""
        self.diagnosis: NetlinkSocket | None = None
        self.spares: dict[int, list[_socket.socket]] = {}
        self.pristine: dict[tuple[int, int], Pristine] = {}
        for number in spares:
            spare = _socket.socket(fileno=number)
            if spare.family == _socket.AF_NETLINK:
                self.diagnosis = NetlinkSocket.of(spare)
                continue
            self.pristine[spare.family, spare.proto] = Pristine(spare)
            if spare.proto == _socket.IPPROTO_TCP:
                spare.settimeout(TIMEOUT)
                self.spares.setdefault(spare.family, []).append(spare)
            else:
                spare.close()

    def make(self, family: int) -> _socket.socket:
        """A new socket: unbound, not connected, blocking. Raises OSError."""
        connector, listener = self.spares[family]
        try:
            listener.listen(1)
            connector.connect(listener.getsockname())
            made, _ = accept(listener)
        finally:
            disconnect(connector)
            disconnect(listener)
        disconnect(made)
        return made
