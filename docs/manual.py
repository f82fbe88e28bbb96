"""The manual pages, in man(7)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from batchspawner_portwrap import PARSER
from portwrap import __main__, __version__
from portwrap.cli import help
from portwrap.diagnostics import errors
from portwrap.diagnostics.diagnostic import SYSTEMS, Diagnostic
from portwrap.diagnostics.errors import Failure
from portwrap.diagnostics.remedies import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from portwrap.cli.parser import Parser

STATUSES = (
    (str(errors.EXIT_USAGE), "invalid command line or environment"),
    (str(errors.EXIT_SANDBOX), "the sandbox could not be made; of --check: no session would start"),
    (str(errors.EXIT_NOT_EXECUTABLE), "the command was found but cannot be executed"),
    (str(errors.EXIT_NOT_FOUND), "the command was not found"),
    ("any other", "the command's exit status, or the signal that killed it"),
)

NAMES = {
    "{check}": "batchspawner-portwrap.pyz",
    "{singleuser}": "/path/of/batchspawner-singleuser",
}
SUBJECTS = {
    Failure.NO_BYTE_CODE: "/path/of/python3",
    Failure.HIDDEN: "'ADDRESS NAME'",
    Failure.API: "NAME",
}
"""What a failure is about, if not a file."""

PURPOSE = {
    PARSER.program: "run a Jupyter server in a network namespace of its own",
    __main__.PARSER.program: "run a command in a network namespace of its own",
}
OTHER_USES = {PARSER.program: ["--check [--json] [--hub URL]", "--check --apparmor [PROGRAM ...]"]}
SEE_ALSO = "user_namespaces(7), network_namespaces(7), slirp4netns(1), pasta(1)"
NO_HYPHENS = ".nr HY 0\n.nh\n.ad l\n"
"""What is to be pasted must not be broken at a hyphen, nor have its spaces widened."""


def written(text: str, failure: str) -> str:
    """A text of the table of remedies, with names for what is known only where something failed."""
    for field, name in NAMES.items():
        text = text.replace(field, name)
    return text.replace("{subject}", SUBJECTS.get(failure, "FILE"))


def roff(text: str) -> str:
    """The text with what roff would take for its own escaped, in ASCII."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    escaped = escaped.replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    escaped = escaped.replace("~", "\\(ti")
    return re.sub(r"^\.", r"\\&.", escaped, flags=re.MULTILINE)


def example(*lines: str) -> str:
    """Lines that are shown as they are."""
    shown = "".join(f"{roff(line)}\n" for line in lines)
    return f".RS\n.EX\n{shown}.EE\n.RE\n"


def about(parser: Parser) -> str:
    """Paragraphs; an indented one is an example."""
    parts = []
    for part in parser.about.split("\n\n"):
        words = "\n".join(line for line in part.splitlines() if not line.startswith(" "))
        code = [line.strip() for line in part.splitlines() if line.startswith(" ")]
        parts.append(f".P\n{roff(words)}\n" if words else "")
        parts.append(example(*code) if code else "")
    return "".join(parts)


def synopsis(parser: Parser) -> str:
    lines = [parser.usage]
    lines += [f"{parser.program} {use}" for use in OTHER_USES.get(parser.program, ())]
    return "".join(f".br\n{roff(line)}\n" for line in lines).replace(".br\n", "", 1)


def options(parser: Parser) -> str:
    lines = []
    for title, found in help.topics(parser):
        lines.append(f".SS {roff(title)}\n")
        for option in found:
            names = ", ".join(f"\\fB{roff(name)}\\fR" for name in option.names)
            value = f" \\fI{roff(option.value)}\\fR" if option.value else ""
            lines.append(f".TP\n{names}{value}\n{roff(option.text)}\n")
    return "".join(lines)


def environment(parser: Parser) -> str:
    lines = [roff(help.PRECEDENCE)]
    for option in parser.settable:
        lines.append(f".TP\n\\fB{roff(option.variable)}\\fR\n{roff(option.names[-1])}\n")
    return "".join(lines)


def statuses(_: Parser) -> str:
    return "".join(f".TP\n{status}\n{roff(meaning)}\n" for status, meaning in STATUSES)


def remedy(row: Diagnostic) -> str:
    """One failure, its cause and remedy, and the commands of each system."""
    text = written(f"{row.cause} {row.remedy}".rstrip(), row.failure)
    lines = [f".TP\n{roff(row.example)}\n{roff(text)}\n"]
    for system, command in row.commands.items():
        if command:
            who = f"{SYSTEMS[system]}, as root:" if system else "As root:"
            lines.append(f".br\n{roff(who)}\n{example(written(command, row.failure))}")
    return "".join(lines)


def diagnostics(parser: Parser) -> str:
    if parser is not PARSER:
        return f"See \\fB{roff(PARSER.program)}\\fR(1).\n"
    return "".join(remedy(row) for row in table())


def examples(parser: Parser) -> str:
    return example(*parser.examples)


def see_also(parser: Parser) -> str:
    (other,) = {PARSER.program, __main__.PARSER.program} - {parser.program}
    return f"\\fB{roff(other)}\\fR(1), {roff(SEE_ALSO)}\n"


SECTIONS: tuple[tuple[str, Callable[[Parser], str]], ...] = (
    ("SYNOPSIS", synopsis),
    ("DESCRIPTION", about),
    ("OPTIONS", options),
    ("ENVIRONMENT", environment),
    ("EXIT STATUS", statuses),
    ("EXAMPLES", examples),
    ("DIAGNOSTICS", diagnostics),
    ("SEE ALSO", see_also),
)


def page(parser: Parser) -> str:
    """The manual page of this program."""
    name = roff(parser.program)
    return "".join(
        [
            '.\\" made by docs/generate.py\n',
            f'.TH {name.upper()} 1 "" "version {__version__}"\n{NO_HYPHENS}',
            f".SH NAME\n{name} \\- {roff(PURPOSE[parser.program])}\n",
            *(f".SH {title}\n{make(parser)}" for title, make in SECTIONS),
        ]
    )
