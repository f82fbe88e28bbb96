"""The tables of README.md and docs/performance.md, from the measurements in bench/results.md."""

from __future__ import annotations

import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results.md"
SHORT = "In short"

WITHOUT = r"bare"
NATIVE = r"portwrap native|.*\bnative"
OTHERWISE = r"portwrap relay|portwrap slirp4netns"
"""The columns of the README, as results.md calls the ways: the first that fits counts."""

ROWS = (
    (SHORT, r"start, to the first", "start, to the first answer"),
    (SHORT, r"download, a server that only", "in: download from a server in the session"),
    (r"The way out|Outbound", r"download.*1 stream", "out: download by a program in the session"),
    (r"Outbound", r"upload.*1 stream", "out: upload by a program in the session"),
    (SHORT, r"memory", "memory for each of 100 sessions"),
)
"""Section of results.md, row in it, and what the README calls it."""

HEAD = "| | without | native | relay, slirp4netns |\n|---|---:|---:|---:|\n"


def sections() -> dict[str, str]:
    """The text below each heading of results.md."""
    parts = re.split(r"^## (.*)$", RESULTS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def rows(text: str) -> list[list[str]]:
    """The cells of a table; the head is the first row."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not row[0].startswith("---")]


def find_row(section: str, title: str) -> dict[str, str]:
    """The row whose title begins so, by the heads of its columns; empty where it was not measured.
    The unit is in its title or in its cells."""
    texts = [text for name, text in sections().items() if re.match(section, name)]
    head, *others = rows(texts[0]) if texts else [[""]]
    found = next((row for row in others if re.match(title, row[0])), [""])
    unit = re.search(r"\[(.*)\]", found[0])
    cells = [with_unit(cell, unit.group(1) if unit else "") for cell in found[1:]]
    return dict(zip(head[1:], cells))


def with_unit(cell: str, unit: str) -> str:
    """The comparison where there is one, else the figure with its unit."""
    compared = re.search(r"\((.*?)( ±.*)?\)", cell)
    if compared:
        return compared.group(1)
    return f"{cell} {unit}".strip() if cell[:1].isdigit() else cell


def pick(row: dict[str, str], ways: str) -> str:
    """The cell of the first way that fits."""
    return next((row[way] for way in row if re.fullmatch(ways, way)), "-")


def short() -> str:
    """What README.md shows."""
    lines = []
    for section, title, label in ROWS:
        row = find_row(section, title)
        cells = [pick(row, ways) for ways in (WITHOUT, NATIVE, OTHERWISE)]
        if row:
            lines.append(f"| {label} | {' | '.join(cells)} |\n")
    return HEAD + "".join(lines)


def speed() -> str:
    """What docs/performance.md shows: a chart, all ways, and the machine."""
    text = RESULTS.read_text()
    machine = next(line for line in text.splitlines() if " processors (" in line)
    table = sections().get(SHORT, "").strip()
    command = re.search(r"^`(.+)`$", text, re.MULTILINE)
    assert command
    picture = "![Start, requests, download and memory beside other ways](../bench/summary.svg)"
    return f"{picture}\n\n{table}\n\n`{command.group(1)}` on {machine}\n"
