"""A session whose command is the probe (`probe.py`), started as every session is: by a fresh
interpreter, with the environment of this process. And what it shows of a node."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time

from ..cli.run import ANYWHERE
from ..diagnostics import unexpected
from ..diagnostics.errors import EXIT_SANDBOX, Failure, PortwrapError, failure_of, reason_of
from ..keeper.acceptor import is_among
from ..kernel.threads import is_threaded
from ..launch import drivers, keeper_process, services
from ..launch.command import reexec
from ..launch.ports import parse_networks
from ..launch.sandbox import Sandbox
from ..launch.services import Service
from ..launch.story import launch
from . import probe
from .facts import version_of
from .report import FAILED, OK, WARNING, Result, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .api import Api

START_TIMEOUT = 60.0
"""Seconds that a session may take to start, or to report why it does not: as long as hubs wait by
default. The timeouts of a start are shorter; what they do not count, two interpreters, takes long
where the processors are busy."""
SERVER_TIMEOUT = 10.0
"""Seconds for the server's answer, without which no session would start."""
PROBE_TIMEOUT = 1.0
"""Seconds for each look from the sandbox, and for each other connection."""
SUCCESS = ("2", "3")
"""Beginnings of the status of an HTTP answer: found, or found elsewhere."""
MAX_GROUPS = 5
"""Groups that the report lists."""
END_TIMEOUT = 2.0
"""Seconds until everything of a session has ended."""


class Session:
    """A session of the probe, and what it and its start have reported so far."""

    def __init__(self, settings: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
        self.token = f"portwrap-check-{os.urandom(8).hex()}"
        self.host_port, self.guest_port = free_ports(2)
        self.reported: dict[str, Any] = {}
        self.text = b""
        self.began = time.monotonic()
        plan = {
            "token": self.token,
            "guest_port": self.guest_port,
            "timeout": PROBE_TIMEOUT,
            **targets,
        }
        ports = {"host_port": self.host_port, "guest_port": self.guest_port, "host": "127.0.0.1"}
        services = [[each.address, each.port, each.kind] for each in settings["host_services"]]
        arguments = {**settings, **ports, "host_services": services}
        program = PROGRAM.format(place=keeper_process.modules_path(), name=sys.argv[0])
        argv = keeper_process.interpreter_command(program, json.dumps(arguments), json.dumps(plan))
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.output, self.errors = self.process.stdout.fileno(), self.process.stderr.fileno()

    def wait_for(self, name: str, until: float) -> Any:
        """What was reported by this name; None if that was not in time, or never will be."""
        while name not in self.reported:
            timeout = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self.output], [], [], timeout)
            chunk = os.read(self.output, 65536) if ready else b""
            if not chunk:
                return None
            *lines, self.text = (self.text + chunk).split(b"\n")
            for line in lines:
                self.reported.update(json.loads(line))
        return self.reported[name]

    def started(self) -> bool:
        """Whether its command has come to listen, within START_TIMEOUT."""
        return self.wait_for("listening", self.began + START_TIMEOUT) is not None

    def refusal(self) -> PortwrapError:
        """Why its command did not come to listen."""
        if self.process.poll() is None and time.monotonic() > self.began + START_TIMEOUT:
            return PortwrapError(f"a session was not ready in {START_TIMEOUT:g} s", Failure.KEEPER)
        refusal = self.wait_for("refused", 0)
        if "made" in self.reported:
            # The keeper ends the command first, and then reports why it cannot go on.
            lines = self.read_errors(time.monotonic() + END_TIMEOUT).splitlines()
            reason = lines[-1] if lines else refusal["message"] if refusal else "it ended"
            message = f"the probe did not run in the sandbox: {reason}"
            return PortwrapError(message, Failure.KEEPER)
        if refusal:
            return PortwrapError(refusal["message"], refusal["failure"], subject=refusal["subject"])
        return PortwrapError("a session ended before it was ready", Failure.KEEPER)

    def read_errors(self, until: float = 0.0) -> str:
        """What its standard error gives that was not read yet, up to its end or to this moment."""
        text = b""
        while select.select([self.errors], [], [], max(0.0, until - time.monotonic()))[0]:
            chunk = os.read(self.errors, 65536)
            if not chunk:
                break
            text += chunk
        return text.decode("utf-8", "replace")

    def end(self) -> None:
        """End it, and wait until all of it has ended."""
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        process.stdin.close()
        if "listening" not in self.reported:
            process.kill()
        self.read_errors(time.monotonic() + END_TIMEOUT)  # the keeper holds it to its end
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


# ---- in the new interpreter --------------------------------------------------------------------

ENTRY = "portwrap.check.session:main"
PROGRAM = (
    "import sys; sys.path.append({place!r}); sys.argv[0] = {name!r}\n"
    "from portwrap.check.session import main; sys.exit(main())"
)


def main(afresh: bool = False) -> int:
    """Start the session of the arguments, or report why there is none.

    `afresh` tells that this interpreter was started once more because it had threads.
    """
    settings, plan = sys.argv[1:]
    try:
        if is_threaded() and not afresh:
            reexec(ENTRY, sys.argv[1:])
        _launch(json.loads(settings), json.loads(plan))
    except PortwrapError as caught:
        error = caught
    except ANYWHERE as caught:
        error = unexpected.refusal_of(caught)
    keys = ("message", "failure", "subject")
    probe.report("refused", {key: getattr(error, key) for key in keys})
    return EXIT_SANDBOX


def _launch(settings: dict[str, Any], plan: dict[str, Any]) -> None:
    """Become the probe in a session with these settings. Raises PortwrapError."""
    place = f"import sys; sys.path.append({keeper_process.modules_path()!r})"
    argv = keeper_process.interpreter_command(
        f"{place}; from portwrap.check.probe import main; main({plan!r})"
    )
    settings["host_services"] = [Service(*each) for each in settings["host_services"]]
    launch(Sandbox(**settings, announce=announce), argv, os.environ)


def announce(sandbox: Sandbox, facts: Mapping[str, str]) -> None:
    probe.report("made", dict(facts))


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody has on this host at the moment."""
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [each.getsockname()[1] for each in made]
    for each in made:
        each.close()
    return numbers


WITHOUT_DRIVER = {
    drivers.NONE: "no outbound network",
    drivers.DIRECT: "no network driver",
}

# ---- what a session shows ----------------------------------------------------------------------


def check_session(session: Session, api: Api | None) -> list[Result]:
    """Whether it started, how its port is forwarded, and what works in the sandbox."""
    if not session.started():
        return [refused("session", FAILED, session.refusal())]
    took = round(1000 * (time.monotonic() - session.began))
    made = session.reported["made"]
    with_ = WITHOUT_DRIVER.get(made["driver"]) or version_of(made["driver"])
    views = f", ssh configuration {made['ssh configuration']}" if made["ssh configuration"] else ""
    results = [
        Result("session", OK, f"started in {took} ms with {with_}{views}"),
        check_forward(made["forward"], made["why relayed"]),
        check_outbound(made["outbound"], made["why not native"]),
        check_isolation(session),
    ]
    until = time.monotonic() + 1.2 * PROBE_TIMEOUT
    if made["driver"] != drivers.NONE:
        results.append(check_names(session, until))
    results += [check_ssh(session, until), check_groups(session, until)]
    return [*results, check_api(session, api, until)] if api else results


def not_started(name: str, error: OSError) -> Result:
    """The result of a session for which this process had not enough left."""
    fact = f"starting a session: {reason_of(error)}"
    failure = failure_of(error, Failure.RESOURCES)
    return Result(name or "session", WARNING if name else FAILED, fact, failure)


def check_forward(forward: str, why: str) -> Result:
    """Native forwarding needs no relay in between; where it is not possible, the reason follows."""
    if why:
        return Result("forward", WARNING, f"{forward} ({why})", Failure.RELAYED)
    return Result("forward", OK, forward)


def check_outbound(outbound: str, why: str) -> Result:
    """How connections leave the session; why not natively, where that is not possible."""
    if why:
        return Result("outbound", WARNING, f"{outbound} ({why})", Failure.BY_DRIVER)
    return Result("outbound", OK, outbound)


def check_isolation(session: Session) -> Result:
    """The server is reachable on the host port, and nothing in the sandbox is elsewhere."""
    token = session.token.encode()
    if fetch(socket.AF_INET, ("127.0.0.1", session.host_port), SERVER_TIMEOUT) != token:
        return Result("isolation", FAILED, "the server does not answer on the host port")
    ports = (session.guest_port, session.reported["listening"]["application"])
    places: list[Any] = [(address, port) for port in ports for address in own_addresses()]
    for place in [*places, f"\0{session.token}"]:
        if fetch(family(place), place) == token:
            return Result(
                "isolation", FAILED, f"a listener of the sandbox is reachable at {place!r}"
            )
    fact = f"only the host port is reachable ({len(places)} other addresses and an abstract socket"
    return Result("isolation", OK, f"{fact} refused)")


def family(place: Any) -> socket.AddressFamily:
    return socket.AF_UNIX if isinstance(place, str) else probe.family(place[0])


def fetch(kind: socket.AddressFamily, place: Any, timeout: float = PROBE_TIMEOUT) -> bytes:
    """What is sent there; b"" if nobody listens."""
    try:
        with socket.socket(kind) as connection:
            connection.settimeout(timeout)
            connection.connect(place)
            return connection.recv(4096)
    except OSError:
        return b""


def own_addresses() -> list[str]:
    """Loopback, and the address that this host sends from. Nothing is sent to learn it."""
    found = ["127.0.0.1", "::1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("198.51.100.1", 9))
            found.append(asking.getsockname()[0])
        except OSError:
            pass
    return found


def check_names(session: Session, until: float) -> Result:
    found = session.wait_for("names", until) or {"error": "no nameserver answers in the sandbox"}
    if "error" in found:
        return Result("names", WARNING, found["error"], Failure.NAMES)
    return Result("names", OK, f"{found['server']} answered in {found['ms']} ms")


def check_ssh(session: Session, until: float) -> Result:
    found = session.wait_for("ssh", until) or {"error": "timed out"}
    if "error" in found:
        owner = "Bad owner" in found["error"]
        failure = Failure.SSH_OWNER if owner else Failure.SSH
        return Result("ssh", WARNING, f"ssh: {found['error']}", failure)
    fact = "no client installed" if "missing" in found else "reads its configuration in the sandbox"
    return Result("ssh", OK, fact)


def check_groups(session: Session, until: float) -> Result:
    """Which groups a session can give files to. A user namespace without privileges has one group,
    the one that the job runs with."""
    found = session.wait_for("groups", until) or {"error": "timed out"}
    if "error" in found:
        return Result("groups", OK, f"not tried: {found['error']}")
    refused = found["refused"]
    if not refused:
        return Result("groups", OK, f"files can be given to group {os.getegid()}")
    numbers = ", ".join(map(str, refused[:MAX_GROUPS])) + ("…" if refused[MAX_GROUPS:] else "")
    fact = f"files of the groups {numbers} can be used; chgrp, rsync -a and cp -a give files to"
    return Result("groups", OK, f"{fact} group {os.getegid()} only")


def check_api(session: Session, api: Api, until: float) -> Result:
    """Whether the URL that a server needs answers in the sandbox; if not, whether it answers this
    node, which tells a fault of the sandbox from one of the network or of the URL."""
    found = session.wait_for("url", until) or {"error": "timed out"}
    if "error" not in found:
        return what_answered(api, found)
    here = probe.attempt(lambda: probe.request(api.target, PROBE_TIMEOUT))
    if "error" not in here:
        reason = (
            f"the {api.name} {api.url} answers this node, but not the sandbox: {found['error']}"
        )
        hidden = hidden_address(api.host, session.reported["made"]["hidden"])
        if not hidden:
            return Result(api.name, FAILED, reason, Failure.API_SANDBOX)
        fact = f"{reason} ({hidden} is in the sandbox's own network)"
        return Result(api.name, FAILED, fact, Failure.HIDDEN, subject=f"{hidden} {api.host}")
    fact = f"the {api.name} {api.url} does not answer: {here['error']}"
    nobody = services.is_loopback(api.host) and "refused" in here["error"]
    failure = Failure.API_LOOPBACK if nobody else Failure.API
    return Result(api.name, FAILED, fact, failure, subject=api.host)


def what_answered(api: Api, found: Mapping[str, Any]) -> Result:
    """Whether it was the API: another program, or another path of the same one, answers as well."""
    if not found["version"] or found["status"][:1] not in SUCCESS:
        fact = f"{api.url} is not the API of {api.product}: {found['status']}"
        return Result(api.name, FAILED, fact, Failure.API_ANSWER)
    fact = f"{api.url}: {api.product} {found['version']}, {found['status']}, {found['ms']} ms"
    return Result(api.name, OK, fact)


def hidden_address(host: str, hidden: str) -> str:
    """The first address of this host if it is in one of these networks; else ""."""
    if not hidden:
        return ""
    address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4]
    networks = parse_networks(hidden)
    return str(address[0]) if is_among(probe.family(str(address[0])), address, networks) else ""


def check_other_driver(name: str, session: Session) -> Result:
    """A network driver that is installed, and that sessions do not use as things are."""
    if not session.started():
        return refused(name, WARNING, session.refusal())
    return Result(name, OK, f"a session also starts with {version_of(name)}")
