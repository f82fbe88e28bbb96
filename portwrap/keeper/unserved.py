"""Clients of the host port that find no server: reported in the job's log, once, with where one
listens instead: on another port, or in a network namespace of its own."""

from __future__ import annotations

import os
import time

from ..kernel import procfs
from ..kernel.other_processes import is_in_user_namespace
from ..kernel.socket_tables import tcp_listeners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .session import Session

LOOK_AFTER = 10.0
"""Seconds that clients have had no server until we look for one elsewhere, and between two looks.
A server that starts may take that long, so to find none is no reason for a report."""
MAX_PORTS = 5
"""Ports that the report lists."""


class SandboxListeners:
    """What listens in the sandbox's network namespace."""

    def __init__(self, session: Session) -> None:
        go = session.go
        self.command = go.command
        self.network = f"net:[{os.fstat(go.descriptors.network_namespace).st_ino}]"
        self.ours = {os.fstat(number).st_ino for number in go.descriptors.services}

    def ports(self) -> set[int]:
        """The TCP ports that something listens on, but for us on behalf of host services."""
        process = self.process_inside()
        listeners = tcp_listeners(process) if process is not None else []
        return {each.port for each in listeners if each.inode not in self.ours}

    def process_inside(self) -> procfs.Process | None:
        """A process in there, by which /proc shows the sockets; the command may have gone on to a
        network namespace of its own."""
        for process in ("self", self.command):
            if network_of(process) == self.network:
                return process
        return next((each for each in procfs.processes() if network_of(each) == self.network), None)


def network_of(process: procfs.Process) -> str:
    """The name of its network namespace; nothing if it is another user's, or gone."""
    try:
        return procfs.namespace(process, "net")
    except OSError:
        return ""


class Unserved:
    """Knows for how long clients of the host port have found no server."""

    def __init__(self, session: Session, report: Callable[[str], None]) -> None:
        go = session.go
        self.report = report
        self.guest_port = go.guest_port
        self.listeners = SandboxListeners(session)
        self.user_namespace = os.fstat(go.descriptors.user_namespace).st_ino
        self.next_look = 0.0  # 0.0: clients are served, as far as we know
        self.reported = False

    def on_served(self) -> None:
        self.next_look = 0.0

    def on_client(self) -> None:
        """A client waits, or has been refused."""
        if self.reported:
            return
        now = time.monotonic()
        if self.next_look and now >= self.next_look:
            self.look()
            self.next_look = 0.0
        self.next_look = self.next_look or now + LOOK_AFTER

    def look(self) -> None:
        """Report where a server listens, if one does."""
        found = self.in_another_namespace() or self.on_another_port()
        if found:
            self.report(f"clients of the host port find no server: {found}")
            self.reported = True

    def on_another_port(self) -> str:
        """What listens in the sandbox but for us, and the remedy; nothing if nothing does."""
        ports = sorted(self.listeners.ports())
        if not ports or self.guest_port in ports:
            return ""
        listed = ", ".join(map(str, ports[:MAX_PORTS])) + ("…" if ports[MAX_PORTS:] else "")
        return (
            f"nothing listens on the guest port {self.guest_port}, only on {listed}"
            f"\n  The server must listen on port {self.guest_port}: remove the port from its"
            f" configuration, or make it the guest port, for example with -P {ports[0]}."
        )

    def in_another_namespace(self) -> str:
        """A process of the session that listens on the guest port in a network namespace of its
        own, and the remedy; nothing if there is none that we may look at."""
        networks = {self.listeners.network, network_of("self")}
        for process in procfs.processes():
            network = network_of(process)
            if not network or network in networks:
                continue
            if not is_in_user_namespace(process, self.user_namespace):
                continue  # of another session of the same user
            networks.add(network)
            if any(each.port == self.guest_port for each in tcp_listeners(process)):
                return (
                    f"process {process} ({procfs.name_of(process)}) listens on port"
                    f" {self.guest_port} in another network namespace"
                    "\n  The server must run in the session's own: podman run --network=host,"
                    " apptainer without --net, bwrap without --unshare-net."
                )
        return ""
