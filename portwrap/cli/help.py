"""The text of --help, by topic. The manual page and the README's table are made of the same rows
(docs/generate.py)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .parser import Option, Parser

TOPICS: Sequence[tuple[str, Sequence[str]]] = (
    ("Where it listens", ("port", "host-port", "host", "guest-port", "publish", "allow-from")),
    ("Looking at a node", ("check", "json", "hub", "apparmor")),
    ("What it says", ("verbose", "quiet", "help", "version")),
)
"""The options by what they are about; all others are about the sandbox."""
OTHERS = "The sandbox"

EXAMPLES = {
    "batchspawner-portwrap": (
        "batchspawner-portwrap.pyz --port 40001 jupyterhub-singleuser    # by hand",
        "srun -N4 /path/batchspawner-portwrap.pyz --check    # would a session start there?",
    ),
    "portwrap": ("portwrap -p 40001 -P 8000 python3 -m http.server {guest-port}",),
}

PRECEDENCE = """\
Every option but those of 'Looking at a node', --help and --version can come from the environment:
--guest-port as PORTWRAP_GUEST_PORT, a switch as 1 or 0. The command line wins over the
environment, and that over the default. An empty variable counts as none, but for
PORTWRAP_ALLOW_FROM, where it is an error.
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


def text(parser: Parser) -> str:
    """All of --help."""
    width = max(len(left_side(option)) for option in parser.options) + 2
    parts = [f"usage: {parser.usage}\n\n{parser.about}\n"]
    for title, options in topics(parser):
        rows = [f"  {left_side(option):<{width}}{option.text}\n" for option in options]
        parts.append(f"\n{title}:\n{''.join(rows)}")
    examples = "".join(f"  {line}\n" for line in EXAMPLES[parser.program])
    return f"{''.join(parts)}\nExamples:\n{examples}\n{PRECEDENCE}"
