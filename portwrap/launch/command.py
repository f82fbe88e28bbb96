"""The command: found before the sandbox is made, and exec'ed in it."""

from __future__ import annotations

import errno
import os
import signal
import sys

from ..diagnostics.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, Failure, PortwrapError
from ..kernel import procfs
from . import keeper_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence
    from typing import NoReturn


def find_command(name: str, environ: Mapping[str, str]) -> str:
    """Return the path that execvp(3) would run. Raises PortwrapError, status 126 or 127."""
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    candidates = [name] if "/" in name else [os.path.join(folder, name) for folder in folders]
    found = [path for path in candidates if os.path.exists(path)] if name else []
    for path in found:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            _check_interpreter(path)
            return path
    if not found and "/" in name:
        raise PortwrapError(
            f"{name}: no such file", Failure.COMMAND_MISSING, EXIT_NOT_FOUND, subject=name
        )
    if not found:
        where = environ.get("PATH", os.defpath)
        raise PortwrapError(
            f"{name}: not found on PATH ({where})", Failure.COMMAND_NOT_FOUND, EXIT_NOT_FOUND
        )
    raise _not_executable(found[0])


def _not_executable(path: str) -> PortwrapError:
    directory = os.path.isdir(path)
    return PortwrapError(
        f"{path}: {'is a directory' if directory else 'permission denied'}",
        Failure.COMMAND_IS_DIRECTORY if directory else Failure.COMMAND_NOT_EXECUTABLE,
        EXIT_NOT_EXECUTABLE,
        subject=path,
    )


def _check_interpreter(path: str) -> None:
    """A script's #! line must name a program that exists: exec would say so too late."""
    try:
        with open(path, "rb") as file:
            first = file.readline(256)
    except OSError:
        return  # executable, but not readable: not a script
    # The kernel knows blanks and tabs only: with a carriage return the name is another one.
    words = first[2:].partition(b"\n")[0].replace(b"\t", b" ").strip(b" ").split(b" ")
    if first.startswith(b"#!") and words[0] and not os.path.exists(words[0]):
        interpreter = os.fsdecode(words[0])
        raise PortwrapError(
            f"{path}: its interpreter {interpreter} does not exist",
            Failure.COMMAND_INTERPRETER,
            EXIT_NOT_EXECUTABLE,
            subject=path,
        )


def restore_signals() -> None:
    """Give every signal that Python handles its default action, as exec would: until then it ends
    this process at once, without a traceback, and the keeper sees that it is gone."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def reexec(entry: str, argv: Sequence[str]) -> NoReturn:
    """Exec this interpreter anew with the same program: `entry` is "module:function".

    Without the libraries that are loaded into every program, which may start threads again; the
    command gets these variables back.
    """
    module, _, function = entry.partition(":")
    importing, modules = keeper_process.importing_text(keeper_process.modules_path())
    preloading = {k: os.environ[k] for k in keeper_process.PRELOADING if k in os.environ}
    environ = {name: text for name, text in os.environ.items() if name not in preloading}
    text = (
        f"import marshal, os, sys; {importing}\n"
        f"os.environ.update({preloading!r}); sys.argv[0] = {sys.argv[0]!r}\n"
        f"from {module} import {function}; sys.exit({function}(afresh=True))"
    )
    command = keeper_process.interpreter_command(text, *argv)
    if modules is not None:
        os.set_inheritable(modules, True)
    _flush_output()
    os.execve(keeper_process.INTERPRETER, command, environ)


def exec_command(path: str, command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Exec the command, with the signal settings it would have had without us."""
    # Python ignores these two at start-up, and "ignored" survives exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    _flush_output()
    try:
        os.execve(path, list(command), _without_coercion(environ))
    except OSError as error:
        missing = error.errno == errno.ENOENT
        raise PortwrapError(
            f"{path}: {os.strerror(error.errno or 0)}",
            Failure.COMMAND_EXEC,
            EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE,
            subject=path,
        ) from error


def keep_across_exec(kept: Container[int]) -> None:
    """Hand on these descriptors and 0-2 at exec; everything else closes there."""
    for descriptor in procfs.own_descriptors():
        if descriptor > 2:
            try:
                os.set_inheritable(descriptor, descriptor in kept)
            except OSError as error:
                if error.errno != errno.EBADF:  # that of the listing itself
                    raise


def _flush_output() -> None:
    """Write out what the program that runs us has printed: exec drops it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass  # nobody takes it, or it is closed


def _without_coercion(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the LC_CTYPE that Python itself sets in the C locale (PEP 538)."""
    given = dict(environ)
    if given.get("LC_CTYPE") in ("C.UTF-8", "C.utf8", "UTF-8"):
        with open("/proc/self/environ", "rb") as file:  # as it was when this program was exec'ed
            if not any(item.startswith(b"LC_CTYPE=") for item in file.read().split(b"\0")):
                del given["LC_CTYPE"]
    return given
