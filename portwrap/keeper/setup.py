"""The keeper before it serves: it starts the network driver, and agrees on how to forward.

No more code than this needs is loaded before the command begins: it would keep it waiting.
"""

from __future__ import annotations

import os
import select

import _socket

from ..diagnostics.errors import Failure, reason_of
from ..kernel import libc, processes
from ..protocol import (
    MalformedMessage,
    NativePossible,
    NotNative,
    Ready,
    Refused,
    StartDriver,
    decode_request,
    decode_seccomp_listener,
    receive,
    send,
)
from .session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..protocol import Go, SeccompListener
    from .driver import DriverProcess
    from .lifecycle import Lifecycle

OWN_DESCRIPTORS = 32
"""File descriptors that the keeper needs besides those of the connections that it relays."""
REMEMBERED_DESCRIPTORS = 130
"""Those by which it remembers callers and their processes, where something is native."""
LATER_DESCRIPTORS = 8
"""Those of them that it makes when the command has begun, and a few for the first clients."""
FOR_PUBLISHED = 3
"""Those for a published port that is served natively, beyond its own: what keeps its guest port,
what shows whether it is still served, and the server's pidfd."""
NEXT = ("keeper.driver", "kernel.seccomp", "kernel.callers", "keeper.lifecycle", "keeper.main_loop")
"""The modules that every session comes to need, in this order."""


def main(number: int, modules: int | None) -> None:
    """Be the keeper whose end of the lifeline has this number; `modules` is the descriptor of the
    archive that it imports from, if it does."""
    lifeline = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, number)
    try:
        if os.fork():
            os._exit(0)  # so that the command has no child that it does not know
        os.chdir("/")
        with open("/proc/self/comm", "w") as comm:
            comm.write("portwrap-keeper")
        processes.close_all_but({0, 1, 2, number, modules})
        session = prepare(lifeline)
        from .lifecycle import Lifecycle

        lifecycle = Lifecycle(session)
    except (BrokenPipeError, ConnectionResetError):
        lifeline.close()
        return  # the other end is gone: it has reported why
    # ImportError: there was no file descriptor left to open a module
    except (OSError, MalformedMessage, ImportError) as error:
        refuse(lifeline, f"the keeper failed: {reason_of(error)}")
        lifeline.close()
        return
    begin(session, lifecycle, modules)


def refuse(lifeline: _socket.socket, reason: str) -> None:
    """Report to the launching process why there is no session."""
    try:
        send(lifeline, Refused(reason, Failure.KEEPER))
    except OSError:
        pass  # it is gone


def begin(session: Session, lifecycle: Lifecycle, modules: int | None) -> None:
    """Let the command begin, and serve."""
    try:
        if session.driver is not None:
            lifecycle.wait_for_driver(session.driver)
        take_place(session)
        # Clients wait in the host's socket, and the command's calls of listen for our response,
        # until we have loaded what serves them: meanwhile the command begins.
        lifecycle.send(Ready())
        lifecycle.ready = True
        from . import main_loop

        main_loop.load(session)
        if modules is not None:
            os.close(modules)
        libc.trim_memory()  # a MB, where the modules had to be compiled
    except (OSError, ImportError) as error:
        lifecycle.fail(f"the keeper failed: {reason_of(error)}")
    main_loop.main(session, lifecycle)


def prepare(lifeline: _socket.socket) -> Session:
    """Start the network driver, wait for "go" and agree on how to forward. Raises OSError and
    MalformedMessage, and ImportError where no file descriptor is left to open a module."""
    limit = raise_descriptor_limit()
    driver: DriverProcess | None = None
    go = next_request(lifeline)
    while isinstance(go, StartDriver):
        driver = start_driver(go)
        go = next_request(lifeline)
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


def start_driver(driver: StartDriver) -> DriverProcess:
    """Raises OSError and ImportError."""
    from .driver import DriverProcess

    return DriverProcess(driver)


def load_meanwhile(lifeline: _socket.socket) -> None:
    """Import what comes next, until a message has arrived. Raises ImportError."""
    poll = select.poll()
    poll.register(lifeline.fileno(), select.POLLIN)
    for name in NEXT:
        if poll.poll(0):
            return
        __import__(f"portwrap.{name}")


def take_place(session: Session) -> None:
    """Be where we have to be: in the sandbox if all that we do is to relay into it, else outside.
    Raises OSError.

    Not earlier: from in there no network driver could be started, should it need a second try.
    """
    if session.seccomp is None and not session.go.descriptors.services:
        processes.enter(session.namespaces)
        session.inside = True


def agree_on_native(session: Session) -> SeccompListener | None:
    """Report whether we can take descriptors from the command, as all that is native must; return
    its seccomp listener if it has one. Raises OSError and MalformedMessage."""
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
    from ..kernel import seccomp

    if seccomp.this_machine() is None:
        return seccomp.UNKNOWN_MACHINE
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


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one, and return it. Never unlimited: fs.nr_open is the
    most."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft  # the hard one is more than fs.nr_open allows by now
    return hard
