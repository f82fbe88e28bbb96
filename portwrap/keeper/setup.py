"""The keeper before it serves: it makes the process of the network driver, agrees on how to forward
(`agreement.py`), and lets the command begin.

No more code than this needs is loaded before the command begins: it would keep it waiting.
"""

from __future__ import annotations

import os

import _socket

from ..kernel import libc, processes
from .driver import WaitingChild, variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .lifecycle import Lifecycle
    from .session import Session


def main(number: int, modules: int | None) -> None:
    """Be the keeper whose end of the lifeline has this number; `modules` is the descriptor of the
    archive that it imports from, if it does."""
    lifeline = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, number)
    try:
        if os.fork():
            os._exit(0)  # so that the command has no child that it does not know
        os.chdir("/")
        libc.set_name(b"portwrap-keeper")
        child = WaitingChild(variables())
        processes.close_all_but({0, 1, 2, number, modules, *child.descriptors})
        # Imported here, and further below: what makes that child gets no more than that takes.
        from .agreement import prepare

        session = prepare(lifeline, child)
        from .lifecycle import Lifecycle

        lifecycle = Lifecycle(session)
    except (BrokenPipeError, ConnectionResetError):
        lifeline.close()
        return  # the other end is gone: it has reported why
    # ImportError: there was no file descriptor left to open a module
    except (OSError, ImportError) as error:
        refuse(lifeline, error)
        lifeline.close()
        return
    begin(session, lifecycle, modules)


def refuse(lifeline: _socket.socket, error: Exception) -> None:
    """Report to the launching process why there is no session."""
    os.close(0)  # there may be no other file descriptor for a module's file
    from ..diagnostics.errors import Failure, reason_of
    from ..protocol import Refused, send

    try:
        send(lifeline, Refused(f"the keeper failed: {reason_of(error)}", Failure.KEEPER))
    except OSError:
        pass  # it is gone


def begin(session: Session, lifecycle: Lifecycle, modules: int | None) -> None:
    """Let the command begin, and serve."""
    from ..diagnostics.errors import reason_of
    from ..protocol import Ready

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


def take_place(session: Session) -> None:
    """Be where we have to be: in the sandbox if all that we do is to relay into it, else outside.
    Raises OSError.

    Not earlier: from in there no network driver could be started, should it need a second try.
    """
    if session.seccomp is None and not session.go.descriptors.services:
        processes.enter(session.namespaces)
        session.inside = True
