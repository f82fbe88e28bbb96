"""What the keeper knows of its session."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from ..protocol import Go, SeccompListener
    from .driver import DriverProcess


class Session:
    """One session, from the keeper's point of view."""

    def __init__(self, go: Go, lifeline: _socket.socket, max_connections: int) -> None:
        self.go = go
        self.lifeline = lifeline
        self.max_connections = max_connections  # that can be relayed
        self.driver: DriverProcess | None = None
        self.seccomp: SeccompListener | None = None  # None: nothing is native
        self.inside = False  # whether the keeper has entered the sandbox

    @property
    def forwards_natively(self) -> bool:
        return self.seccomp is not None and self.seccomp.forward

    @property
    def has_native_outbound(self) -> bool:
        return self.seccomp is not None and self.seccomp.outbound

    @property
    def namespaces(self) -> tuple[int, int]:
        """Descriptors of the sandbox's user and network namespace."""
        descriptors = self.go.descriptors
        return descriptors.user_namespace, descriptors.network_namespace
