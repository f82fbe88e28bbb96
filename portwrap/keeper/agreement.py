"""The keeper's agreement with the launching process: the network driver, and what is native."""

from __future__ import annotations

import os
import select

from ..kernel import processes
from ..protocol import (
    NativePossible,
    NotNative,
    StartDriver,
    decode_request,
    decode_seccomp_listener,
    receive,
    send,
)
from .driver import DriverProcess
from .session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from ..protocol import Go, SeccompListener
    from .driver import WaitingChild

OWN_DESCRIPTORS = 32
"""File descriptors that the keeper needs besides those of the connections that it relays."""
REMEMBERED_DESCRIPTORS = 131
"""Those by which it remembers callers and their processes, where something is native."""
LATER_DESCRIPTORS = 8
"""Those of them that it makes when the command has begun, and a few for the first clients."""
FOR_PUBLISHED = 3
"""Those for a published port that is served natively, beyond its own: what keeps its guest port,
what shows whether it is still served, and the server's pidfd."""
NEXT = ("kernel.machines", "kernel.callers", "keeper.lifecycle", "keeper.main_loop")
"""The modules that every session comes to need, in this order."""


def prepare(lifeline: _socket.socket, child: WaitingChild) -> Session:
    """Start the network driver, wait for "go" and agree on how to forward. Raises OSError, and
    ImportError where no file descriptor is left to open a module."""
    limit = processes.raise_descriptor_limit()
    driver: DriverProcess | None = None
    go = next_request(lifeline)
    while isinstance(go, StartDriver):
        driver = DriverProcess(go, child)
        go = next_request(lifeline)
    if driver is None:
        child.dismiss()
    held = sum(go.counts) + OWN_DESCRIPTORS + FOR_PUBLISHED * len(go.published_to)
    if go.native_forward or go.native_outbound:
        held += REMEMBERED_DESCRIPTORS
    session = Session(go, lifeline, max(1, (limit - held) // 2))  # two descriptors each
    session.driver = driver
    if go.native_forward or go.native_outbound:
        session.seccomp = agree_on_native(session)
    # Here their want is a refusal; later it would end the command.
    for number in [os.dup(0) for _ in range(LATER_DESCRIPTORS)]:
        os.close(number)
    return session


def next_request(lifeline: _socket.socket) -> StartDriver | Go:
    """What the launching process wants next. Raises what `prepare` does."""
    load_meanwhile(lifeline)
    data, received = receive(lifeline)
    if not data:
        raise ConnectionResetError
    return decode_request(data, received)


def load_meanwhile(lifeline: _socket.socket) -> None:
    """Import what comes next, until a message has arrived. Raises ImportError."""
    poll = select.poll()
    poll.register(lifeline.fileno(), select.POLLIN)
    for name in NEXT:
        if poll.poll(0):
            return
        __import__(f"portwrap.{name}")


def agree_on_native(session: Session) -> SeccompListener | None:
    """Report whether we can take descriptors from the command, as all that is native must; return
    its seccomp listener if it has one. Raises OSError."""
    why = why_not_native(session)
    send(session.lifeline, NotNative(why) if why else NativePossible(why_no_outbound(session)))
    if why:
        return None
    data, received = receive(session.lifeline)
    if not data:
        raise ConnectionResetError
    listener = decode_seccomp_listener(data, received)
    return listener if listener.is_installed else None


def why_not_native(session: Session) -> str:
    """Why nothing can be native here, or nothing."""
    from ..kernel.machines import UNKNOWN_MACHINE, this_machine

    if this_machine() is None:
        return UNKNOWN_MACHINE
    try:
        os.close(processes.take_descriptor(session.go.command, session.go.lifeline))
    except OSError as error:
        return f"pidfd_getfd: {error.strerror}"
    return ""


def why_no_outbound(session: Session) -> str:
    """Why outbound connections cannot be native here, or nothing: the address that a program
    connects to is in its memory."""
    from ..kernel.callers import Memory

    try:
        Memory(1).read(session.go.command, session.go.address, 1)
    except OSError as error:
        return f"reading the command's memory: {error.strerror}"
    return ""
