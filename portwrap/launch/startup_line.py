"""The start-up line in the job's log: what is forwarded, what leaves, and how long it took."""

from __future__ import annotations

import time

from .. import BEGAN, __version__
from ..diagnostics.log import log
from . import ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .sandbox import Sandbox
    from .services import Service


def what_was_made(
    sandbox: Sandbox, forward: str, outbound: str, ssh_folders: str, resolvers: Sequence[Service]
) -> dict[str, str]:
    """What a session has besides its host port; "" for nothing."""
    return {
        "forward": forward,
        "way out": outbound,
        "private views": ssh_folders,
        "clients from": sandbox.allow_from.replace(",", ", "),
        "published": ports.describe_pairs(sandbox.published),
        "host's own inside": ", ".join(map(str, [*sandbox.host_services, *resolvers])),
    }


def log_what_was_made(sandbox: Sandbox, facts: Mapping[str, Any]) -> None:
    """Write the start-up line."""
    told = "; ".join(f"{name} {fact}" for name, fact in facts.items() if fact)
    log(
        f"{sandbox.program}: version {__version__}; {sandbox.address} leads to port"
        f" {sandbox.guest_port} inside; {told}; {milliseconds()} ms\n"
    )


def log_step(sandbox: Sandbox, text: str) -> None:
    """Log what has been done, where the user wants to know each step."""
    if sandbox.verbose:
        log(f"{sandbox.program}: {milliseconds()} ms: {text}\n")


def milliseconds() -> int:
    """How long this program has been running."""
    return round(1000 * (time.monotonic() - BEGAN))
