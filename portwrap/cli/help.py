"""The text of --help, by topic. The manual page and the documentation's table are made of the same
rows (docs/generate.py)."""

from __future__ import annotations

from textwrap import fill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .parser import Option, Parser

TOPICS: Sequence[tuple[str, Sequence[str]]] = (
    ("Ports", ("port", "host-port", "host", "guest-port", "publish", "allow-from")),
    ("Node check", ("check", "json", "hub", "apparmor")),
    ("Output", ("verbose", "quiet", "help", "version")),
)
"""The options by what they are about; all others are about the sandbox."""
OTHERS = "Sandbox"
LINE = 100
"""Columns of a line."""

PRECEDENCE = """\
Every option can also be set by an environment variable, except those of 'Node check', --help and
--version: --guest-port by PORTWRAP_GUEST_PORT, for example, and a switch by 1 or 0. The command
line overrides the environment, and the environment the default. An empty variable counts as unset,
except PORTWRAP_ALLOW_FROM, where it is an error.
"""


def topics(parser: Parser) -> list[tuple[str, list[Option]]]:
    """The options of this program under their headings."""
    named = {key for _, keys in TOPICS for key in keys}
    by_key = {option.key: option for option in parser.options}
    found = [(title, [by_key[key] for key in keys if key in by_key]) for title, keys in TOPICS]
    others = [option for option in parser.options if option.key not in named]
    found.insert(1, (OTHERS, others))
    return [(title, options) for title, options in found if options]


def left_side(option: Option) -> str:
    """The option as it is written: its names and its value."""
    return ", ".join(option.names) + f" {option.value}".rstrip()


def row(option: Option, width: int) -> str:
    """The option and its help, which is folded beside it."""
    margin = " " * (width + 2)
    return (
        fill(
            option.text,
            LINE,
            initial_indent=f"  {left_side(option):<{width}}",
            subsequent_indent=margin,
            break_on_hyphens=False,
        )
        + "\n"
    )


def text(parser: Parser) -> str:
    """All of --help."""
    width = max(len(left_side(option)) for option in parser.options) + 2
    parts = [f"usage: {parser.usage}\n\n{parser.about}\n"]
    for title, options in topics(parser):
        rows = [row(option, width) for option in options]
        parts.append(f"\n{title}:\n{''.join(rows)}")
    examples = "".join(f"  {line}\n" for line in parser.examples)
    return f"{''.join(parts)}\nExamples:\n{examples}\n{PRECEDENCE}"
