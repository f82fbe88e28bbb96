"""Generate what is written down twice: parts of README.md and docs/, the manual page, and bash's
completions.

Usage: python3 docs/generate.py [--check]

The options come from the programs' own tables, the troubleshooting from
portwrap/diagnostics/remedies.py, the figures from bench/results.md.
With --check nothing is written; the exit status is 1 if a file is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from batchspawner_portwrap import PARSER  # noqa: E402
from portwrap import __main__, __version__  # noqa: E402
from portwrap.cli import help  # noqa: E402
from portwrap.diagnostics import errors  # noqa: E402
from portwrap.diagnostics.diagnostic import SYSTEMS, Diagnostic  # noqa: E402
from portwrap.diagnostics.remedies import table  # noqa: E402

import figures  # noqa: E402

MANUAL = "batchspawner-portwrap.1"
COMPLETIONS = "docs/completions.bash"

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
    "{subject}": "FILE",
}


# ---- README.md and docs/ ---------------------------------------------------------------------


def cell(text: str) -> str:
    """The text as it stands in a table: what looks like code set as code."""
    text = re.sub(r"'([^']+)'", r"`\1`", text.replace("|", "\\|"))
    return text


def written(text: str) -> str:
    """A text of the table of remedies, with names for what is known only where something failed."""
    for field, name in NAMES.items():
        text = text.replace(field, name)
    return text


def remedy(row: Diagnostic) -> str:
    """Cause, remedy, and the commands of every system."""
    parts = [cell(written(row.cause)), cell(written(row.remedy))]
    for system, command in row.commands.items():
        who = f"{SYSTEMS[system]}: " if system else ""
        text = written(command).replace("|", "\\|")
        parts.append(f"{who}`{text}`." if command else "")
    return " ".join(part for part in parts if part)


def troubleshooting() -> str:
    rows = [f"| `{row.example}` | {remedy(row)} |\n" for row in table()]
    return "| the log has | cause and remedy; commands are for root |\n|---|---|\n" + "".join(rows)


def options() -> str:
    rows = []
    for title, found in help.topics(PARSER):
        rows.append(f"| **{title}** | |\n")
        for option in found:
            names = ", ".join(f"`{name}`" for name in option.names)
            value = f" `{option.value}`" if option.value else ""
            rows.append(f"| {names}{cell(value)} | {cell(option.text)} |\n")
    return "| option | meaning |\n|---|---|\n" + "".join(rows)


def statuses() -> str:
    rows = [f"| {status} | {meaning} |\n" for status, meaning in STATUSES]
    return "| status | meaning |\n|---|---|\n" + "".join(rows)


BLOCKS = {
    "README.md": {"performance": figures.short},
    "docs/configuration.md": {"options": options, "statuses": statuses},
    "docs/performance.md": {"speed": figures.speed},
    "docs/troubleshooting.md": {"troubleshooting": troubleshooting},
}
"""The generated parts of each page."""


def page(name: str) -> str:
    """The page with its generated parts made anew, each between two comments."""
    text = (PROJECT / name).read_text()
    for block, make in BLOCKS[name].items():
        begin, end = f"<!-- {block}: made by docs/generate.py -->\n", f"<!-- end of {block} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{name}: not one pair of comments for {block}")
        before, _, rest = text.partition(begin)
        text = before + begin + make() + end + rest.partition(end)[2]
    return text


# ---- the manual page -------------------------------------------------------------------------


def roff(text: str) -> str:
    """The text with what roff would take for its own escaped."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return re.sub(r"^\.", r"\\&.", escaped, flags=re.MULTILINE)


def manual() -> str:
    """The manual page, man(7)."""
    about = [f".P\n{roff(part)}\n" for part in PARSER.about.split("\n\n")]
    about = [part.replace("\n  c.", "\n.RS\n.nf\nc.") for part in about]
    about = [f"{part}.fi\n.RE\n" if ".nf" in part else part for part in about]
    lines = [
        '.\\" made by docs/generate.py\n',
        f'.TH BATCHSPAWNER\\-PORTWRAP 1 "" "version {__version__}"\n',
        ".SH NAME\nbatchspawner\\-portwrap \\- a Jupyter server in a network of its own\n",
        f".SH SYNOPSIS\n.nf\n{roff(PARSER.usage)}\n",
        "batchspawner\\-portwrap \\-\\-check [\\-\\-json] [\\-\\-hub URL]\n.fi\n",
        f".SH DESCRIPTION\n{''.join(about)}",
        ".SH OPTIONS\n",
    ]
    for title, found in help.topics(PARSER):
        lines.append(f".SS {roff(title)}\n")
        for option in found:
            names = ", ".join(f"\\fB{roff(name)}\\fR" for name in option.names)
            value = f" \\fI{roff(option.value)}\\fR" if option.value else ""
            lines.append(f".TP\n{names}{value}\n{roff(option.text)}\n")
    lines.append(f".SH ENVIRONMENT\n{roff(help.PRECEDENCE)}")
    for option in PARSER.settable:
        lines.append(f".TP\n\\fB{option.variable}\\fR\n{roff(option.names[-1])}\n")
    lines.append(".SH EXIT STATUS\n")
    lines += [f".TP\n{status}\n{roff(meaning)}\n" for status, meaning in STATUSES]
    lines.append(".SH EXAMPLES\n.nf\n")
    lines += [f"{roff(line)}\n" for line in PARSER.examples]
    lines.append(".fi\n.SH DIAGNOSTICS\n")
    for row in table():
        text = roff(written(f"{row.cause} {row.remedy}".rstrip()))
        lines.append(f".TP\n{roff(row.example)}\n{text}\n")
        for system, command in row.commands.items():
            who = f" on {SYSTEMS[system]}" if system else ""
            lines.append(f".br\nAs root{who}: {roff(written(command))}\n" if command else "")
    lines.append(".SH SEE ALSO\nuser_namespaces(7), slirp4netns(1), pasta(1)\n")
    return "".join(lines)


# ---- completions -----------------------------------------------------------------------------


def completions() -> str:
    """What bash offers for our options; for all else, files."""
    lines = ["# made by docs/generate.py; for bash: . docs/completions.bash\n"]
    for parser, suffixes in ((PARSER, ("", ".pyz")), (__main__.PARSER, ("",))):
        names = " ".join(name for option in parser.options for name in option.names)
        programs = " ".join(parser.program + suffix for suffix in suffixes)
        lines.append(f"complete -o default -W '{names}' {programs}\n")
    return "".join(lines)


def main() -> int:
    wanted = {PROJECT / name: page(name) for name in BLOCKS}
    wanted[PROJECT / MANUAL] = manual()
    wanted[PROJECT / COMPLETIONS] = completions()
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text() != text]
    for file in stale:
        print(f"{file.name}: {'out of date' if checking() else 'generated'}")
        if not checking():
            file.write_text(wanted[file])
    return 1 if stale and checking() else 0


def checking() -> bool:
    return "--check" in sys.argv[1:]


if __name__ == "__main__":
    sys.exit(main())
