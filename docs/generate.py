"""Generate what is written down twice: parts of README.md and docs/, the manual pages, and
bash's completions.

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
from portwrap import __main__  # noqa: E402
from portwrap.cli import help  # noqa: E402

import completion  # noqa: E402
import figures  # noqa: E402
import manual  # noqa: E402
import symptoms  # noqa: E402

# ---- README.md and docs/ ---------------------------------------------------------------------


def cell(text: str) -> str:
    """The text as it stands in a table: what looks like code set as code."""
    text = re.sub(r"'([^']+)'", r"`\1`", text.replace("|", "\\|"))
    return text


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
    rows = [f"| {status} | {meaning} |\n" for status, meaning in manual.STATUSES]
    return "| status | meaning |\n|---|---|\n" + "".join(rows)


BLOCKS = {
    "README.md": {"performance": figures.short},
    "docs/configuration.md": {"options": options, "statuses": statuses},
    "docs/performance.md": {"speed": figures.speed},
    "docs/troubleshooting.md": {"troubleshooting": symptoms.text},
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


# ---- the rest --------------------------------------------------------------------------------


def share() -> dict[str, str]:
    """Manual pages and completions, which the wheel installs."""
    made = {}
    for parser, others in ((PARSER, [f"{PARSER.program}.pyz"]), (__main__.PARSER, [])):
        name = parser.program
        made[f"share/man/man1/{name}.1"] = manual.page(parser)
        completions = completion.script(parser, name, *others)
        made[f"share/bash-completion/completions/{name}"] = completions
    return made


def main() -> int:
    wanted = {PROJECT / name: page(name) for name in BLOCKS}
    wanted.update((PROJECT / name, text) for name, text in share().items())
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
