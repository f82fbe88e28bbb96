"""The keeper, the one helper process that stays, as the launching process sees it.

It is a lean interpreter from its beginning (`loader.py`), and starts while the launching process
goes on. It is a grandchild of the process that becomes the command, which so gets no child that it
does not know. All that it will run is handed over as text at its start: the archive on the site's
share may be replaced at any time.
"""

from __future__ import annotations

import array
import errno
import marshal
import os
import select

import _signal as signals  # the C half of `signal`, as with `_socket`: 4 ms of every start
import _socket

from .errors import PortwrapError, hint_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .launching import Sandbox
    from .network import Helper
    from .ports import HostPort

READY_LIMIT = 10.0
"""Seconds that a network helper may take until it says that it is ready."""
ANSWER_LIMIT = READY_LIMIT + 10.0
"""Seconds to wait for the keeper's word; it has limits of its own and answers well before."""
WAITING_SIGNALS = frozenset(signals.valid_signals()) - {
    signals.SIGCHLD,
    signals.SIGSEGV,
    signals.SIGBUS,
    signals.SIGFPE,
    signals.SIGILL,
    signals.SIGABRT,
    signals.SIGSYS,
    signals.SIGTRAP,
}
"""Signals that a batch system may send to every process of a job. Only the command is to act on
them; the keeper and the network helper stay until it is gone. A blocked signal stays blocked
across exec and also holds back handlers that a program installs (pasta does)."""

READY, NATIVE, NOT_NATIVE = "ready", "native", "not native: "
"""Answers of the keeper, the last one with its reason behind it; any other is a failure."""
ROOMS = ("libc", "preparing", "notify", "ends", "relay", "worker", "watch", "handover", "datagrams")
"""The modules that the keeper may run, in the order in which it comes to need them."""
PART = 32768
"""Bytes of a message of ours at most: it must find room in a socket's buffer."""
MOST_DESCRIPTORS = 253
"""Descriptors that one message carries at most (SCM_MAX_FD, unix(7))."""

INTERPRETER = "/proc/self/exe"  # sys.executable can be empty, or a shim that starts another one


FORWARDS = ("auto", "native", "relay")
WAYS_OUT = ("auto", "slirp4netns", "pasta", "none")


class Lifeline:
    """The command's end of the socket pair that it shares with its keeper."""

    def __init__(self, socket: _socket.socket, child: int) -> None:
        self.socket = socket
        self.child = child  # which has forked the keeper, and ends

    def send(self, word: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message, with descriptors. Raises PortwrapError."""
        rights = array.array("i", descriptors).tobytes()
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
        try:
            self.socket.sendmsg([word], ancillary)
        except OSError as error:
            why = self._take(_socket.MSG_DONTWAIT)
            if not why and error.errno not in (errno.EPIPE, errno.ECONNRESET):
                why = f"telling the keeper: {error.strerror}"
            raise (_overloaded(why) if why else _keeper_died()) from error

    def send_go(
        self,
        sandbox: Sandbox,
        port: HostPort,
        published: Sequence[tuple[HostPort, int]],
        helper: Helper | None,
        services: Sequence[_socket.socket],
    ) -> None:
        """Tell the keeper to go: what to do, with which sockets of the host and of the sandbox, and
        where this process is. Raises PortwrapError.

        `published` are more ports of the host, each with the port that it leads to inside;
        `services` listen in there for host services.
        """
        from . import namespaces  # while the keeper starts

        process, has_pidfd = namespaces.open_process(os.getpid())
        places = [process]
        places += [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("user", "net")]
        doors = [(socket, guest) for other, guest in published for socket in other.listeners]
        reserved = [socket for each in (port, *dict(published)) for socket in each.reserved]
        go: dict[str, Any] = {
            "program": sandbox.program,
            "verbose": sandbox.verbose,
            "forward": sandbox.forward,
            "guest_port": sandbox.guest_port,
            "published_to": [guest for _, guest in doors],
            "allowed": list(sandbox.allowed),
            "command": os.getpid(),
            "has_pidfd": has_pidfd,
            "their_lifeline": self.socket.fileno(),
            "helper": 0,
            "helper_name": helper.name if helper else "",
            "helper_command": helper.command(os.getpid()) if helper else [],
            "helper_ready": helper.ready if helper else 0,
            "ready_limit": READY_LIMIT,
            "listeners": len(port.listeners),
            "reserved": len(reserved),
            "services": len(services),
        }
        sockets = [*port.listeners, *(socket for socket, _ in doors), *reserved, *services]
        try:
            self.send_long(marshal.dumps(go), [*places, *(socket.fileno() for socket in sockets)])
        finally:
            for descriptor in places:
                os.close(descriptor)

    def send_long(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Send what may be too much for one message, in parts that say whether another one comes.
        Raises PortwrapError."""
        more = True
        while more:
            part, data = data[:PART], data[PART:]
            given, descriptors = descriptors[:MOST_DESCRIPTORS], descriptors[MOST_DESCRIPTORS:]
            more = bool(data or descriptors)
            self.send((b"+" if more else b".") + part, given)

    def offer_native(self) -> str:
        """Agree with the keeper on the hand-over; return why there is none, or nothing."""
        from . import notify  # while the network helper starts

        answer = self.receive()
        if answer.startswith(NOT_NATIVE):
            return answer[len(NOT_NATIVE) :]
        machine = notify.this_machine()
        if answer != NATIVE or machine is None:
            raise PortwrapError(answer, hint_for(answer))
        try:
            questions = notify.install_filter(machine)
        except OSError as error:
            self.send(b"relay")
            return f"the kernel gives no seccomp listener: {error.strerror}"
        self.send(b"native", [questions])
        os.close(questions)
        return ""

    def receive(self) -> str:
        """The keeper's next message. Raises PortwrapError."""
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        if not poll.poll(1000 * ANSWER_LIMIT):
            raise _overloaded(f"the keeper did not answer in {ANSWER_LIMIT:g} s")
        answer = self._take()
        if not answer:
            raise _keeper_died()
        return answer

    def _take(self, flags: int = 0) -> str:
        """What the keeper has said; "" if it is gone without a word."""
        for _ in range(2):  # an error of the socket is told first, and only once
            try:
                return self.socket.recv(65536, flags).decode("utf-8", "replace")
            except OSError:
                continue
        return ""

    def wait_until_ready(self) -> None:
        """Return when the way out works, and the keeper goes on to serve. Raises PortwrapError."""
        answer = self.receive()
        if answer != READY:
            raise PortwrapError(answer, hint_for(answer))
        self.reap()

    def reap(self) -> None:
        """Leave the command no child that it does not know."""
        _wait_for(self.child)
        # Set anew, it discards the signal of that child, which waits where the caller has it
        # blocked.
        signals.signal(signals.SIGCHLD, signals.getsignal(signals.SIGCHLD) or signals.SIG_DFL)

    def check_alive(self) -> None:
        """Raise PortwrapError if the keeper has ended."""
        try:
            self.socket.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
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


def _keeper_died() -> PortwrapError:
    return _overloaded("the keeper process ended while the sandbox was set up")


def _overloaded(message: str) -> PortwrapError:
    return PortwrapError(message, hint_for(message))


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


def is_threaded() -> bool:
    """Whether this process runs more than one thread: unshare(CLONE_NEWUSER) is EINVAL then."""
    return len(os.listdir("/proc/self/task")) > 1


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
    sockets: list[_socket.socket] = []
    child = 0
    try:
        _reserve_standard_descriptors()
        # Messages with boundaries; end of file when the last descriptor of the other end is closed.
        sockets += _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
        sockets += _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
        ours, theirs, text, text_end = sockets
        child = _spawn(program, theirs.fileno(), text_end.fileno())
        theirs.close()
        text_end.close()
        text.sendall(marshal.dumps(source_of("loader")), _socket.MSG_NOSIGNAL)
        rooms = [(name, source_of(name)) for name in ROOMS]
        text.sendall(marshal.dumps(rooms), _socket.MSG_NOSIGNAL)
        text.close()
    except OSError as error:
        for socket in sockets:
            socket.close()
        if child:
            _wait_for(child)
        raise _overloaded(f"starting the keeper: {error.strerror}") from error
    return Lifeline(ours, child)


def _reserve_standard_descriptors() -> None:
    """Fill closed places among 0-2 until exec, so that no socket of ours lands there."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return


def _spawn(program: str, lifeline: int, text: int) -> int:
    """Start the keeper's interpreter, with its end of the lifeline and no more of the job's input
    and output than its standard error: a reader of it waits for its end. Raises OSError."""
    beginning = LEAN_START.format(program=program, command=os.getpid(), lifeline=lifeline)
    errors = os.dup(2)
    os.set_inheritable(lifeline, True)
    try:
        # Not fork: this process may have much memory, of which the kernel would copy the tables.
        return os.posix_spawn(
            INTERPRETER,
            interpreter_command(beginning),
            _lean_environment(),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, text, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
                # From another number: it may be ours alone, if the caller had it closed.
                (os.POSIX_SPAWN_DUP2, errors, 2),
            ],
            setsigmask=WAITING_SIGNALS,
            setsigdef=[signals.SIGCHLD],
        )
    finally:
        os.close(errors)


LEAN_START = """# {program}: keeper of process {command}
import marshal
text = open(0, "rb", closefd=False)
loader = {{"__name__": "portwrap.loader"}} # in __main__ Python shows all warnings
try: exec(marshal.load(text), loader)
except EOFError: raise SystemExit # the launching process is gone
loader["main"](text, {lifeline})"""


def source_of(name: str) -> bytes:
    """The text of a module of this package, from a file or from inside an archive."""
    path = os.path.join(os.path.dirname(__file__), f"{name}.py")
    assert __spec__ is not None and __spec__.loader is not None
    return bytes(__spec__.loader.get_data(path))  # type: ignore[attr-defined]


def close_all_but(kept: list[int]) -> None:
    """Hand on these descriptors and 0-2 at exec; everything else closes there."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2:
            try:
                os.set_inheritable(descriptor, descriptor in kept)
            except OSError as error:
                if error.errno != errno.EBADF:  # that of the listing itself
                    raise


def interpreter_command(text: str, *arguments: str) -> list[str]:
    """Words to start this interpreter with, for a program's text, alone with its standard library.

    -I ignores PYTHONHOME, without which some interpreters do not find that library; but without
    it they look into the current directory first.
    """
    isolated = "-I"
    if os.environ.get("PYTHONHOME"):
        isolated = "-s"
        text = f"import sys; sys.path[:] = filter(None, sys.path)\nexec({text!r})"
    return [os.path.realpath(INTERPRETER), isolated, "-S", "-c", text, *arguments]


def _lean_environment() -> dict[str, str]:
    """The environment without what PYTHON… variables may do to the keeper."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "PYTHONHOME" or not name.startswith("PYTHON")
    }
