"""The keeper before it serves: it starts the network helper, and agrees on the way in.

Part of the keeper's lean interpreter (see `watch.py`, which comes next). No more code than this
needs is loaded before the command begins: it would keep it waiting.
"""

from __future__ import annotations

import errno
import marshal
import posix
import resource

import _signal as signals
import _socket

from . import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

    from .loader import Rooms

READY, NATIVE, NOT_NATIVE = "ready", "native", "not native: "
NATIVE_ROOMS = ("notify", "handover")
"""What is needed for the hand-over only."""
MOST_DESCRIPTORS = 253
"""Descriptors that one message carries at most (SCM_MAX_FD, unix(7))."""
OWN_DESCRIPTORS = 32
"""Descriptors that the keeper needs besides those of the connections it relays."""
LATER_DESCRIPTORS = 8
"""Those of them that it makes when the command has begun, and a few for the first clients."""


def main(number: int, rooms: Rooms) -> None:
    """Prepare all, or tell the launching process why not; then serve. The lifeline has this
    number."""
    posix.chdir("/")
    # Before the namespaces: who enters one is not dumpable and may not write there (proc(5)).
    with open("/proc/self/comm", "w") as comm:
        comm.write("portwrap-keeper")
    lifeline = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, number)
    try:
        settings = prepare(rooms, lifeline)
        rooms.load("ends")
    except (BrokenPipeError, ConnectionResetError):
        return  # the other end is gone: it has said why
    except (OSError, EOFError, ImportError) as error:
        try:
            lifeline.send(f"the keeper failed: {error}".encode("utf-8", "replace"))
        except OSError:
            pass
        return

    from .ends import Ends

    ends = Ends(settings, lifeline)
    try:
        if ends.helper:
            ends.wait_for_helper(settings["ready"], settings["ready_limit"])
        # Clients wait in the host's socket, and the command's calls of listen for our answer, until
        # we have loaded what serves them: meanwhile the command begins.
        ends.tell(READY)
        ends.ready = True
        load_the_rest(rooms, settings)
    except (OSError, EOFError, ImportError) as error:
        ends.fail(f"the keeper failed: {error}")

    from . import watch

    watch.main(settings, ends)


def prepare(rooms: Rooms, lifeline: _socket.socket) -> dict[str, Any]:
    """Wait for "go", start the network helper, and be where we have to be: inside the sandbox if
    all that we do is to relay into it, else outside. Raises OSError and EOFError, and ImportError
    where no descriptor is left for a file of the standard library."""
    close_all_but({0, 1, 2, lifeline.fileno(), rooms.file.fileno()})
    limit = raise_descriptor_limit()
    settings = receive_go(lifeline)
    listeners = [settings[kind] for kind in ("listeners", "reserved", "published", "services")]
    held = sum(map(len, listeners)) + OWN_DESCRIPTORS
    settings["most_connections"] = max(1, (limit - held) // 2)  # two descriptors each
    if settings["helper_command"]:
        settings.update(start_helper(settings))
    native = settings["forward"] != "relay" and agree(settings, rooms, lifeline)
    if not native:
        rooms.unwanted = frozenset(NATIVE_ROOMS)
    if not native and not settings["services"]:
        enter(settings.pop("namespaces"))
    # Here their want is a refusal; later it would end the command.
    for number in [posix.dup(0) for _ in range(LATER_DESCRIPTORS)]:
        posix.close(number)
    return settings


def load_the_rest(rooms: Rooms, settings: dict[str, Any]) -> None:
    """Have what serves this session. Raises EOFError if the process that compiles it is gone."""
    rooms.load("watch")
    if "questions" in settings:
        rooms.load("handover")
    if settings["services"]:
        rooms.load("datagrams")
    rooms.close()


def receive_go(lifeline: _socket.socket) -> dict[str, Any]:
    """What the launching process has made, and wants."""
    data, descriptors = b"", []
    mark = b"+"
    while mark == b"+":
        message, given = receive(lifeline)
        if not message:
            raise ConnectionResetError
        mark, data = message[:1], data + message[1:]
        descriptors += given
    settings: dict[str, Any] = marshal.loads(data)
    process, *namespaces = take(descriptors, 3)
    settings.update(process=process, namespaces=namespaces)
    settings["listeners"] = take(descriptors, settings["listeners"])
    guests = settings["published_to"]
    settings["published"] = list(zip(take(descriptors, len(guests)), guests))
    settings["reserved"] = take(descriptors, settings["reserved"])
    settings["services"] = take(descriptors, settings["services"])
    return settings


def take(descriptors: list[int], count: int) -> list[int]:
    """The first ones, which are no longer in the list then."""
    taken, descriptors[:count] = descriptors[:count], []
    return taken


def receive(lifeline: _socket.socket) -> tuple[bytes, list[int]]:
    """The next message and the descriptors that came with it; nothing if the command is gone.

    Raises OSError.
    """
    room = _socket.CMSG_SPACE(4 * MOST_DESCRIPTORS)
    message, ancillary, flags, _ = lifeline.recvmsg(65536, room)
    if flags & _socket.MSG_CTRUNC:  # those that the limit leaves no room for are lost
        raise OSError(errno.EMFILE, posix.strerror(errno.EMFILE))
    descriptors: list[int] = []
    for _, _, rights in ancillary:
        descriptors += memoryview(rights).cast("i")
    return message, descriptors


def agree(settings: dict[str, Any], rooms: Rooms, lifeline: _socket.socket) -> bool:
    """Say whether we can take descriptors from the command, as the hand-over must; receive the
    descriptor of its questions if it has one."""
    rooms.load("notify")
    from . import notify

    word = NATIVE
    if notify.this_machine() is None:
        word = NOT_NATIVE + "the hand-over knows no system call numbers of this architecture"
    else:
        try:
            posix.close(notify.take_descriptor(settings["command"], settings["their_lifeline"]))
        except OSError as error:
            word = f"{NOT_NATIVE}pidfd_getfd: {error.strerror}"
    lifeline.send(word.encode())
    if word != NATIVE:
        return False
    _, questions = receive(lifeline)
    if questions:
        settings["questions"] = questions[0]
    return bool(questions)


def start_helper(settings: dict[str, Any]) -> dict[str, int]:
    """Start the network helper on the command's namespaces, from the host's side of them."""
    ready, ready_end = posix.pipe()
    words, words_end = posix.pipe()
    keeper = posix.getpid()
    process = posix.fork()
    if process == 0:
        become_helper(settings, keeper, ready_end, words_end)
    posix.close(ready_end)  # else a helper that has ended looks like a slow one
    posix.close(words_end)
    started = {"helper": process, "ready": ready, "helper_words": words}
    if settings["has_pidfd"]:
        started["helper_process"] = libc.pidfd_open(process)
    return started


def become_helper(settings: dict[str, Any], keeper: int, ready: int, words: int) -> NoReturn:
    """Become the network helper, which dies with the keeper (PR_SET_PDEATHSIG, prctl(2))."""
    command, number = settings["helper_command"], settings["helper_ready"]
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signals.SIGKILL)
        if posix.getppid() != keeper:
            posix._exit(0)  # the keeper died before the kernel had been told
        # pasta gives up where Python's "ignore" stays
        signals.signal(signals.SIGPIPE, signals.SIG_DFL)
        posix.dup2(words, 2)
        posix.dup2(ready, number)
        posix.set_inheritable(number, True)  # dup2 does not where it is that number already
        close_all_but({0, 1, 2, number})
        posix.execv(command[0], command)
    except OSError as error:
        posix.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        posix._exit(0)


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one, and return it. Never unlimited: fs.nr_open is the
    most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft  # the hard one is more than fs.nr_open allows by now
    return hard


def close_all_but(kept: Iterable[int]) -> None:
    """Close every other descriptor that this process has."""
    for descriptor in map(int, posix.listdir("/proc/self/fd")):
        if descriptor not in kept:
            try:
                posix.close(descriptor)
            except OSError:
                pass  # that of the listing itself


def enter(namespaces: Sequence[int]) -> None:
    """Move this process into the user and the network namespace of these descriptors, without the
    rights over them that the kernel gives to whoever enters. Raises OSError."""
    for namespace in namespaces:
        libc.setns(namespace)
        posix.close(namespace)
    libc.drop_capabilities()
    # Who enters a user namespace is not: its entry in /proc would be root's (proc(5)).
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
