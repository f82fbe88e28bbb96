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
ROOMS = ("libc", "preparing", "notify", "relay", "worker", "datagrams", "handover", "watch")
"""The modules that the keeper may run, in the order of their imports."""
NATIVE_ROOMS = ("notify", "handover")
"""Those among them that it needs for the hand-over only."""

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
            raise (_overloaded(why) if why else _keeper_died()) from error

    def send_go(self, helper: Helper | None, services: Sequence[_socket.socket]) -> None:
        """Tell the keeper to go, with descriptors of this process and its namespaces, and with the
        listening sockets in there that are host services."""
        from . import namespaces  # while the keeper starts

        process, has_pidfd = namespaces.open_process(os.getpid())
        descriptors = [process]
        descriptors += [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("user", "net")]
        go = {
            "has_pidfd": has_pidfd,
            "helper": 0,
            "helper_name": helper.name if helper else "",
            "helper_command": helper.command(os.getpid()) if helper else [],
            "helper_ready": helper.ready if helper else 0,
        }
        try:
            numbers = [*descriptors, *(socket.fileno() for socket in services)]
            self.send(marshal.dumps(go), numbers)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

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
        """Return when the way out works and the host port is served. Raises PortwrapError."""
        answer = self.receive()
        if answer != READY:
            raise PortwrapError(answer, hint_for(answer))
        self._reap()

    def _reap(self) -> None:
        """Leave the command no child that it does not know."""
        try:
            os.waitpid(self.child, 0)
        except ChildProcessError:
            pass  # an inherited "ignore SIGCHLD" has the kernel reap for us (wait(2))
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


def _keeper_died() -> PortwrapError:
    return _overloaded("the keeper process ended while the sandbox was set up")


def _overloaded(message: str) -> PortwrapError:
    return PortwrapError(message, hint_for(message))


def start(sandbox: Sandbox, port: HostPort, published: Sequence[tuple[HostPort, int]]) -> Lifeline:
    """Start the keeper and return this process's end of the lifeline. Raises PortwrapError.

    `published` are more ports of the host, each with the port that it leads to inside.
    """
    # Messages with boundaries; end of file when the last descriptor of the other end is closed.
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    settings: dict[str, Any] = {
        "program": sandbox.program,
        "verbose": sandbox.verbose,
        "forward": sandbox.forward,
        "guest_port": sandbox.guest_port,
        "allowed": list(sandbox.allowed),
        "command": os.getpid(),
        "serving": [socket.fileno() for socket in port.serving],
        "published": [
            (socket.fileno(), guest) for other, guest in published for socket in other.serving
        ],
        "guards": [
            socket.fileno()
            for each in (port, *(other for other, _ in published))
            for socket in each.guards
        ],
        "lifeline": theirs.fileno(),
        "their_lifeline": ours.fileno(),
        "ready_limit": READY_LIMIT,
    }
    rooms = [name for name in ROOMS if sandbox.forward != "relay" or name not in NATIVE_ROOMS]
    sources = [(name, source_of(name)) for name in rooms]
    handed = [theirs.fileno(), *settings["serving"], *settings["guards"]]
    handed += [descriptor for descriptor, _ in settings["published"]]
    text, text_end = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
    try:
        child = _spawn(sandbox.program, handed, text_end.fileno())
        text_end.close()
        text.sendall(marshal.dumps(source_of("loader")), _socket.MSG_NOSIGNAL)
        text.sendall(marshal.dumps((settings, sources)), _socket.MSG_NOSIGNAL)
    except OSError as error:
        raise _overloaded(f"starting the keeper: {error.strerror}") from error
    text.close()
    theirs.close()
    return Lifeline(ours, child)


def _spawn(program: str, handed: Sequence[int], text: int) -> int:
    """Start the keeper's interpreter, with these descriptors and no more of the job's input and
    output than its standard error: a reader of it waits for its end. Raises OSError."""
    beginning = LEAN_START.format(program=program, command=os.getpid())
    errors = os.dup(2)
    for descriptor in handed:
        os.set_inheritable(descriptor, True)
    try:
        # Not fork: this process may have much memory, of which the kernel would copy the tables.
        return os.posix_spawn(
            INTERPRETER,
            interpreter_command("-c", beginning),
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
loader["main"](text)"""


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


def interpreter_command(*arguments: str) -> list[str]:
    """Words to start this interpreter with, alone with its standard library.

    -I ignores PYTHONHOME, without which some interpreters do not find that library.
    """
    isolated = ["-s"] if os.environ.get("PYTHONHOME") else ["-I"]
    return [os.path.realpath(INTERPRETER), *isolated, "-S", *arguments]


def _lean_environment() -> dict[str, str]:
    """The environment without what PYTHON… variables may do to the keeper."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "PYTHONHOME" or not name.startswith("PYTHON")
    }
