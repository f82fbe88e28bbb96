"""The options that both commands have, and what they mean for a sandbox."""

from __future__ import annotations

from ..launch import drivers, ports, services
from ..launch.sandbox import FORWARDS, GUEST_PORT, OUTWARDS
from ..launch.startup_line import log_what_was_made
from .parser import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .parser import Parser, Values

GUEST_PORT_FIELD = "{guest-port}"

COMMON_OPTIONS = (
    Option(
        ("-P", "--guest-port"),
        "PORT",
        f"port that COMMAND binds in the sandbox (default {GUEST_PORT})",
        str(GUEST_PORT),
    ),
    Option(
        ("--forward",),
        "|".join(FORWARDS),
        "how connections reach the server: native (it gets the host's socket), relay (proxied),"
        " auto",
        "auto",
    ),
    Option(
        ("--allow-from",),
        "CIDR",
        "accept connections only from this CIDR, also to published ports (implies --forward relay)",
        repeatable=True,
        may_be_empty=False,
    ),
    Option(
        ("--network",),
        "DRIVER",
        f"outbound network: {', '.join(drivers.CHOICES[1:])}, or auto (first found)",
        drivers.AUTO,
    ),
    Option(
        ("--outward",),
        "auto|native|helper",
        "how outbound TCP connections leave: native (by the host's sockets), helper (through the"
        " network driver), auto (default auto)",
        "auto",
    ),
    Option(
        ("--publish",),
        "PORT[:PORT]",
        "also forward this host port (or range) into the sandbox",
        repeatable=True,
    ),
    Option(
        ("--publish-ephemeral",),
        "FIRST-LAST",
        "also publish this range; programs that bind to port 0 get a port of it",
        repeatable=True,
    ),
    Option(
        ("--host-service",),
        "PORT",
        "make the host's 127.0.0.1:PORT reachable in the sandbox",
        repeatable=True,
    ),
    Option(("-v", "--verbose"), "", "log each step to stderr"),
)

LOGGED_OPTIONS = {"verbose", "publish", "publish-ephemeral", "host-service"}


def fill_in(command: Sequence[str], guest_port: int) -> list[str]:
    """The command with the guest port in place of each {guest-port}."""
    return [argument.replace(GUEST_PORT_FIELD, str(guest_port)) for argument in command]


def common_settings(parser: Parser, values: Values, host_port: int) -> dict[str, Any]:
    """What COMMON_OPTIONS mean, for a Sandbox. Raises PortwrapError, status 2."""
    guest_port = parser.port(values, "guest-port")
    published, ephemeral = _published(parser, values, host_port, guest_port)
    forward = parser.choice(values, "forward", FORWARDS)
    outward = parser.choice(values, "outward", OUTWARDS)
    driver = parser.choice(values, "network", drivers.CHOICES)
    if driver == drivers.DIRECT and outward == "helper":
        network, outward = values.origin("network"), values.origin("outward")
        raise parser.error(
            f"{outward} helper needs a network driver, but {network} is direct",
            f"Leave out {outward}.",
        )
    return {
        "guest_port": guest_port,
        "forward": forward,
        "allow_from": _allow_from(parser, values, forward),
        "network": driver,
        "outward": outward,
        "verbose": "verbose" in values,
        "published": published,
        "ephemeral": ephemeral,
        "host_services": [
            service
            for port in parser.ports(values, "host-service")
            for service in services.of_port(port)
        ],
        # Openings are always logged, the rest only on request.
        "announce": log_what_was_made if LOGGED_OPTIONS.intersection(values) else None,
    }


def _published(
    parser: Parser, values: Values, host_port: int, guest_port: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """The ports of the host to be published, each with its guest port, and those of them that
    programs get for port 0. Raises PortwrapError, status 2."""
    published = parser.port_pairs(values, "publish")
    ephemeral = parser.ports(values, "publish-ephemeral")
    name = values.origin("publish-ephemeral")
    taken = {
        host_port: "is the host port already",
        guest_port: "is the guest port already",
        **{port: "is published already" for pair in published for port in pair},
    }
    for port in ephemeral:
        if port in taken:
            raise parser.error(f"{name}: {port} {taken[port]}", f"Leave {port} out of {name}.")
    if host_port in (port for port, _ in published):
        name = values.origin("publish")
        raise parser.error(
            f"{name}: {host_port} is the host port already", f"Leave {host_port} out of {name}."
        )
    return [*published, *((port, port) for port in ephemeral)], ephemeral


def _allow_from(parser: Parser, values: Values, forward: str) -> str:
    """The networks whose clients are accepted; "" for all. Raises PortwrapError, status 2."""
    if "allow-from" not in values:
        return ""
    text, name = values["allow-from"], values.origin("allow-from")
    try:
        ports.parse_networks(text)
    except ValueError as error:
        from .mistakes import nearest_networks

        raise parser.error(f"{name}: {error}", nearest_networks(text, name)) from None
    if forward == "native":
        from .mistakes import assignment

        raise parser.error(
            f"{name} needs the relay, but {values.origin('forward')} is native",
            f"Leave out {assignment(values.origin('forward'), 'native')}.",
        )
    return text
