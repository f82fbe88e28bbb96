"""What to make: a sandbox, with the ports of the host that are forwarded into it."""

from __future__ import annotations

from . import ports, services

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .services import Service

GUEST_PORT = 8888
"""The port that the server listens on in the sandbox, unless another one is given."""
FORWARDS = ("auto", "native", "relay")
OUTWARDS = ("auto", "native", "helper")


class Sandbox:
    """What to make: which port of the host is forwarded to which port in the sandbox."""

    def __init__(
        self,
        host_port: int,
        guest_port: int = GUEST_PORT,
        host: str = ports.EVERY_IPV4,
        program: str = "portwrap",
        forward: str = "auto",
        outward: str = "auto",
        network: str = "auto",
        verbose: bool = False,
        published: Sequence[tuple[int, int]] = (),
        ephemeral: Sequence[int] = (),
        host_services: Sequence[Service] = (),
        node_services: Sequence[tuple[str, int]] = (),
        allow_from: str = "",
        announce: Callable[[Sandbox, dict[str, Any]], None] | None = None,
    ) -> None:
        self.host_port = host_port
        self.guest_port = guest_port
        self.host = host
        self.program = program
        # "native", "relay", or "auto": native where it can be. Only the relay looks at who comes.
        self.forward = "relay" if allow_from else forward
        # "native", "helper", or "auto": native where it can be. Without a network there is neither.
        self.outward = "helper" if network == "none" else outward
        self.network = network  # one of network.NETWORK_DRIVERS
        self.verbose = verbose
        self.published = published  # more ports of the host, and where each is forwarded to
        self.ephemeral = ephemeral  # those of them that programs get that bind to port 0
        self.host_services = services.distinct(host_services)
        self.node_services = node_services  # host names and ports to reach at the node's addresses
        self.allow_from = allow_from  # networks of the clients, as the user wrote them; "": all
        self.allowed = ports.parse_networks(allow_from) if allow_from else []
        self.announce = announce  # called with what was made, just before the command begins

    @property
    def address(self) -> str:
        """Where the host listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.host_port}"
