"""The lifeline: the keeper, the one helper process that stays, as the launching process sees it.

The keeper starts while the launching process goes on (`keeper_process.py`). It is a grandchild of
the process that becomes the command, which so gets no child that it does not know.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket

from ..diagnostics.errors import Failure, PortwrapError
from ..kernel.waiting import Countdown
from ..protocol import (
    MalformedMessage,
    Message,
    NativePossible,
    NotNative,
    Ready,
    Refused,
    decode_answer,
    receive,
    send,
)
from . import keeper_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    import _socket

    from ..protocol import Answer

DRIVER_TIMEOUT = 10.0
"""Seconds that a network driver may take until it reports that it is ready."""
ANSWER_TIMEOUT = DRIVER_TIMEOUT + 10.0
"""Seconds to wait for the keeper's answer; it has timeouts of its own and answers well before."""


class Lifeline:
    """The command's end of the socket pair that it shares with its keeper."""

    def __init__(self, socket: _socket.socket, child: int) -> None:
        self.socket = socket
        self.child = child  # which has forked the keeper, and ends

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message, with file descriptors. Raises PortwrapError."""
        try:
            send(self.socket, message, descriptors)
        except OSError as error:
            answer = self._take(socket.MSG_DONTWAIT)
            if isinstance(answer, Refused):
                raise _refusal(answer) from error
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                raise _keeper_died() from error
            raise _keeper_failed(f"sending to the keeper: {error.strerror}") from error

    def receive_whether_native(self) -> NativePossible | NotNative:
        """The keeper's answer to Go, where something is to be native. Raises PortwrapError."""
        answer = self.receive()
        if not isinstance(answer, (NativePossible, NotNative)):
            raise _refusal(answer)
        return answer

    def receive(self) -> Answer:
        """The keeper's next answer. Raises PortwrapError."""
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        if not Countdown(ANSWER_TIMEOUT).poll(poll):
            raise _keeper_failed(f"the keeper did not answer in {ANSWER_TIMEOUT:g} s")
        answer = self._take()
        if answer is None:
            raise _keeper_died()
        return answer

    def _take(self, flags: int = 0) -> Answer | None:
        """What the keeper has answered; None if it is gone without a word."""
        for _ in range(2):  # an error of the socket is reported first, and only once
            try:
                data, _ = receive(self.socket, flags)
                return decode_answer(data) if data else None
            except MalformedMessage as error:
                return Refused(f"the keeper sent {error}", Failure.KEEPER)
            except OSError:
                continue
        return None

    def wait_until_ready(self) -> None:
        """Return when outbound works, and the keeper goes on to serve. Raises PortwrapError."""
        answer = self.receive()
        if not isinstance(answer, Ready):
            raise _refusal(answer)
        self.reap()

    def reap(self) -> None:
        """Leave the command no child that it does not know."""
        _wait_for(self.child)
        # Set anew, it discards the signal of that child, which waits where the caller has it
        # blocked.
        signal.signal(signal.SIGCHLD, signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL)

    def check_alive(self) -> None:
        """Raise PortwrapError if the keeper has ended."""
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            pass
        raise _keeper_died()


def _wait_for(child: int) -> None:
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass  # an inherited "ignore SIGCHLD" has the kernel reap for us (wait(2))


def _refusal(answer: Answer) -> PortwrapError:
    """The error of an answer that ends the start."""
    if isinstance(answer, Refused):
        return PortwrapError(answer.reason, answer.failure)
    return _keeper_failed(f"the keeper sent an unexpected {type(answer).__name__}")


def _keeper_died() -> PortwrapError:
    return _keeper_failed("the keeper process ended while the sandbox was set up")


def _keeper_failed(message: str) -> PortwrapError:
    return PortwrapError(message, Failure.KEEPER)


def start(program: str) -> Lifeline:
    """Start the keeper, unless it has begun; return this process's end of the lifeline. Raises
    PortwrapError."""
    try:
        return Lifeline(*(keeper_process.take() or keeper_process.start(program)))
    except OSError as error:
        raise _keeper_failed(f"starting the keeper: {error.strerror}") from error


def abandon() -> None:
    """End a keeper that has begun, before this process becomes another program; leave no child."""
    begun = keeper_process.take()
    if begun is not None:
        lifeline = Lifeline(*begun)
        lifeline.socket.close()
        lifeline.reap()
