"""The results of --check: as lines for people, and as JSON."""

from __future__ import annotations

import os
import sys

from ..diagnostics import lookup
from ..diagnostics.diagnostic import this_system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ..diagnostics.errors import PortwrapError

OK, WARNING, FAILED = "ok", "warning", "failed"
COLOURS = {OK: "32", WARNING: "33", FAILED: "31"}


class Result:
    """What one check has found. `failure` is the identifier of what is not ok, if there is one;
    `message` is what a start would report, where the fact says something else."""

    def __init__(
        self,
        name: str,
        status: str,
        fact: str,
        failure: str = "",
        message: str = "",
        subject: str = "",
    ) -> None:
        self.name = name
        self.status = status
        self.fact = fact
        row = lookup.find(failure, message or fact, subject) if status != OK else None
        self.remedy = row.sentences(subject) if row else ""
        self.command = row.command(this_system(), subject) if row else ""

    def as_dict(self) -> dict[str, str]:
        """The documented keys of a check in JSON; a remedy only where there is one."""
        keys = ("name", "status", "fact", "remedy", "command")
        return {key: getattr(self, key) for key in keys if getattr(self, key)}


def refused(name: str, status: str, error: PortwrapError, note: str = "") -> Result:
    """The result of a check that failed as a start would."""
    return Result(name, status, error.message + note, error.failure, error.message, error.subject)


def as_text(program: str, facts: Mapping[str, Any]) -> str:
    """A line for each check, with the remedy below those that are not ok.

    Where srun runs this on several hosts, their lines arrive mixed: only what is not ok is listed,
    each line with its host.
    """
    checks = facts["checks"]
    host = ""
    lines = [f"{program} {facts['version']} on {facts['host']} ({facts['system'] or 'Linux'})"]
    if is_one_of_several():
        host, lines = f"{facts['host']}: ", []
        checks = [check for check in checks if check["status"] != OK]
    lines += _rows(checks)
    verdict = "A session would start here"
    if facts["failed"]:
        verdict = f"No session would start here, because of: {', '.join(facts['failed'])}"
    lines.append(f"{verdict} ({facts['milliseconds']} ms).")
    return "".join(f"{host}{line}\n" for line in lines)


def _rows(checks: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of these checks; a remedy that belongs to several stands once."""
    width = max((len(check["name"]) for check in checks), default=0) + 2
    margin = " " * (width + 9)
    lines = []
    printed: set[str] = set()
    for check in checks:
        lines.append(f"{in_colour(check['status'])}{check['name']:<{width}}{check['fact']}")
        remedies = [check.get("remedy", "")]
        remedies += [f"as root: {check['command']}"] if "command" in check else []
        for text in remedies:
            if text and text not in printed:
                lines.append(margin + text)
                printed.add(text)
    return lines


def is_one_of_several() -> bool:
    """Whether srun has started more of us (srun(1), output environment variables)."""
    return os.environ.get("SLURM_STEP_NUM_TASKS", "1") not in ("", "1")


def in_colour(status: str) -> str:
    """The status in a column of its own, in colour on a terminal (no-color.org)."""
    text = f"{status:<9}"
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{COLOURS[status]}m{text}\033[0m"
