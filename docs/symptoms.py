"""docs/troubleshooting.md: a heading for each message, below it the causes and their remedies."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

from portwrap.diagnostics.diagnostic import SYSTEMS, Diagnostic
from portwrap.diagnostics.remedies import topics

import manual

if TYPE_CHECKING:
    from collections.abc import Sequence


QUOTED = re.compile(r"(c\.[\w.]+ = |\w+=)?'([^']+)'")
OPTION = re.compile(
    r"`[^`]*`|(--(?:network|forward|outward) [a-z0-9]+"
    r"|(?<![\w-])--[a-z][\w-]*(?:=\w+|(?: /dev[\w/]+)+)?|PORTWRAP_\w+=\w+)"
)


def with_code(text: str, failure: str) -> str:
    """The text with what it quotes, settings and options set as code."""
    quoted = QUOTED.sub(
        lambda match: f"`{match[0]}`" if match[1] else f"`{match[2]}`",
        manual.written(text, failure),
    )
    return OPTION.sub(lambda match: f"`{match[1]}`" if match[1] else match[0], quoted)


def block(who: str, command: str, failure: str) -> str:
    return f"\n{who}:\n\n```sh\n{manual.written(command, failure)}\n```\n"


def remedy(row: Diagnostic, among_others: bool) -> str:
    """Cause, remedy, and the commands of each system."""
    cause = f"**{row.cause}**" if among_others else with_code(row.cause, row.failure)
    text = f"\n{cause} {with_code(row.remedy, row.failure)}".rstrip() + "\n"
    for system, command in row.commands.items():
        if command:
            who = f"{SYSTEMS[system]}, as root" if system else "As root"
            text += block(who, command, row.failure)
    return text


def symptom(example: str, rows: Sequence[Diagnostic]) -> str:
    """A message and each of its causes."""
    return f"\n### `{example}`\n" + "".join(remedy(row, len(rows) > 1) for row in rows)


def text() -> str:
    """All of them, by topic."""
    parts = []
    for title, rows in topics().items():
        parts.append(f"\n## {title}\n")
        for example, found in groupby(rows, key=lambda row: row.example):
            parts.append(symptom(example, list(found)))
    return "".join(parts) + "\n"
