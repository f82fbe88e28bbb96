"""The portwrap command: the sandbox by itself, without anything of JupyterHub."""

from __future__ import annotations

import os
import sys

from . import __version__, keeper, launching, ports, services
from .options import Option, Parser, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

PROGRAM = "portwrap"
GUEST_PORT_WORD = "{guest-port}"

COMMON_OPTIONS = (
    Option(
        ("-P", "--guest-port"),
        "PORT",
        f"port that COMMAND listens on inside (default {launching.GUEST_PORT})",
        str(launching.GUEST_PORT),
    ),
    Option(
        ("--forward",),
        "auto|native|relay",
        "give the server the host's own socket, or relay to it (default auto)",
        "auto",
    ),
    Option(
        ("--allow-from",),
        "ADDRESS[/BITS]",
        "accept clients of the host port from there only; may be repeated",
        repeatable=True,
        may_be_empty=False,
    ),
    Option(
        ("--network",),
        "WAY_OUT",
        "slirp4netns, pasta, none (no way out), or auto, the first one found",
        "auto",
    ),
    Option(
        ("--publish",),
        "PORT[:PORT]",
        "lead one more port of the host inside, or a range; may be repeated",
        repeatable=True,
    ),
    Option(
        ("--host-service",),
        "PORT",
        "let 127.0.0.1:PORT inside be that of the host; may be repeated",
        repeatable=True,
    ),
    Option(("-v", "--verbose"), "", "say on standard error what is done, step by step"),
)

PARSER = Parser(
    PROGRAM,
    "portwrap -p HOST_PORT [-P GUEST_PORT] [--host ADDRESS] COMMAND [ARG ...]",
    "Run COMMAND in a user and network namespace of its own. The host's HOST_PORT leads to\n"
    "GUEST_PORT inside; nothing else does. {guest-port} in COMMAND stands for that number.",
    [
        Option(("-p", "--host-port"), "PORT", "port of the host to listen on"),
        Option(
            ("--host",),
            "ADDRESS",
            "address of the host to listen on (default 0.0.0.0)",
            ports.EVERY_IPV4,
        ),
        *COMMON_OPTIONS,
    ],
)

TOLD_OF = {"verbose", "publish", "host-service"}
SETTINGS_OF_OTHERS = ("PORTWRAP_PORT", "PORTWRAP_PORTWRAP_PATH", "PORTWRAP_QUIET")
"""Those of batchspawner-portwrap, in whose sessions this program may be started."""


def fill_in(command: Sequence[str], guest_port: int) -> list[str]:
    """The command with the guest port wherever {guest-port} stands."""
    return [word.replace(GUEST_PORT_WORD, str(guest_port)) for word in command]


def common_settings(parser: Parser, values: Mapping[str, str], host_port: int) -> dict[str, Any]:
    """What COMMON_OPTIONS say, for a Sandbox. Raises PortwrapError, status 2."""
    published = parser.port_pairs(values["publish"], "--publish") if "publish" in values else []
    if host_port in (port for port, _ in published):
        raise parser.error(f"--publish: {host_port} is the host port already")
    forward = parser.choice(values["forward"], "--forward", keeper.FORWARDS)
    return {
        "guest_port": parser.port(values["guest-port"], "-P/--guest-port"),
        "forward": forward,
        "allow_from": _allow_from(parser, values.get("allow-from"), forward),
        "network": parser.choice(values["network"], "--network", keeper.WAYS_OUT),
        "verbose": "verbose" in values,
        "published": published,
        "host_services": _host_services(parser, values.get("host-service")),
        # Holes are always told of, the rest only on request.
        "announce": launching.say_what_was_made if TOLD_OF.intersection(values) else None,
    }


def _allow_from(parser: Parser, text: str | None, forward: str) -> str:
    """The networks whose clients are accepted; "" for all. Raises PortwrapError, status 2."""
    if text is None:
        return ""
    try:
        ports.parse_networks(text)
    except ValueError as error:
        raise parser.error(f"--allow-from: {error}") from None
    if forward == "native":
        raise parser.error("--allow-from needs the relay: it cannot go with --forward native")
    return text


def _host_services(parser: Parser, text: str | None) -> list[services.Service]:
    """The services that a list of ports means. Raises PortwrapError, status 2."""
    if text is None:
        return []
    pairs = parser.port_pairs(text, "--host-service")
    if any(port != other for port, other in pairs):
        raise parser.error(f"--host-service: the port inside is that of the host, not {text!r}")
    return [service for port, _ in pairs for service in services.of_port(port)]


def main(argv: Sequence[str] | None = None, afresh: bool = False) -> int:
    """Run the command in a sandbox, or return an exit status.

    `afresh` tells that this interpreter was started for nothing else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return run(PROGRAM, lambda: _main(words, afresh))


def _main(words: list[str], afresh: bool) -> int:
    values, command = PARSER.parse(words, os.environ)
    if "help" in values or "version" in values:
        sys.stdout.write(PARSER.help() if "help" in values else f"{PROGRAM} {__version__}\n")
        return 0
    PARSER.warn_of_unknown(os.environ, SETTINGS_OF_OTHERS)
    if not command:
        raise PARSER.error("no command")
    if "host-port" not in values:
        raise PARSER.error("the port of the host is missing: -p HOST_PORT")
    host_port = PARSER.port(values["host-port"], "-p/--host-port")
    sandbox = launching.Sandbox(
        host_port=host_port,
        host=values["host"],
        program=PROGRAM,
        **common_settings(PARSER, values, host_port),
    )
    if keeper.is_threaded() and not afresh:
        launching.start_afresh("portwrap.__main__:main", words)
    launching.launch(sandbox, fill_in(command, sandbox.guest_port), os.environ)


if __name__ == "__main__":
    sys.exit(main())
