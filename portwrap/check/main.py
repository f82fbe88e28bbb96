"""`--check`: would a session start on this node? Each requirement is found out by using it.

    1  a child makes the namespaces and a tap interface in them
    2  sessions are started by the very code that starts servers, one with each network helper;
       their command is `probe.py`
    3  from inside, the probe asks a nameserver and the hub and has ssh read its configuration;
       from outside, we reach it through the forward, and try to reach it anywhere else

Everything ends with us: the probes wait for the end of their standard input.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import shlex
import signal
import socket
import subprocess
import sys
import time

from .. import __version__
from ..diagnostics import remedies as messages
from ..diagnostics.errors import EXIT_SANDBOX, PortwrapError
from ..launch import dns, lifeline, namespaces, network, services
from ..launch.sandbox import Sandbox
from ..launch.story import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

OK, WARNING, FAILED = "ok", "warning", "failed"
COLEXIT_SANDBOX = {OK: "32", WARNING: "33", FAILED: "31"}

START_LIMIT = 5.0
"""Seconds that a session may take to start."""
LOOK_LIMIT = 1.0
"""Seconds for each look from inside, and for each connection."""
END_LIMIT = 2.0
"""Seconds until everything of a session has ended."""

IFF_TAP, IFF_NO_PI, TUNSETIFF = 0x2, 0x1000, 0x400454CA  # linux/if_tun.h
FEW_DESCRIPTORS = 1024
FEW_NAMESPACES = 1000
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "_CONDOR_SLOT")
"""Variables that batch systems set in their jobs."""


class Result:
    """One line of the answer. `message` is what the table of messages knows a remedy for."""

    def __init__(self, name: str, status: str, fact: str, message: str = "") -> None:
        self.name = name
        self.status = status
        self.fact = fact
        row = messages.find(message or fact) if status != OK else None
        self.remedy = f"{row.cause} {row.cure}".strip() if row else ""
        command = row.command(messages.this_system()) if row else ""
        self.command = command.replace("batchspawner-portwrap.pyz", shlex.quote(own_path()))

    def as_dict(self) -> dict[str, str]:
        """The documented keys of a check in JSON; what mends it only where there is something."""
        keys = ("name", "status", "fact", "remedy", "command")
        return {key: getattr(self, key) for key in keys if getattr(self, key)}


# ---- a session to look at ----------------------------------------------------------------------


class Session:
    """A session whose command is the probe, and what it and its start have told so far."""

    def __init__(self, settings: Mapping[str, Any], look: bool, hub: str = "") -> None:
        self.token = f"portwrap-check-{os.urandom(8).hex()}"
        self.host_port, self.guest_port = free_ports(2)
        self.told: dict[str, Any] = {}
        self.text = b""
        self.began = time.monotonic()
        plan: dict[str, Any] = {
            "token": self.token,
            "guest_port": self.guest_port,
            "hub": hub,
            "look": look,
        }
        # without any, the C library asks this host
        plan["servers"] = dns.name_servers(dns.RESOLV_CONF) or [services.LOOPBACK_IPV4]
        theirs_in, self.input = os.pipe()
        self.output, theirs_out = os.pipe()
        self.errors, theirs_err = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.input)  # our own standard input would never end
            self._become((theirs_in, theirs_out, theirs_err), settings, plan)
        for end in (theirs_in, theirs_out, theirs_err):
            os.close(end)

    def _become(
        self, ends: Sequence[int], settings: Mapping[str, Any], plan: dict[str, Any]
    ) -> None:
        """In the child: start the session, or tell why not."""
        try:
            for number, end in enumerate(ends):
                os.dup2(end, number)
            plan["limit"] = LOOK_LIMIT
            place = f"import sys; sys.path.append({lifeline.modules_path()!r})"
            probe = f"{place}; from portwrap.check.probe import main; main({plan!r})"
            words = lifeline.interpreter_command(probe)
            ports = {"host_port": self.host_port, "guest_port": self.guest_port}
            sandbox = Sandbox(**{**settings, **ports, "host": "127.0.0.1", "announce": announce})
            launch(sandbox, words, os.environ)
        except PortwrapError as error:
            tell("refused", error.message)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(EXIT_SANDBOX)

    def wait_for(self, name: str, until: float) -> Any:
        """What was told under this name; None if that was not in time, or never will be."""
        while name not in self.told:
            patience = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self.output], [], [], patience)
            chunk = os.read(self.output, 65536) if ready else b""
            if not chunk:
                return None
            *lines, self.text = (self.text + chunk).split(b"\n")
            for line in lines:
                self.told.update(json.loads(line))
        return self.told[name]

    def started(self) -> bool:
        """Whether its command has come to listen, which it may take START_LIMIT seconds for."""
        return self.wait_for("listening", self.began + START_LIMIT) is not None

    def why_not(self) -> str:
        """Why its command did not come to listen."""
        refused = self.wait_for("refused", 0)
        if "made" not in self.told:
            return str(refused or f"a session was not ready in {START_LIMIT:g} s")
        lines = self.said().splitlines()  # the keeper's, if it could not go on
        return ": ".join(["the probe did not run inside", *(lines or [refused or ""])[-1:]])

    def said(self, until: float = 0.0) -> str:
        """What its standard error gives that was not read yet, up to its end or to this moment."""
        said = b""
        while select.select([self.errors], [], [], max(0.0, until - time.monotonic()))[0]:
            chunk = os.read(self.errors, 65536)
            if not chunk:
                break
            said += chunk
        return said.decode("utf-8", "replace")

    def end(self) -> None:
        """End it, and wait until all of it has ended."""
        os.close(self.input)
        if "listening" not in self.told:
            os.kill(self.pid, signal.SIGKILL)
        self.said(time.monotonic() + END_LIMIT)  # the keeper holds its standard error to its end
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
        os.waitpid(self.pid, 0)
        os.close(self.output)
        os.close(self.errors)


def announce(sandbox: Sandbox, facts: Mapping[str, str]) -> None:
    tell("made", facts)


def tell(name: str, found: Any) -> None:
    """In a child: one line on standard output."""
    os.write(1, (json.dumps({name: found}) + "\n").encode())


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody has on this host at the moment."""
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [each.getsockname()[1] for each in made]
    for each in made:
        each.close()
    return numbers


# ---- what needs no session ---------------------------------------------------------------------


def in_child(action: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What the action finds in a process of its own, which may leave our namespaces."""
    output, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(end, json.dumps(action()).encode())
        finally:
            os._exit(0)
    os.close(end)
    with open(output, "rb") as file:
        found = file.read()
    os.waitpid(pid, 0)
    return dict(json.loads(found)) if found else {"namespaces": "the check itself was ended"}


def use_kernel() -> dict[str, str]:
    """Make the namespaces and a tap interface in them. Returns the refusal of each, if any."""
    try:
        namespaces.enter_new(0)
    except PortwrapError as error:
        return {"namespaces": error.message}
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return {"tun": f"/dev/net/tun: {error.strerror}"}
    flags = (IFF_TAP | IFF_NO_PI).to_bytes(2, sys.byteorder)
    try:
        fcntl.ioctl(device, TUNSETIFF, (b"tap0".ljust(16, b"\0") + flags).ljust(40, b"\0"))
    except OSError as error:
        return {"tun": f"/dev/net/tun: TUNSETIFF: {error.strerror}"}
    return {}


def check_kernel() -> Result:
    release = os.uname().release
    numbers = [int(word) for word in release.replace("-", ".").split(".")[:2] if word.isdigit()]
    status = OK if numbers >= [4, 18] else WARNING
    return Result("kernel", status, f"Linux {release} {os.uname().machine}")


def check_account() -> Result:
    job = job_here()
    who = f"uid {os.geteuid()}, {f'in job {job}' if job else 'in no batch job'}"
    if os.geteuid() == 0:
        return Result("account", WARNING, f"{who}: run it as a user, root may do more")
    return Result("account", OK, who)


def check_namespaces(found: Mapping[str, str]) -> Result:
    if "namespaces" in found:
        filtered = "\nSeccomp:\t2" in read("/proc/self/status")
        note = "; a seccomp filter is in force" if filtered else ""
        return Result("user namespaces", FAILED, found["namespaces"] + note)
    return Result("user namespaces", OK, "made one, and a network namespace in it")


def check_tun(found: Mapping[str, str]) -> Result:
    if "tun" in found:
        return Result("tun device", FAILED, found["tun"])
    return Result("tun device", OK, "made a tap interface inside")


def check_helper(way: str) -> list[Result]:
    """That there is a network helper; how it works is seen with a session."""
    try:
        network.choose(way, os.environ)
    except PortwrapError as error:
        return [Result("network helper", FAILED, error.message)]
    return []


def check_descriptors() -> Result:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used, _, most = (messages.read_setting("fs/file-nr") or "0 0 0").split()
    few = hard < FEW_DESCRIPTORS or 0 < int(most) < int(used) + FEW_DESCRIPTORS
    fact = f"limit {soft}, at most {hard}; all of the node has {used} of {most}"
    return Result("descriptors", WARNING if few else OK, fact, "few descriptors")


def check_limits() -> Result:
    limits = {
        kind: messages.read_setting(f"user/max_{kind}_namespaces") for kind in ("user", "net")
    }
    few = any(value.isdigit() and int(value) < FEW_NAMESPACES for value in limits.values())
    fact = ", ".join(f"user.max_{kind}_namespaces {value}" for kind, value in limits.items())
    message = "unshare: No space" if few else ""
    return Result("kernel limits", WARNING if few else OK, fact, message)


def check_security() -> Result:
    """SELinux and AppArmor. What they forbid is seen where it is tried."""
    found = []
    if os.path.exists("/sys/fs/selinux/enforce"):
        enforces = read("/sys/fs/selinux/enforce") == "1"
        found.append(f"SELinux {'enforcing' if enforces else 'permissive'}")
    if read("/sys/module/apparmor/parameters/enabled") == "Y":
        restricts = messages.read_setting("kernel/apparmor_restrict_unprivileged_userns") == "1"
        found.append(f"AppArmor{', which restricts user namespaces' if restricts else ''}")
    label = read("/proc/self/attr/current").strip("\0")
    if found and label:
        found.append(f"this process is {label}")
    return Result("security modules", OK, "; ".join(found) or "neither SELinux nor AppArmor")


def read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def job_here() -> str:
    """The number of the batch job that this is; "" for none."""
    return next((os.environ[name] for name in JOBS if os.environ.get(name)), "")


# ---- what a session shows ----------------------------------------------------------------------


def check_session(session: Session, hub: str) -> list[Result]:
    """Whether it started, how its forward works, and what is seen from inside."""
    if not session.started():
        return [Result("session", FAILED, session.why_not())]
    took = round(1000 * (time.monotonic() - session.began))
    made = session.told["made"]
    way_out = made["way out"]
    about = version_of(way_out) if way_out in network.NETWORK_DRIVERS[1:3] else "no way out"
    views = f", private views {made['private views']}" if made["private views"] else ""
    results = [
        Result("session", OK, f"started in {took} ms with {about or way_out}{views}"),
        check_forward(made["forward"]),
        check_isolation(session),
    ]
    until = time.monotonic() + 1.2 * LOOK_LIMIT
    if way_out != "none":
        results.append(check_names(session, until))
    results.append(check_ssh(session, until))
    return [*results, check_hub(session, hub, until)] if hub else results


def check_forward(forward: str) -> Result:
    """The hand-over needs no relay in between; where it cannot be had, the reason is told."""
    return Result("forward", WARNING if " (" in forward else OK, forward)


def check_isolation(session: Session) -> Result:
    """The server is reached through the forward, and nothing inside is reached past it."""
    token = session.token.encode()
    if fetch(socket.AF_INET, ("127.0.0.1", session.host_port)) != token:
        return Result("isolation", FAILED, "the server inside does not answer on the host port")
    ports = (session.guest_port, session.told["listening"]["application"])
    places: list[Any] = [(address, port) for port in ports for address in own_addresses()]
    for place in [*places, f"\0{session.token}"]:
        if fetch(family(place), place) == token:
            return Result("isolation", FAILED, f"what listens inside is reached at {place!r}")
    fact = f"reached on the host port alone, not at {len(places)} others nor a unix socket"
    return Result("isolation", OK, fact)


def family(place: Any) -> socket.AddressFamily:
    if isinstance(place, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in place[0] else socket.AF_INET


def fetch(kind: socket.AddressFamily, place: Any) -> bytes:
    """What is said there; b"" if nobody is."""
    try:
        with socket.socket(kind) as connection:
            connection.settimeout(LOOK_LIMIT)
            connection.connect(place)
            return connection.recv(4096)
    except OSError:
        return b""


def own_addresses() -> list[str]:
    """Loopback, and the address that this host sends from. Nothing is sent to learn it."""
    found = ["127.0.0.1", "::1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
            found.append(probe.getsockname()[0])
        except OSError:
            pass
    return found


def check_names(session: Session, until: float) -> Result:
    found = session.wait_for("names", until) or {"error": "no nameserver answers inside"}
    if "error" in found:
        return Result("names", WARNING, found["error"])
    return Result("names", OK, f"{found['server']} answered in {found['ms']} ms")


def check_ssh(session: Session, until: float) -> Result:
    found = session.wait_for("ssh", until) or {"error": "timed out"}
    if "error" in found:
        return Result("ssh", WARNING, f"ssh: {found['error']}")
    fact = "there is no client" if "missing" in found else "reads its configuration inside"
    return Result("ssh", OK, fact)


def check_hub(session: Session, url: str, until: float) -> Result:
    found = session.wait_for("hub", until) or {"error": "timed out"}
    if "error" in found:
        return Result("hub", FAILED, f"the hub {url} does not answer from inside: {found['error']}")
    hub = f"JupyterHub {found['hub']}, " if found["hub"] else ""
    return Result("hub", OK, f"{url}: {hub}{found['status']}, {found['ms']} ms")


def check_other_helper(name: str, session: Session) -> Result:
    """A network helper that is here, and that sessions do not use as things are."""
    if not session.started():
        return Result(name, WARNING, session.why_not())
    return Result(name, OK, f"a session starts with it, too: {version_of(name) or name}")


def version_of(name: str) -> str:
    """What a network helper says about its version, in one line."""
    path = network.find_executable(name, os.environ) or name
    try:
        result = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=LOOK_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.decode("utf-8", "replace").partition("\n")[0].strip()


# ---- all of it ---------------------------------------------------------------------------------


def look(settings: Mapping[str, Any], hub: str) -> list[Result]:
    """Every check, in the order in which they stand on each other. What needs something that has
    failed is left out."""
    found = in_child(use_kernel)
    results = [check_kernel(), check_account(), check_namespaces(found)]
    if settings["network"] != "none" and results[-1].status == OK:
        results.append(check_tun(found))
    if results[-1].status == OK:
        results += check_helper(settings["network"])
    sessions: list[tuple[str, Session]] = []
    try:
        if results[-1].status != FAILED:
            sessions.append(("", Session(settings, True, hub)))
            sessions += start_others(settings)
        results += [check_descriptors(), check_limits(), check_security()]
        for name, session in sessions:
            results += [check_other_helper(name, session)] if name else check_session(session, hub)
    finally:
        for _, session in sessions:
            session.end()
    return results


def start_others(settings: Mapping[str, Any]) -> list[tuple[str, Session]]:
    """A session with the network helper that "auto" does not take, where that one is here, too."""
    ways = network.NETWORK_DRIVERS[1:3] if settings["network"] == "auto" else ()
    here = [way for way in ways if network.find_executable(way, os.environ)]
    if os.geteuid() == 0:
        here = here[:1]  # pasta refuses to run for root
    return [(way, Session({**settings, "network": way}, False)) for way in here[1:]]


def main(program: str, settings: Mapping[str, Any], hub: str, as_json: bool) -> int:
    """Look, and print what was found. Returns 0 if a session would start, else 125."""
    began = time.monotonic()
    # Ports that are published may be in use, by a session that runs. Who asks is this host.
    plan = {**settings, "program": program, "verbose": False, "published": [], "allow_from": ""}
    if settings["allow_from"]:
        plan["forward"] = "relay"  # which it implies
    results = look(plan, hub)
    failed = [result.name for result in results if result.status == FAILED]
    facts = {
        "host": os.uname().nodename,
        "version": __version__,
        "system": messages.os_release().get("PRETTY_NAME", ""),
        "kernel": os.uname().release,
        "python": ".".join(map(str, sys.version_info[:3])),
        "uid": os.geteuid(),
        "job": job_here(),
        "would_start": not failed,
        "failed": failed,
        "milliseconds": round(1000 * (time.monotonic() - began)),
        "checks": [result.as_dict() for result in results],
    }
    sys.stdout.write(json.dumps(facts) + "\n" if as_json else as_text(program, facts))
    return EXIT_SANDBOX if failed else 0


def as_text(program: str, facts: Mapping[str, Any]) -> str:
    """One line for each check, with what mends it below those that are not ok.

    Of several hosts whose lines arrive mixed only those are shown, each with its host.
    """
    shown = facts["checks"]
    host = ""
    lines = [f"{program} {facts['version']} on {facts['host']} ({facts['system'] or 'Linux'})"]
    if is_one_of_several():
        host, lines = f"{facts['host']}: ", []
        shown = [check for check in shown if check["status"] != OK]
    width = max((len(check["name"]) for check in shown), default=0) + 2
    margin = " " * (width + 9)
    for check in shown:
        status = in_colour(check["status"])
        lines.append(f"{status}{check['name']:<{width}}{check['fact']}")
        lines += [margin + check["remedy"]] if "remedy" in check else []
        lines += [f"{margin}as root: {check['command']}"] if "command" in check else []
    verdict = "A session would start here"
    if facts["failed"]:
        verdict = f"No session would start here, because of: {', '.join(facts['failed'])}"
    lines.append(f"{verdict} ({facts['milliseconds']} ms).")
    return "".join(f"{host}{line}\n" for line in lines)


def is_one_of_several() -> bool:
    """Whether srun has started more of us (srun(1), output environment variables)."""
    return os.environ.get("SLURM_STEP_NUM_TASKS", "1") not in ("", "1")


def in_colour(status: str) -> str:
    """The status in a column of its own, in colour on a terminal (no-color.org)."""
    text = f"{status:<9}"
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{COLEXIT_SANDBOX[status]}m{text}\033[0m"


# ---- AppArmor ----------------------------------------------------------------------------------

HEAD = """\
# User namespaces for batchspawner-portwrap, where AppArmor keeps them from programs without a
# profile. Whoever can write to one of these files gets them, too: directories of administrators
# are the place for them. Made by --check --apparmor; to load it: apparmor_parser -r THIS_FILE
abi <abi/4.0>,
include <tunables/global>
"""
PROFILE = """
profile {name} {path} flags=(unconfined) {{
  userns,
  include if exists <local/{name}>
}}
"""


def print_profiles(environ: Mapping[str, str]) -> None:
    """Print AppArmor profiles that allow user namespaces to this program and to
    batchspawner-singleuser. Raises PortwrapError if one is missing.

    A profile belongs to the path that is exec'ed (apparmor.d(5)): below batchspawner that is
    batchspawner-singleuser, which runs us in its own process.
    """
    text = HEAD + PROFILE.format(name="batchspawner-portwrap", path=literally(own_path()))
    name = "batchspawner-singleuser"
    path = network.find_executable(name, environ)
    if path is not None:
        text += PROFILE.format(name=name, path=literally(os.path.realpath(path)))
    sys.stdout.write(text)
    if path is None:
        hint = "Sessions need a profile for it, too: make this again with the PATH of the jobs."
        raise PortwrapError(f"{name} is not on PATH", hint)


def own_path() -> str:
    """Where this program is: the archive, or the script that imported us."""
    archive = __file__.partition("/site-packages/portwrap/")[0]
    return os.path.realpath(archive if os.path.isfile(archive) else sys.argv[0])


def literally(path: str) -> str:
    """The path as apparmor.d(5) takes it, with nothing in it that stands for something else."""
    escaped = "".join(f"\\{char}" if char in '\\"*?[]{}^@' else char for char in path)
    return f'"{escaped}"'
