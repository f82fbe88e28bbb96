"""The start-up line in the job's log: what is forwarded, what leaves, and how long it took."""

from __future__ import annotations

import time

from .. import BEGAN, __version__
from ..diagnostics.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .drivers.driver import NetworkDriver
    from .native import Native
    from .sandbox import Sandbox
    from .services import Service


NONE = "none"
"""What there is of an outbound network with --network none."""


def what_was_made(
    sandbox: Sandbox,
    made: Native,
    driver: NetworkDriver | None,
    ssh_folders: str,
    resolvers: Sequence[Service],
) -> dict[str, str]:
    """How a session's host port is forwarded, and what it has besides; "" for nothing."""
    return {
        "forward": made.forward,
        "why relayed": made.why_relayed,
        "clients from": sandbox.allow_from.replace(",", ", "),
        "published": describe_published(sandbox),
        "host services": ", ".join(map(str, [*sandbox.host_services, *resolvers])),
        "ssh configuration": ssh_folders,
        "outbound": describe_outbound(made, driver),
        "why not native": made.why_no_outbound if driver else "",
        "driver": driver.name if driver else NONE,
        "hidden": ",".join(driver.hidden) if driver else "",
    }


def describe_published(sandbox: Sandbox) -> str:
    """The published ports, as they were asked for; "" for none."""
    if not sandbox.published:
        return ""
    from . import port_lists

    return port_lists.describe_pairs(sandbox.published)


def describe_outbound(made: Native, driver: NetworkDriver | None) -> str:
    """How connections leave the sandbox."""
    if driver is None:
        return NONE
    ways = [] if made.no_outbound else ["native"]
    ways += [driver.name] if driver.path else []
    return " and ".join(ways)


def log_what_was_made(sandbox: Sandbox, facts: Mapping[str, Any]) -> None:
    """Write the start-up line."""
    forward = ": ".join(filter(None, (facts["forward"], facts["why relayed"])))
    parts = [f"forwarding {sandbox.address} -> {sandbox.guest_port} ({forward})"]
    others = [name for name in facts if facts[name] and name not in NOT_BY_THEMSELVES]
    parts += [f"{name} {facts[name]}" for name in others]
    if facts["why not native"]:
        parts[-1] += f" (not native: {facts['why not native']})"
    parts.append(f"ready in {milliseconds()} ms")
    log(f"{sandbox.program}: {', '.join(parts)} (version {__version__})\n")


NOT_BY_THEMSELVES = ("forward", "why relayed", "why not native", "driver", "hidden")


def log_step(sandbox: Sandbox, text: str) -> None:
    """Log what has been done, where the user wants to know each step."""
    if sandbox.verbose:
        log(f"{sandbox.program}: {milliseconds()} ms: {text}\n")


def milliseconds() -> int:
    """How long this program has been running."""
    return round(1000 * (time.monotonic() - BEGAN))
