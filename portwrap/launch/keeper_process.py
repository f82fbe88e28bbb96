"""The keeper's process: how the launching process starts it, while it still loads its own code.

It is a fresh interpreter that imports from the installed package, or from a copy in memory of the
archive or of its byte code: the file on the site's share may be replaced at any time. This is the
first thing of a start, and imports as little as serves: the keeper takes longer to come up than the
rest. `signal` and `socket` would take 5 ms of a plain start, so their C halves serve here; the
launching process imports them while the keeper comes up.
"""

from __future__ import annotations

import errno
import os

import _signal as signal
import _socket

from ..diagnostics.errors import Failure
from ..early_refusal import refusing_expression
from ..kernel.threads import is_threaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
MFD_CLOEXEC = 1  # linux/memfd.h
INTERPRETER = "/proc/self/exe"  # sys.executable can be empty, or a shim that starts another one

_begun: list[tuple[_socket.socket, int]] = []
"""The keeper that `begin` has started, until it is taken."""


def begin(program: str) -> None:
    """Start the keeper's interpreter now, for `take`.

    Not beside other threads, which may fork meanwhile and keep what the keeper waits for the end
    of.
    """
    try:
        if not is_threaded():
            _begun.append(start(program))
    except OSError:
        pass  # the next try tells


def take() -> tuple[_socket.socket, int] | None:
    """The keeper that has begun, if one has, as `start` returns it."""
    return _begun.pop() if _begun else None


def start(program: str) -> tuple[_socket.socket, int]:
    """Start the keeper's interpreter; returns our end of its lifeline, and the child that forks it.
    Raises OSError."""
    sockets: list[_socket.socket] = []
    modules: int | None = None
    try:
        _reserve_standard_descriptors()
        # Messages with boundaries; end of file when the last descriptor of the other end is closed.
        sockets += _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        ours, theirs = sockets
        importing, modules = importing_text()
        child = _spawn(program, theirs.fileno(), importing, modules)
    except OSError:
        for each in sockets:
            each.close()
        raise
    finally:
        if modules is not None:
            os.close(modules)
    theirs.close()
    return ours, child


def _reserve_standard_descriptors() -> None:
    """Fill closed places among 0-2 until exec, so that no socket of ours lands there."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return


def importing_text(sources: str = "") -> tuple[str, int | None]:
    """Statements by which another interpreter imports from where this one does, and the file
    descriptor that this takes. With `sources`, the place of modules without byte code, it has these
    as well. Raises OSError.
    """
    bundle: Any = __spec__.loader if __spec__ else None
    if hasattr(bundle, "everything"):  # portwrap.bundle, which is no module here
        descriptor = _memory_file()
        if descriptor is not None and _could_write(descriptor, bundle.everything()):
            text = USE_BUNDLE.format(bundle=descriptor, size=bundle.start, sources=sources)
            return text, descriptor
    if sources:
        return f"sys.path[:0] = [{sources!r}]; ", None
    place, modules = open_modules()
    return f"sys.path[:0] = [{place!r}]; {'' if modules is None else COMPILE_ONCE}", modules


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
    read what `cp` writes over it. The same one where the kernel has no memfd, or files may not be
    that large."""
    copy = _memory_file()
    if copy is None:
        return file
    kept, other = copy, file
    try:
        while os.sendfile(copy, file, None, os.fstat(file).st_size):
            pass
    except OSError as error:
        kept, other = file, copy
        if error.errno != errno.EFBIG:
            os.close(file)
            raise
    finally:
        os.close(other)
    return kept


def _could_write(file: int, content: bytes) -> bool:
    """Write this into a file in memory. False: it may not be that large (RLIMIT_FSIZE), and has
    been closed. Raises OSError."""
    try:
        while content:
            content = content[os.write(file, content) :]
    except OSError as error:
        os.close(file)
        if error.errno != errno.EFBIG:
            raise
        return False
    return True


def _memory_file() -> int | None:
    """A file in memory (memfd_create(2)); None where there are none."""
    try:
        return os.memfd_create("portwrap-modules")
    except OSError:
        return None
    except AttributeError:  # a Python that was built with an older C library
        from ..kernel import libc

        made = libc.attempt("memfd_create", b"portwrap-modules", MFD_CLOEXEC)
        return made if made >= 0 else None


def _spawn(program: str, lifeline: int, importing: str, modules: int | None) -> int:
    """Start the keeper's interpreter, with its end of the lifeline and no more of the job's input
    and output than its standard error: a reader of it waits for its end. Raises OSError."""
    text = KEEPER.format(
        title=f"{program}: keeper of process {os.getpid()}",
        importing=importing,
        refuse=refusing_expression(lifeline, "the keeper cannot be loaded", Failure.INCOMPLETE),
        lifeline=lifeline,
        modules=modules,
    )
    # If the caller had it closed, 2 is a file of this process alone: our own, or one that libffi
    # keeps open for its trampolines.
    nobodys = (0, 1) if os.get_inheritable(2) else (0, 1, 2)
    os.set_inheritable(lifeline, True)
    if modules is not None:
        os.set_inheritable(modules, True)
    # Not fork: this process may have much memory, of which the kernel would copy the tables.
    return os.posix_spawn(
        INTERPRETER,
        interpreter_command(text),
        _lean_environment(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in nobodys
        ],
        setsigmask=WAITING_SIGNALS,
        setsigdef=[signal.SIGCHLD],
    )


KEEPER = (
    "{title!r}; import sys, os, marshal;"
    " sys.excepthook = lambda kind, error, trace: {refuse};"
    " {importing}from portwrap.keeper.setup import main;"
    " sys.excepthook = sys.__excepthook__; main({lifeline}, {modules})"
)
"""The keeper's program, in one line, which ps(1) shows; its first word is for the reader. Whatever
an import raises, the system is the cause: where it cannot look at a file, Python even takes a
folder for an empty module."""
COMPILE_ONCE = "from portwrap.archive import compile_once; compile_once(); "
"""What it does first where it imports from an archive."""
USE_BUNDLE = (
    "code, index = marshal.loads(os.pread({bundle}, {size}, 8)); exec(marshal.loads(code));"
    " install(index, {bundle}, {sources!r}); "
)
"""The same for byte code in one piece (`portwrap/bundle.py`)."""


def interpreter_command(text: str, *arguments: str) -> list[str]:
    """The argv that starts this interpreter with a program's text, alone with its standard library.

    -I ignores PYTHONHOME, without which some interpreters do not find that library; but without
    it they look into the current directory first.
    """
    isolated = "-I"
    if os.environ.get("PYTHONHOME"):
        isolated = "-s"
        text = f"import sys; sys.path[:] = filter(None, sys.path); exec({text!r})"
    options = (isolated, "-S", "-B", "-X", "no_debug_ranges")  # of lines, their numbers will do
    return [os.path.realpath(INTERPRETER), *options, "-c", text, *arguments]


def _lean_environment() -> dict[str, str]:
    """The environment without what PYTHON… variables and libraries of others may do to the keeper:
    some of these start threads, and no process with threads can enter a user namespace."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "PYTHONHOME" or not name.startswith(("PYTHON", *PRELOADING))
    }
