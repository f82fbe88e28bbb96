"""The keeper: the one helper process that stays, from its fork until it becomes lean.

It starts as a copy of the launching process, makes ready, and execs a lean interpreter that runs
`watch.py`. It is a grandchild of the process that becomes the command, which so gets no child that
it does not know. All that it will run is in memory before the fork: the archive on the site's
share may be replaced at any time.
"""

from __future__ import annotations

import array
import errno
import marshal
import os
import resource
import select
import sys

import _signal as signals  # the C half of `signal`, as with `_socket`: 4 ms of every start
import _socket

from . import namespaces, notify
from .errors import PortwrapError, hint_for
from .network import READY_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from .launching import Sandbox
    from .network import Helper
    from .ports import HostPort

ANSWER_LIMIT = READY_LIMIT + 10.0
"""Seconds to wait for the keeper's word; it has limits of its own and answers well before."""
OWN_DESCRIPTORS = 32
"""Descriptors that the keeper needs besides those of the connections it relays."""
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

READY = "ready"
NATIVE = "native"
NOT_NATIVE = "not native: "
ROOMS = ("relay", "worker", "datagrams", "notify", "handover", "watch")
"""The modules that the lean interpreter may run, in the order of their imports."""
NATIVE_ROOMS = ("notify", "handover")
SERVICE_ROOMS = ("datagrams",)
"""Those among them that it needs for the hand-over, or for host services, only."""
MOST_DESCRIPTORS = 253
"""Descriptors that one message carries at most (SCM_MAX_FD, unix(7))."""

INTERPRETER = "/proc/self/exe"  # sys.executable can be empty, or a shim that starts another one


FORWARDS = ("auto", "native", "relay")


class Lifeline:
    """The command's end of the socket pair that it shares with its keeper."""

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket

    def send(self, word: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message, with descriptors. Raises PortwrapError."""
        rights = array.array("i", descriptors).tobytes()
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
        try:
            self.socket.sendmsg([word], ancillary)
        except OSError as error:
            raise _keeper_died() from error

    def send_go(self, services: Sequence[_socket.socket]) -> None:
        """Tell the keeper to go, with descriptors of this process's namespaces and with the
        listening sockets in there that are host services."""
        descriptors = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("user", "net")]
        try:
            self.send(b"go", [*descriptors, *(socket.fileno() for socket in services)])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def offer_native(self) -> str:
        """Agree with the keeper on the hand-over; return why there is none, or nothing."""
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
        try:
            answer = self.socket.recv(65536)
        except OSError:
            answer = b""
        if not answer:
            raise _keeper_died()
        return answer.decode("utf-8", "replace")

    def wait_until_ready(self) -> None:
        """Return when the way out works and the host port is served. Raises PortwrapError."""
        answer = self.receive()
        if answer != READY:
            raise PortwrapError(answer, hint_for(answer))

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


def start(
    sandbox: Sandbox,
    port: HostPort,
    published: Sequence[tuple[HostPort, int]],
    helper: Helper | None,
) -> Lifeline:
    """Fork the keeper and return this process's end of the lifeline. Raises PortwrapError.

    `published` are more ports of the host, each with the port that it leads to inside.
    """
    command = os.getpid()
    process, has_pidfd = namespaces.open_process(command)
    # Messages with boundaries; end of file when the last descriptor of the other end is closed.
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    settings: dict[str, Any] = {
        "program": sandbox.program,
        "verbose": sandbox.verbose,
        "forward": sandbox.forward,
        "guest_port": sandbox.guest_port,
        "allowed": list(sandbox.allowed),
        "command": command,
        "process": process,
        "has_pidfd": has_pidfd,
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
        "helper": 0,
        "helper_name": helper.name if helper else "",
        "ready_limit": READY_LIMIT,
    }
    sources = {name: source_of(name) for name in ROOMS}
    try:
        middle = os.fork()
        if middle == 0:
            _in_child(lambda: _fork_again(settings, helper, sources, ours, theirs))
    except OSError as error:
        raise _overloaded(f"fork: {error.strerror}") from error
    theirs.close()
    os.close(process)
    try:
        os.waitpid(middle, 0)
    except ChildProcessError:
        pass  # an inherited "ignore SIGCHLD" has the kernel reap for us (wait(2))
    # Set anew, it discards the signal of that child, which waits where the caller has it blocked.
    signals.signal(signals.SIGCHLD, signals.getsignal(signals.SIGCHLD) or signals.SIG_DFL)
    return Lifeline(ours)


def source_of(name: str) -> bytes:
    """The text of a module of this package, from a file or from inside an archive."""
    path = os.path.join(os.path.dirname(__file__), f"{name}.py")
    assert __spec__ is not None and __spec__.loader is not None
    return bytes(__spec__.loader.get_data(path))  # type: ignore[attr-defined]


def _in_child(action: Any) -> NoReturn:
    """Run in a forked child: nothing of the parent's clean-up may run here."""
    try:
        action()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _fork_again(
    settings: dict[str, Any],
    helper: Helper | None,
    sources: dict[str, bytes],
    ours: _socket.socket,
    theirs: _socket.socket,
) -> None:
    if os.fork() != 0:
        return
    ours.close()
    signals.pthread_sigmask(signals.SIG_BLOCK, WAITING_SIGNALS)
    signals.signal(signals.SIGCHLD, signals.SIG_DFL)
    try:
        _keep(settings, helper, sources, theirs)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the other end is gone: it has said why
    except OSError as error:
        try:
            theirs.send(f"the keeper failed: {error}".encode("utf-8", "replace"))
        except OSError:
            pass


def _keep(
    settings: dict[str, Any],
    helper: Helper | None,
    sources: dict[str, bytes],
    lifeline: _socket.socket,
) -> None:
    """Wait for "go", start the network helper and become the lean interpreter, where it has to be:
    inside the sandbox if all it does is to relay into it, else outside."""
    os.chdir("/")
    leave_standard_streams()
    received = _receive(lifeline)
    if not received:
        return  # the other end is gone: it has said why
    namespaces_of_command, settings["services"] = received[:2], received[2:]
    questions = _agree(settings, lifeline) if settings["forward"] != "relay" else []
    if helper is not None:
        settings.update(_start_helper(helper, settings["command"]))
    if questions:
        settings["questions"] = questions[0]
    if questions or settings["services"]:
        settings["namespaces"] = namespaces_of_command
    else:
        _enter(namespaces_of_command)
    left_out = (() if questions else NATIVE_ROOMS) + (() if settings["services"] else SERVICE_ROOMS)
    rooms = [name for name in ROOMS if name not in left_out]
    codes = [(name, compile_lean(sources[name], name)) for name in rooms]
    settings["most_connections"] = _raise_descriptor_limit(settings)
    _become_lean(codes, settings)


def compile_lean(source: bytes, name: str) -> Any:
    """The code of a module, without the texts that only people read."""
    return compile(source, f"portwrap/{name}.py", "exec", dont_inherit=True, optimize=2)


def _agree(settings: dict[str, Any], lifeline: _socket.socket) -> list[int]:
    """Say whether we can take descriptors from the command, as the hand-over must; receive the
    descriptor of its questions if it has one."""
    word = NATIVE
    if notify.this_machine() is None:
        word = NOT_NATIVE + "the hand-over knows no system call numbers of this architecture"
    else:
        try:
            os.close(notify.take_descriptor(settings["command"], settings["their_lifeline"]))
        except OSError as error:
            word = f"{NOT_NATIVE}pidfd_getfd: {error.strerror}"
    lifeline.send(word.encode())
    return _receive(lifeline) if word == NATIVE else []


def _enter(descriptors: Sequence[int]) -> None:
    """Follow the command into its user and its network namespace."""
    for descriptor in descriptors:
        namespaces.setns(descriptor, 0)
        os.close(descriptor)


def leave_standard_streams() -> None:
    """Keep nothing of the job's input and output open: a reader of it waits for its end."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    # Ours alone if the caller had it closed: then too, no connection must get this number.
    os.set_inheritable(2, True)


def _receive(lifeline: _socket.socket) -> list[int]:
    """The descriptors of the next message; none if the command is gone. Raises OSError."""
    room = _socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
    _, ancillary, flags, _ = lifeline.recvmsg(16, room)
    if (
        flags & _socket.MSG_CTRUNC
    ):  # the kernel drops, silently, those that the limit leaves no room
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    descriptors = array.array("i")
    for _, _, rights in ancillary:
        descriptors.frombytes(rights)
    return list(descriptors)


def _start_helper(helper: Helper, command: int) -> dict[str, int]:
    """Start the network helper on the command's namespaces, from the host's side of them."""
    ready, ready_end = os.pipe()
    words, words_end = os.pipe()
    ready_number = 1 if helper.ready_on_stdout else ready_end
    words_of_command = helper.command(command, ready_number)
    keeper = os.getpid()
    process = os.fork()
    if process == 0:
        _in_child(
            lambda: _exec_helper(words_of_command, keeper, (ready_end, ready_number), words_end)
        )
    os.close(ready_end)  # else a helper that has ended looks like a slow one
    os.close(words_end)
    settings = {"helper": process, "ready": ready, "helper_words": words}
    pidfd, has_pidfd = namespaces.open_process(process)
    if has_pidfd:
        settings["helper_process"] = pidfd
    else:
        os.close(pidfd)
    return settings


def _exec_helper(command: list[str], keeper: int, ready: tuple[int, int], words_end: int) -> None:
    """Become the network helper, which dies with the keeper (PR_SET_PDEATHSIG, prctl(2))."""
    namespaces.prctl(namespaces.PR_SET_PDEATHSIG, signals.SIGKILL)
    if os.getppid() != keeper:
        return  # the keeper died before the kernel had been told
    signals.signal(signals.SIGPIPE, signals.SIG_DFL)  # pasta gives up where Python's "ignore" stays
    try:
        close_all_but([ready[0]] if ready[0] == ready[1] else [])
        if ready[0] != ready[1]:
            os.dup2(*ready)
        os.dup2(words_end, 2)
        os.execv(command[0], command)
    except OSError as error:
        os.write(words_end, f"{command[0]}: {error.strerror}\n".encode())


def _raise_descriptor_limit(settings: dict[str, Any]) -> int:
    """Raise the soft limit to the hard one; return how many connections fit, at two each."""
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        most = hard
    except (OSError, ValueError):
        pass  # the hard one is more than fs.nr_open allows by now
    held = sum(len(settings[key]) for key in ("published", "guards", "services"))
    return max(1, (most - held - OWN_DESCRIPTORS) // 2)  # never unlimited: fs.nr_open is the most


def _become_lean(codes: list[tuple[str, Any]], settings: dict[str, Any]) -> None:
    """Replace this copy of the launching interpreter, and all its memory, by a small one."""
    memory = namespaces.memory_file("portwrap-keeper")  # a pipe may be too small for all of it
    with open(memory, "wb", closefd=False) as file:
        marshal.dump((codes, settings), file)
    os.lseek(memory, 0, os.SEEK_SET)
    passed = [settings["process"], settings["lifeline"]]
    passed += [*settings["serving"], *settings["guards"], *settings["services"], memory]
    passed += [descriptor for descriptor, _ in settings["published"]]
    passed += settings.get("namespaces", [])
    others = ("ready", "helper_words", "helper_process", "questions")
    passed += [settings[key] for key in others if key in settings]
    close_all_but(passed)
    text = LEAN_START.format(
        program=settings["program"], command=settings["command"], memory=memory
    )
    os.execve(INTERPRETER, interpreter_command("-c", text), _lean_environment())


LEAN_START = """# {program}: keeper of process {command}
import marshal, sys
with open({memory}, "rb") as file: codes, settings = marshal.load(file)
sys.modules["portwrap"] = package = type(sys)("portwrap")
for name, code in codes:
    sys.modules["portwrap." + name] = module = type(sys)(name)
    setattr(package, name, module)
    module.__package__ = "portwrap"
    exec(code, module.__dict__)
del codes, code
module.main(settings)"""


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
