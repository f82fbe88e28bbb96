"""batchspawner-portwrap: what `c.Spawner.cmd` calls to start a single-user server in a sandbox.

batchspawner-singleuser has chosen a port of the host and told the hub. This module finds that
port, has the sandbox listen on it, and makes everything inside say the guest port instead:

    batchspawner       JupyterHub   what arrives
    1.2 and older      any          `--port=N` as the command's last word; the URL, if any, says 0
    1.3 and newer      before 2     `--port=N` as the command's last word
    1.3 and newer      2 and newer  only JUPYTERHUB_SERVICE_URL with port N

The sandbox itself is the package `portwrap`; its story is in `portwrap/launch/story.py`.
"""

from __future__ import annotations

import os
import sys

from portwrap.cli.common import COMMON_OPTIONS, GUEST_PORT_FIELD, common_settings, fill_in
from portwrap.cli.parser import Option, Parser
from portwrap.cli.run import run
from portwrap.diagnostics.errors import EXIT_USAGE, Failure, PortwrapError
from portwrap.kernel.threads import is_threaded
from portwrap.launch import lifeline, services
from portwrap.launch.command import exec_command, find_command, reexec
from portwrap.launch.ports import EVERY_ADDRESS, EVERY_IPV4, parse_port
from portwrap.launch.sandbox import Sandbox
from portwrap.launch.services import Service
from portwrap.launch.startup_line import log_step, log_what_was_made
from portwrap.launch.story import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from portwrap.check.api import Api
    from portwrap.cli.parser import Values

PROGRAM = "batchspawner-portwrap"
SERVICE_URL = "JUPYTERHUB_SERVICE_URL"
HUB_URLS = ("JUPYTERHUB_API_URL", "JUPYTERHUB_ACTIVITY_URL")
HUB_URL_EXAMPLE = "http://HUB:8081/hub/api"
DEFAULT_PORTS = {"http": 80, "https": 443}
PORT_ARGUMENT = "--port="
SINGLEUSER = "batchspawner-singleuser"

PARSER = Parser(
    PROGRAM,
    "batchspawner-portwrap [-P GUEST_PORT] [--port PORT] COMMAND [ARG ...]",
    "Run a JupyterHub single-user server in a user and network namespace of its own. From\n"
    "outside, exactly one port is reachable: the one that batchspawner-singleuser chose.\n"
    "In jupyterhub_config.py:\n"
    "\n"
    "  c.Spawner.cmd = ['/path/batchspawner-portwrap.pyz', 'jupyterhub-singleuser']\n"
    "\n"
    "{guest-port} in COMMAND stands for the port in the sandbox. A COMMAND without it gets\n"
    "--port=GUEST_PORT appended, unless JUPYTERHUB_SERVICE_URL gives the port.",
    [
        "batchspawner-portwrap.pyz --port 40001 jupyterhub-singleuser    # by hand",
        "srun -N4 /path/batchspawner-portwrap.pyz --check    # would a session start there?",
    ],
    [
        Option(
            ("--port",),
            "PORT",
            "host port (default: the one that batchspawner-singleuser chose)",
        ),
        Option(
            ("--portwrap-path",),
            "PATH",
            "exec this external portwrap instead of the bundled one",
        ),
        *COMMON_OPTIONS,
        Option(("-q", "--quiet"), "", "print warnings only"),
    ],
    [
        Option(("--check",), "", "check whether a session would start on this node"),
        Option(("--json",), "", "with --check: print one JSON object, on one line"),
        Option(
            ("--hub",),
            "URL",
            "with --check: also test that this hub URL is reachable from the sandbox",
        ),
        Option(
            ("--apparmor",),
            "",
            "with --check: only print AppArmor profiles for this program and those that follow",
        ),
    ],
)


class ServiceUrl:
    """JUPYTERHUB_SERVICE_URL, taken apart by hand.

    batchspawner rewrites it with IPv6 addresses out of their brackets (http://:::1234/) and with
    the word None for a missing host: urllib.parse raises on such text.
    """

    def __init__(self, text: str) -> None:
        self.scheme, separator, rest = text.partition("://")
        if not separator:
            self.scheme, rest = "http", text
        end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
        place, self.path = rest[:end], rest[end:]
        # without a port, a bracketed or empty host has its last colon inside
        has_port = ":" in place and not place.endswith("]")
        self.host, _, self.port = place.rpartition(":") if has_port else (place, "", "")

    @property
    def host_port(self) -> int | None:
        """The port, if it is one from 1 to 65535."""
        return parse_port(self.port)

    @property
    def bind_address(self) -> str:
        """The address of the host to listen on; "" means every address."""
        address = self.host[1:-1] if self.host.startswith("[") else self.host
        return "" if address in ("", "None", "*") else address

    def with_place(self, host: str, port: int) -> str:
        """The same URL with another host and port."""
        return f"{self.scheme}://{host}:{port}{self.path}"


class Request:
    """What arrived: our options, the command, the environment, and the host port among them."""

    def __init__(self, values: Values, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.command = list(command)
        self.environ = dict(environ)
        self.url = ServiceUrl(environ[SERVICE_URL]) if environ.get(SERVICE_URL) else None
        self.guest_port = PARSER.port(values, "guest-port")
        own = PARSER.port(values, "port") if "port" in values else None
        url_port = self.url.host_port if self.url else None
        self.last_argument = self._last_argument(own, url_port)
        self.host_port = own or url_port or self.last_argument or 0
        if not self.host_port:
            raise self._no_port()

    def _last_argument(self, own: int | None, url_port: int | None) -> int | None:
        """The port of a last argument `--port=N` that batchspawner has put there, else None.

        Next to a URL with a port it is batchspawner's only if it says the same: otherwise it
        belongs to the command (`standaloneproxy -- app --port=5000`).
        """
        last = self.command[-1]
        if len(self.command) < 2 or not last.startswith(PORT_ARGUMENT):
            return None
        number = parse_port(last[len(PORT_ARGUMENT) :])
        return None if url_port and number not in (own, url_port) else number

    def _no_port(self) -> PortwrapError:
        seen = []
        if self.url:
            seen.append(f"{SERVICE_URL} is {self.environ[SERVICE_URL]!r}")
        if self.command[-1].startswith(PORT_ARGUMENT):
            seen.append(f"the command ends with {self.command[-1]!r}")
        found = " and ".join(seen) or f"there is no {SERVICE_URL} and no last argument --port=N"
        message = f"no host port from 1 to 65535: {found}"
        return PortwrapError(message, Failure.NO_HOST_PORT, EXIT_USAGE)

    @property
    def bind_address(self) -> str:
        """The address of the host that the server would have listened on."""
        if self.url is None:
            return EVERY_IPV4
        return self.url.bind_address or EVERY_ADDRESS

    @property
    def appended(self) -> list[str]:
        """The argument that gives the guest port to a command to which nothing else does."""
        has_field = any(GUEST_PORT_FIELD in argument for argument in self.command)
        told = self.last_argument or self.url or has_field
        return [] if told else [f"{PORT_ARGUMENT}{self.guest_port}"]

    def inner_command(self) -> list[str]:
        """The command with the guest port in place of the host port."""
        command = [*self.command, *self.appended]
        if self.last_argument:
            command[-1] = f"{PORT_ARGUMENT}{self.guest_port}"
        return fill_in(command, self.guest_port)

    def inner_environ(self, host: str = "127.0.0.1") -> dict[str, str]:
        """The environment with the guest port in place of the host port."""
        environ = dict(self.environ)
        if self.url:
            environ[SERVICE_URL] = self.url.with_place(host, self.guest_port)
        return environ


def main(argv: Sequence[str] | None = None, afresh: bool = False) -> int:
    """Run the command in a sandbox, or return an exit status.

    `afresh` tells that this interpreter was started for nothing else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run(PROGRAM, lambda: _main(arguments, afresh))


def _main(argv: list[str], afresh: bool) -> int:
    values, command = PARSER.parse(argv, os.environ)
    if "help" in values or "version" in values:
        from portwrap.cli import help, version

        verbose = "verbose" in values
        shown = help.text(PARSER) if "help" in values else version.text(PROGRAM, verbose)
        sys.stdout.write(shown)
        return 0
    PARSER.warn_of_unknown(os.environ)
    if "check" in values:
        return _check(values, command, argv, afresh)
    for key in ("json", "hub", "apparmor"):
        if key in values:
            raise PARSER.error(f"--{key} needs --check", f"Did you mean --check --{key}?")
    if not command:
        raise PARSER.error("no command")
    request = Request(values, command, os.environ)
    if "portwrap-path" in values:
        _check_passed_on(values)
        _exec_external(values["portwrap-path"], request)
    if is_threaded() and not afresh:
        reexec("batchspawner_portwrap:main", argv)
    settings = common_settings(PARSER, values, request.host_port)
    settings["host_services"] += hub_services(os.environ)
    settings["node_services"] = hub_addresses(os.environ)
    settings["announce"] = None if "quiet" in values else log_what_was_made
    sandbox = Sandbox(
        host_port=request.host_port, host=request.bind_address, program=PROGRAM, **settings
    )
    for argument in request.appended:
        log_step(sandbox, f"{argument} is appended to the command")
    launch(sandbox, request.inner_command(), request.inner_environ())


def _check(values: Values, command: Sequence[str], argv: Sequence[str], afresh: bool) -> int:
    """Check this node instead of running a command."""
    if "apparmor" in values:
        from portwrap.check.apparmor import profiles

        sys.stdout.write(profiles(PROGRAM, command or [SINGLEUSER], os.environ))
        return 0
    if command:
        raise PARSER.error(
            f"--check takes no command (got {command[0]!r})", "Leave out what follows the options."
        )
    if is_threaded() and not afresh:
        reexec("batchspawner_portwrap:main", argv)
    from portwrap.check import main as check  # nothing of it is needed to start

    hub = _hub(values)
    settings = common_settings(PARSER, values, 0)
    hub_environ = {HUB_URLS[0]: hub.url if hub else ""}
    settings["host_services"] += hub_services(hub_environ)
    settings["node_services"] = hub_addresses(hub_environ)
    return check.main(PROGRAM, settings, hub, "json" in values)


def _hub(values: Values) -> Api | None:
    """The hub whose URL is to be requested, if there is one. Raises PortwrapError, status 2."""
    from portwrap.check.api import Api, InvalidUrl

    name = "--hub" if "hub" in values else HUB_URLS[0]
    url = values.get("hub", os.environ.get(name) or None)
    if url is None:
        return None
    try:
        return Api("hub", "JupyterHub", "x-jupyterhub-version", url, HUB_URL_EXAMPLE)
    except InvalidUrl as error:
        from portwrap.cli.mistakes import assignment

        meant = error.meant and f"Did you mean {assignment(name, error.meant)}?"
        raise PARSER.error(f"{name} {error}", meant) from None


def hub_services(environ: Mapping[str, str]) -> list[Service]:
    """The hub's own side, where it is on the loopback of this very host."""
    found = [services.of_name(host, port) for host, port in hub_addresses(environ)]
    return services.distinct(service for each in found for service in each)


def hub_addresses(environ: Mapping[str, str]) -> list[tuple[str, int]]:
    """Host and port of the hub's own side."""
    found = []
    for name in HUB_URLS:
        url = ServiceUrl(environ.get(name, ""))
        port = url.host_port or (DEFAULT_PORTS.get(url.scheme) if not url.port else None)
        if url.host and port:
            found.append((url.bind_address, port))
    return found


def _check_passed_on(values: Values) -> None:
    """Refuse what an external portwrap would not get, but for how it connects and what it logs.
    Raises PortwrapError, status 2."""
    for option in COMMON_OPTIONS:
        lost = option.key not in ("guest-port", "forward", "outward", "verbose")
        if lost and values.get(option.key, option.default) != option.default:
            name = values.origin(option.key)
            raise PARSER.error(
                f"{name} cannot be passed on to the program of --portwrap-path",
                f"It gets the host port and the guest port only: leave out {name}.",
            )


def _exec_external(path: str, request: Request) -> NoReturn:
    """Become an external portwrap, which takes `-p HOST -P GUEST COMMAND… --port={guest-port}`."""
    program = find_command(path, os.environ)
    command = request.command[:-1] if request.last_argument else list(request.command)
    if not any(GUEST_PORT_FIELD in argument for argument in command):
        command.append(PORT_ARGUMENT + GUEST_PORT_FIELD)
    ports = ["-p", str(request.host_port), "-P", str(request.guest_port)]
    # Its forward may lead to another address than 127.0.0.1 inside.
    environ = request.inner_environ(EVERY_IPV4)
    lifeline.abandon()
    exec_command(program, [path, *ports, *command], environ)


if __name__ == "__main__":
    sys.exit(main())
