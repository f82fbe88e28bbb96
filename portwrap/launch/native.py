"""What is native in this session: agreed on with the keeper, and asked of the kernel."""

from __future__ import annotations

import errno
import os
import socket

from ..diagnostics.errors import Failure, PortwrapError
from ..kernel.addresses import IPPROTO_MPTCP
from ..kernel.machines import UNKNOWN_MACHINE, this_machine
from ..kernel.netlink import NETLINK_SOCK_DIAG
from ..kernel.seccomp_filter import Trap, install_filter
from ..protocol import NotNative, SeccompListener
from . import outer_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kernel.machines import Machine
    from .drivers.driver import NetworkDriver
    from .lifeline import Lifeline
    from .sandbox import Sandbox

NO_SUCH_SOCKET = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOPROTOOPT)
NOT_WANTED = "not wanted"
BEFORE_KILLABLE = "the kernel lets signals interrupt a connect that has begun (before Linux 5.19)"


class Native:
    """Why forwarding and outbound are not native; "" for one that is."""

    def __init__(self, no_forward: str, no_outbound: str) -> None:
        self.no_forward = no_forward
        self.no_outbound = no_outbound

    @property
    def forward(self) -> str:
        return "relay" if self.no_forward else "native"

    @property
    def why_relayed(self) -> str:
        """Why forwarding is not native, where that was wanted."""
        return self.no_forward if self.no_forward != NOT_WANTED else ""

    @property
    def why_no_outbound(self) -> str:
        """Why outbound is not native, where that was wanted."""
        return self.no_outbound if self.no_outbound != NOT_WANTED else ""

    def check(self, sandbox: Sandbox, driver: NetworkDriver | None) -> None:
        """Raise PortwrapError unless what the user insists on, and what has no other way, is
        native."""
        if sandbox.forward == "native" and self.no_forward:
            message = f"--forward native is not possible: {self.no_forward}"
            raise PortwrapError(message, Failure.NATIVE)
        if sandbox.outward == "native" and self.no_outbound:
            message = f"--outward native is not possible: {self.no_outbound}"
            raise PortwrapError(message, Failure.NATIVE_OUTBOUND)
        if sandbox.ephemeral and self.no_forward and self.no_outbound:
            why = self.why_relayed or self.why_no_outbound or "nothing is to be native"
            message = f"--publish-ephemeral is not possible: {why}"
            raise PortwrapError(message, Failure.EPHEMERAL)
        if driver is not None and self.no_outbound:
            driver.refuse_without_native(self.no_outbound)


def wanted_in(sandbox: Sandbox) -> Native:
    """What is to be tried: what is wanted, unless to try it would be our end."""
    why = outer_filter.why_not(outer_filter.NATIVE_CALLS)
    return Native(
        NOT_WANTED if sandbox.forward == "relay" else why,
        NOT_WANTED if sandbox.outward == "helper" else why,
    )


def agree(lifeline: Lifeline, wanted: Native, insist: bool) -> Native:
    """Agree with the keeper on what is native; `insist` as for `install`. Raises PortwrapError."""
    if wanted.no_forward and wanted.no_outbound:
        return wanted
    answer = lifeline.receive_whether_native()
    machine = this_machine()
    if isinstance(answer, NotNative) or machine is None:
        reason = answer.reason if isinstance(answer, NotNative) else UNKNOWN_MACHINE
        return Native(wanted.no_forward or reason, wanted.no_outbound or reason)
    wanted.no_outbound = wanted.no_outbound or answer.no_outbound
    spares = spare_sockets()
    listener, made = install(machine, wanted, insist)
    descriptors = [listener, *(spare.fileno() for spare in spares)] if listener is not None else []
    lifeline.send(SeccompListener(not made.no_forward, not made.no_outbound), descriptors)
    if listener is not None:
        os.close(listener)
    for spare in spares:
        spare.close()
    return made


def install(machine: Machine, wanted: Native, insist: bool) -> tuple[int | None, Native]:
    """Install the filter that this takes, if any. Returns its listener, and what it can be for;
    `insist` on native outbound where signals may do harm."""
    reason = ""
    for killable in (True, False):
        no_outbound = wanted.no_outbound
        if not (killable or insist):
            no_outbound = no_outbound or BEFORE_KILLABLE
        if wanted.no_forward and no_outbound:
            return None, Native(wanted.no_forward, no_outbound)
        try:
            listener = install_filter(machine, traps(machine, not no_outbound), killable)
            return listener, Native(wanted.no_forward, no_outbound)
        except OSError as error:
            reason = f"the kernel gives no seccomp listener: {error.strerror}"
            if error.errno != errno.EINVAL:  # it knows all the flags
                break
    return None, Native(wanted.no_forward or reason, wanted.no_outbound or reason)


def traps(machine: Machine, outbound: bool) -> list[Trap]:
    """The system calls that wait for the keeper."""
    found = [Trap(machine.bind), Trap(machine.listen)]
    if outbound:
        # sizeof(struct sockaddr_in) and sockaddr_in6, and what is longer than any sockaddr_un:
        # programs pass sockaddr_storage. Unix sockets are spared.
        found.append(Trap(machine.connect, argument=2, values=(16, 28), above=110))
        makers = (*machine.epoll_creates, machine.io_uring_setup)
        found += [Trap(number) for number in makers]
    return found


def spare_sockets() -> list[socket.socket]:
    """Sockets of this network namespace: two of TCP for each address family that there is, and one
    of MPTCP, all unbound; and one that is asked for what listens."""
    made = []
    try:
        made.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG))
    except OSError:
        pass  # /proc has the answer, too
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            made += [socket.socket(family), socket.socket(family)]
            made.append(socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP))
        except OSError as error:
            # no such family; a kernel without MPTCP, or where it is switched off
            if error.errno not in NO_SUCH_SOCKET:
                raise
    return made
