"""The lifeline: the keeper, the one helper process that stays, as the launching process sees it.

The keeper is a fresh interpreter, and starts while the launching process goes on. It is a
grandchild of the process that becomes the command, which so gets no child that it does not know. It
imports its modules from the installed package, or from a copy of the archive in memory: the file on
the site's share may be replaced at any time.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket

from ..diagnostics.errors import Failure, PortwrapError
from ..kernel.processes import is_threaded
from ..kernel.waiting import Countdown
from ..protocol import (
    Go,
    MalformedMessage,
    Message,
    NativePossible,
    NotNative,
    Ready,
    Refused,
    decode_answer,
    receive,
    refusing_program,
    send,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..protocol import Answer

DRIVER_TIMEOUT = 10.0
"""Seconds that a network driver may take until it reports that it is ready."""
ANSWER_TIMEOUT = DRIVER_TIMEOUT + 10.0
"""Seconds to wait for the keeper's answer; it has timeouts of its own and answers well before."""
WAITING_SIGNALS = frozenset(signal.valid_signals()) - {
    signal.SIGCHLD,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""Signals that a batch system may send to every process of a job. Only the command is to act on
them; the keeper and the network driver stay until it is gone. A blocked signal stays blocked
across exec and also holds back handlers that a program installs (pasta does)."""

PRELOADING = ("LD_PRELOAD", "LD_AUDIT")
"""Variables that load libraries into every program (ld.so(8))."""
INTERPRETER = "/proc/self/exe"  # sys.executable can be empty, or a shim that starts another one


class Lifeline:
    """The command's end of the socket pair that it shares with its keeper."""

    def __init__(self, socket: socket.socket, child: int) -> None:
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
            raise _keeper_failed(f"telling the keeper: {error.strerror}") from error

    def send_go(self, go: Go) -> None:
        """Have the keeper begin. Raises PortwrapError."""
        self.send(go, go.descriptors.in_order())

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
        for _ in range(2):  # an error of the socket is told first, and only once
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


_begun: list[Lifeline] = []
"""The keeper that `begin` has started, until it is taken."""


def begin(program: str) -> None:
    """Start the keeper's interpreter while this process still loads its own code.

    For who goes on to `start`, or to `abandon` before it becomes another program. Not beside other
    threads, which may fork meanwhile and keep what the keeper waits for the end of.
    """
    try:
        if not is_threaded():
            _begun.append(_start(program))
    except (PortwrapError, OSError):
        pass  # the next try tells


def start(program: str) -> Lifeline:
    """Start the keeper, unless it has begun; return this process's end of the lifeline. Raises
    PortwrapError."""
    return _begun.pop() if _begun else _start(program)


def abandon() -> None:
    """End a keeper that has begun, and leave no child."""
    while _begun:
        lifeline = _begun.pop()
        lifeline.socket.close()
        lifeline.reap()


def _start(program: str) -> Lifeline:
    sockets: list[socket.socket] = []
    modules: int | None = None
    try:
        _reserve_standard_descriptors()
        # Messages with boundaries; end of file when the last descriptor of the other end is closed.
        sockets += socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs = sockets
        place, modules = open_modules()
        child = _spawn(program, theirs.fileno(), place, modules)
    except OSError as error:
        for each in sockets:
            each.close()
        raise _keeper_failed(f"starting the keeper: {error.strerror}") from error
    finally:
        if modules is not None:
            os.close(modules)
    theirs.close()
    return Lifeline(ours, child)


def _reserve_standard_descriptors() -> None:
    """Fill closed places among 0-2 until exec, so that no socket of ours lands there."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return


def modules_path() -> str:
    """The entry of sys.path that this package comes from: a directory, or one in an archive."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def open_modules() -> tuple[str, int | None]:
    """Where the keeper imports from, and the file descriptor that this needs: one of the archive's
    content, whatever becomes of the file. Raises OSError."""
    place = modules_path()
    if os.path.isdir(place):
        return place, None
    archive = place
    while archive != "/" and not os.path.isfile(archive):
        archive = os.path.dirname(archive)
    descriptor = _copy_in_memory(os.open(archive, os.O_RDONLY | os.O_CLOEXEC))
    return f"/proc/self/fd/{descriptor}{place[len(archive) :]}", descriptor


def _copy_in_memory(file: int) -> int:
    """A file descriptor of what this one reads now, in its place: that of the file itself would
    read what `cp` writes over it. The same one where the kernel or the C library has no memfd."""
    try:
        copy = os.memfd_create("portwrap-modules")
    except (AttributeError, OSError):
        return file
    try:
        while os.sendfile(copy, file, None, os.fstat(file).st_size):
            pass
    except OSError:
        os.close(copy)
        raise
    finally:
        os.close(file)
    return copy


def _spawn(program: str, lifeline: int, place: str, modules: int | None) -> int:
    """Start the keeper's interpreter, with its end of the lifeline and no more of the job's input
    and output than its standard error: a reader of it waits for its end. Raises OSError."""
    text = KEEPER.format(
        title=f"{program}: keeper of process {os.getpid()}",
        place=place,
        first="" if modules is None else COMPILE_ONCE,
        refuse=refusing_program(lifeline, "the keeper cannot be loaded", Failure.INCOMPLETE),
        lifeline=lifeline,
        modules=modules,
    )
    errors = os.dup(2)
    os.set_inheritable(lifeline, True)
    if modules is not None:
        os.set_inheritable(modules, True)
    try:
        # Not fork: this process may have much memory, of which the kernel would copy the tables.
        return os.posix_spawn(
            INTERPRETER,
            interpreter_command(text),
            _lean_environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
                # From another number: it may be ours alone, if the caller had it closed.
                (os.POSIX_SPAWN_DUP2, errors, 2),
            ],
            setsigmask=WAITING_SIGNALS,
            setsigdef=[signal.SIGCHLD],
        )
    finally:
        os.close(errors)


KEEPER = """{title!r}; import sys; sys.path[:0] = [{place!r}]
try:
 {first}from portwrap.keeper.setup import main
except Exception as error:
 {refuse}; raise SystemExit
main({lifeline}, {modules})"""
"""The keeper's program; its first line is for ps(1). Whatever an import raises, the system is the
cause: where it cannot look at a file, Python even takes a folder for an empty module."""
COMPILE_ONCE = "from portwrap.archive import compile_once; compile_once(); "
"""What it does first where it imports from an archive."""


def interpreter_command(text: str, *arguments: str) -> list[str]:
    """The argv that starts this interpreter with a program's text, alone with its standard library.

    -I ignores PYTHONHOME, without which some interpreters do not find that library; but without
    it they look into the current directory first.
    """
    isolated = "-I"
    if os.environ.get("PYTHONHOME"):
        isolated = "-s"
        text = f"import sys; sys.path[:] = filter(None, sys.path); exec({text!r})"
    return [os.path.realpath(INTERPRETER), isolated, "-S", "-B", "-c", text, *arguments]


def _lean_environment() -> dict[str, str]:
    """The environment without what PYTHON… variables and libraries of others may do to the keeper:
    some of these start threads, and no process with threads can enter a user namespace."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "PYTHONHOME" or not name.startswith(("PYTHON", *PRELOADING))
    }
