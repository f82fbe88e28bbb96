"""The story: from the arguments to the command running in its sandbox. Read this first.

    P  the process that the batch system started; it ends up being the command itself
    K  the keeper (keeper.py, relay.py), the one helper that stays, with the network helper as child

     1  P starts K, a lean interpreter; the archive does so while it loads the rest of this
     2  P binds and listens on the host port, and on those to be published
     3  P moves into new user and network namespaces, listens in there for the host services, and
        tells K to go, with all these sockets and what K needs of P
     4  K starts the network helper on them and follows P inside, to be the relay; it stays outside
        for host services and for the hand-over
     5  K says that it is ready: the way out works, and clients can connect
     6  P arms the lifeline and execs the command in place. Meanwhile K loads the code that serves;
        where it has to relay and is outside, a worker of it does so inside

There is no supervisor. The command keeps its PID, parent, terminal and exit status, because it is
exec'ed; K ends when the command does, because it holds a pidfd of it; and the command is told with
SIGTERM when K ends, because the kernel does so when K's end of the lifeline closes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time

import _signal as signals  # the C half of `signal`: the other half costs 4 ms of every start

from . import BEGAN, keeper, ports, services
from .errors import CANNOT_RUN, NOT_FOUND, PortwrapError
from .options import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from _socket import socket

    from .services import Service

GUEST_PORT = 8888
"""The port that the server listens on inside, unless another one is asked for."""
LIFELINE_FROM = 960
"""Lowest descriptor number of the lifeline: far above those a program expects to get next."""


class Sandbox:
    """What to make: which port of the host leads to which port inside."""

    def __init__(
        self,
        host_port: int,
        guest_port: int = GUEST_PORT,
        host: str = ports.EVERY_IPV4,
        program: str = "portwrap",
        forward: str = "auto",
        network: str = "auto",
        verbose: bool = False,
        published: Sequence[tuple[int, int]] = (),
        host_services: Sequence[Service] = (),
        allow_from: str = "",
        announce: Callable[[Sandbox, dict[str, Any]], None] | None = None,
    ) -> None:
        self.host_port = host_port
        self.guest_port = guest_port
        self.host = host
        self.program = program
        # "native", "relay", or "auto": native where it can be. Only the relay looks at who comes.
        self.forward = "relay" if allow_from else forward
        self.network = network  # one of keeper.WAYS_OUT
        self.verbose = verbose
        self.published = published  # more ports of the host, and where they lead inside
        self.host_services = services.distinct(host_services)
        self.allow_from = allow_from  # networks of the clients, as the user wrote them; "": all
        self.allowed = ports.parse_networks(allow_from) if allow_from else []
        self.announce = announce  # told what was made, just before the command begins

    def step(self, text: str) -> None:
        """Say what has been done, where the user has asked to be told."""
        if self.verbose:
            say(f"{self.program}: {milliseconds()} ms: {text}\n")


def launch(sandbox: Sandbox, command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Make the sandbox and become the command. Returns only by raising PortwrapError."""
    _die_natively()
    path = find_command(command[0], environ)
    sandbox.step(f"the command is {path}")
    lifeline = keeper.start(sandbox.program)
    sandbox.step("the keeper is starting")
    port = ports.bind(sandbox.host, sandbox.host_port)
    sandbox.step(f"listening on {address_of(sandbox)}")
    published = [
        (ports.bind(sandbox.host, number, ports.PUBLISHED), guest)
        for number, guest in sandbox.published
    ]
    # Imported here, and further below: while the keeper's interpreter and the helper start.
    from . import dns, namespaces, network, views

    helper = network.choose(sandbox.network, environ)
    resolvers = dns.needed()
    covered = views.needed(environ)
    offered = services.distinct([*sandbox.host_services, *resolvers])
    services.check(offered, sandbox.guest_port, sandbox.published)
    namespaces.enter_new(0)
    listeners = services.listen(offered)
    lifeline.send_go(sandbox, port, published, helper, listeners)
    _close(port, *dict(published), *listeners)
    viewed = _give_views(sandbox, covered)
    sandbox.step("in user and network namespaces of our own")
    forward = _choose_forward(sandbox, lifeline)
    lifeline.wait_until_ready()
    sandbox.step("the keeper is ready" + (", and so is the way out" if helper else ""))
    if sandbox.announce:
        way_out = helper.name if helper else "none"
        facts = _what_was_made(sandbox, forward, way_out, viewed, resolvers)
        sandbox.announce(sandbox, facts)
    _arm(lifeline)
    become(path, command, environ)


def _close(*handed_on: ports.HostPort | socket) -> None:
    for each in handed_on:
        each.close()


def _what_was_made(
    sandbox: Sandbox, forward: str, way_out: str, viewed: str, resolvers: Sequence[Service]
) -> dict[str, str]:
    """What leads in besides the host port, and out; "" for nothing."""
    return {
        "forward": forward,
        "way out": way_out,
        "private views": viewed,
        "clients from": sandbox.allow_from.replace(",", ", "),
        "published": ports.describe_pairs(sandbox.published),
        "host's own inside": ", ".join(map(str, [*sandbox.host_services, *resolvers])),
    }


def _give_views(sandbox: Sandbox, covered: Mapping[str, set[str]]) -> str:
    """Have ssh accept the configuration that root has given it; return which directories it is."""
    from . import views

    why = views.apply(covered)
    folders = ", ".join(sorted(covered))
    if why:
        say(f"{sandbox.program}: ssh will refuse root's files in {folders}: {why}\n")
    return "" if why else folders


def say_what_was_made(sandbox: Sandbox, facts: Mapping[str, Any]) -> None:
    """The start-up line: what leads in and out, and how long it took."""
    from . import __version__

    told = "; ".join(f"{name} {fact}" for name, fact in facts.items() if fact)
    say(
        f"{sandbox.program}: version {__version__}; {address_of(sandbox)} leads to port"
        f" {sandbox.guest_port} inside; {told}; {milliseconds()} ms\n"
    )


def milliseconds() -> int:
    """How long this program has been running."""
    return round(1000 * (time.monotonic() - BEGAN))


def address_of(sandbox: Sandbox) -> str:
    """Where the host listens."""
    host = f"[{sandbox.host}]" if ":" in sandbox.host else sandbox.host
    return f"{host}:{sandbox.host_port}"


def _choose_forward(sandbox: Sandbox, lifeline: keeper.Lifeline) -> str:
    """Hand the host's socket over to the server where that works, else leave it to the relay.

    Returns which of the two it is, and why where it was not wanted.
    """
    if sandbox.forward == "relay":
        return "relay"
    why = lifeline.offer_native()
    if why and sandbox.forward == "native":
        raise PortwrapError(
            f"--forward native is not possible: {why}",
            "It needs Linux 5.9 or newer and no other seccomp listener; --forward auto relays"
            " where it cannot be had.",
        )
    if why:
        sandbox.step(f"forward: relay, because {why}")
    return f"relay ({why})" if why else "native"


def start_afresh(entry: str, argv: Sequence[str]) -> NoReturn:
    """Exec this interpreter anew with the same program: `entry` is "module:function"."""
    module, _, function = entry.partition(":")
    place = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    text = (
        f"import sys; sys.path.append({place!r}); sys.argv[0] = {sys.argv[0]!r}\n"
        f"from {module} import {function}; sys.exit({function}(afresh=True))"
    )
    command = keeper.interpreter_command(text, *argv)
    _flush_output()
    os.execv(keeper.INTERPRETER, command)


def find_command(name: str, environ: Mapping[str, str]) -> str:
    """Return the path that execvp(3) would run. Raises PortwrapError, status 126 or 127."""
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    candidates = [name] if "/" in name else [os.path.join(folder, name) for folder in folders]
    found = [path for path in candidates if os.path.exists(path)] if name else []
    for path in found:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            _check_interpreter(path)
            return path
    if not found:
        where = "no such file" if "/" in name else "not found on PATH"
        hint = f"PATH is {environ.get('PATH', os.defpath)}" if "/" not in name else ""
        raise PortwrapError(f"{name}: {where}", hint or "Check the path.", NOT_FOUND)
    if os.path.isdir(found[0]):
        raise PortwrapError(f"{found[0]}: is a directory", "Name the program in it.", CANNOT_RUN)
    raise PortwrapError(f"{found[0]}: permission denied", _MODE_HINT, CANNOT_RUN)


_MODE_HINT = "Its user must have the right to execute it: 'chmod +x', or a mount without noexec."


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
            "Install it, or mend the first line of the script.",
            CANNOT_RUN,
        )


def _die_natively() -> None:
    """Give every signal that Python handles its default action, as exec would: until then it ends
    this process at once, without a traceback, and the keeper sees that it is gone."""
    for number in signals.valid_signals():
        if callable(signals.getsignal(number)):
            signals.signal(number, signals.SIG_DFL)


def _arm(lifeline: keeper.Lifeline) -> None:
    """Have the kernel send this process SIGTERM when the keeper's end of the lifeline closes.

    The setting belongs to the open file, so it outlives exec (fcntl(2)). Set first, looked at
    afterwards: in the other order a keeper that ends in between is never noticed.
    """
    descriptor = _high_descriptor(lifeline.socket.fileno())
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signals.SIGTERM)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        lifeline.check_alive()
    finally:
        keeper.close_all_but([descriptor])


def _high_descriptor(descriptor: int) -> int:
    """A duplicate with a high number, or as high as the limit of descriptors allows."""
    for lowest in (LIFELINE_FROM, 200, 20, 3):
        try:
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EMFILE):
                raise
    return descriptor


def become(path: str, command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Exec the command, with the signal settings it would have had without us."""
    # Python ignores these two at start-up, and "ignored" survives exec.
    for number in (signals.SIGPIPE, signals.SIGXFSZ):
        signals.signal(number, signals.SIG_DFL)
    _flush_output()
    try:
        os.execve(path, list(command), _without_coercion(environ))
    except OSError as error:
        missing = error.errno == errno.ENOENT
        raise PortwrapError(
            f"{path}: {os.strerror(error.errno or 0)}",
            "The file cannot be run on this node: 'file' and 'ldd' tell what it needs.",
            NOT_FOUND if missing else CANNOT_RUN,
        ) from error


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
