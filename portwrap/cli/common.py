"""The options that both commands have, and what they mean for a sandbox."""

from __future__ import annotations

from ..launch import network, ports, services
from ..launch.sandbox import FORWARDS, GUEST_PORT
from ..launch.startup_line import log_what_was_made
from .parser import Option, Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

GUEST_PORT_WORD = "{guest-port}"

COMMON_OPTIONS = (
    Option(
        ("-P", "--guest-port"),
        "PORT",
        f"port that COMMAND listens on inside (default {GUEST_PORT})",
        str(GUEST_PORT),
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

LOGGED_OPTIONS = {"verbose", "publish", "host-service"}


def fill_in(command: Sequence[str], guest_port: int) -> list[str]:
    """The command with the guest port wherever {guest-port} stands."""
    return [word.replace(GUEST_PORT_WORD, str(guest_port)) for word in command]


def common_settings(parser: Parser, values: Mapping[str, str], host_port: int) -> dict[str, Any]:
    """What COMMON_OPTIONS say, for a Sandbox. Raises PortwrapError, status 2."""
    published = parser.port_pairs(values["publish"], "--publish") if "publish" in values else []
    if host_port in (port for port, _ in published):
        raise parser.error(f"--publish: {host_port} is the host port already")
    forward = parser.choice(values["forward"], "--forward", FORWARDS)
    return {
        "guest_port": parser.port(values["guest-port"], "-P/--guest-port"),
        "forward": forward,
        "allow_from": _allow_from(parser, values.get("allow-from"), forward),
        "network": parser.choice(values["network"], "--network", network.NETWORK_DRIVERS),
        "verbose": "verbose" in values,
        "published": published,
        "host_services": _host_services(parser, values.get("host-service")),
        # Holes are always told of, the rest only on request.
        "announce": log_what_was_made if LOGGED_OPTIONS.intersection(values) else None,
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
