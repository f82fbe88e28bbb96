"""The results as a table in Markdown and as a chart."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ways import BARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .measures import Figure
    from .ways import Way

OURS = "portwrap"  # our rows' names begin with it
OUR_COLOURS = ("#d9480f", "#f08c00")
RIVAL_COLOURS = ("#364fc7", "#1098ad", "#5c940d", "#868e96", "#ae3ec9", "#adb5bd")
NONE = "-"
TIMES = "\N{MULTIPLICATION SIGN}"

VERSIONS: Sequence[tuple[str, Sequence[str], str]] = (
    ("slirp4netns", ("slirp4netns", "--version"), r"version (\S+)"),
    ("pasta", ("pasta", "--version"), r"pasta (\d\S*)"),
    ("bubblewrap", ("bwrap", "--version"), r"bubblewrap (\S+)"),
    ("RootlessKit", ("rootlesskit", "--version"), r"version (\S+)"),
    ("systemd", ("systemctl", "--version"), r"systemd (\d+)"),
    ("wrk", ("wrk", "--version"), r"wrk \D*(\d[\d.]*)"),
)


# -- the table -------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits that count, and no more."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cell(figure: Figure, name: str) -> str:
    """The median of a way, and how that compares with bare."""
    if name in figure.failures:
        return "failed"
    median = figure.median(name)
    if median is None:
        return NONE
    text = number(median)
    difference, ratio = figure.difference(name), figure.ratio(name)
    if name == BARE or difference is None or ratio is None:
        return text
    return f"{text} ({difference:+.2f})" if figure.added else f"{text} ({TIMES} {ratio:.2f})"


def table(figures: Sequence[Figure], names: Sequence[str]) -> list[str]:
    """One group of figures, a column for each way."""
    shown = [name for name in names if any(cell(figure, name) != NONE for figure in figures)]
    lines = [f"| | {' | '.join(shown)} |", f"|---|{'---:|' * len(shown)}"]
    for figure in figures:
        unit = f" [{figure.unit}]" if figure.unit else ""
        arrow = " ↑" if figure.more_is_better else ""
        cells = " | ".join(cell(figure, name) for name in shown)
        lines.append(f"| {figure.title}{unit}{arrow} | {cells} |")
    return lines


def markdown(
    figures: Sequence[Figure],
    ways: Sequence[Way],
    left_out: Mapping[str, str],
    command: str,
    size: str,
    versions: str,
) -> str:
    """The whole of results.md."""
    names = [way.name for way in ways]
    lines = ["# Measurements", "", f"`{command}`", "", versions, "", size, ""]
    lines += [
        "Medians. In brackets the comparison with bare, the same server without a sandbox, in the",
        f"same round: {TIMES} is the ratio (the median of the rounds' ratios), + the difference.",
        "Less is better; more, where there is an ↑. All traffic is on the loopback interface: the",
        "client, the server and what is between them share the machine's processors.",
        "",
        "![The same figures as a chart](results.svg)",
        "",
    ]
    groups = list(dict.fromkeys(figure.group for figure in figures))
    for group in groups:
        lines += [f"## {group}", ""]
        lines += table([figure for figure in figures if figure.group == group], names)
        lines.append("")
    lines += ["## The ways", "", *(f"* **{way.name}**: {way.about}" for way in ways)]
    lines += [f"* **{name}** was left out: {reason}" for name, reason in left_out.items()]
    failures = failed_lines(figures)
    if failures:
        lines += ["", "## What failed", "", *failures]
    return "\n".join(lines) + "\n"


def failed_lines(figures: Sequence[Figure]) -> list[str]:
    """Each figure that a way did not reach, and why."""
    return [
        f"* {name}, {figure.title}: {reason}"
        for figure in figures
        for name, reason in figure.failures.items()
    ]


def version_line(hub_python: str) -> str:
    """The machine and the programs, in general terms."""
    found = [f"{os.cpu_count()} processors", f"{memory()} GiB", f"Linux {kernel()}"]
    found.append(f"Python {platform.python_version()}")
    asked = "import jupyter_server, tornado; print(jupyter_server.__version__, tornado.version)"
    server, tornado = answer([hub_python, "-c", asked]).split()
    found.append(f"jupyter_server {server} on tornado {tornado}")
    for name, words, pattern in VERSIONS:
        match = re.search(pattern, answer(words)) if shutil.which(words[0]) else None
        if match:
            found.append(f"{name} {match.group(1)}")
    return ", ".join(found) + "."


def answer(words: Sequence[str]) -> str:
    """What a program says about itself."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode(errors="replace")


def memory() -> int:
    """GiB of this machine, rounded."""
    kilobytes = Path("/proc/meminfo").read_text().split()[1]
    return round(int(kilobytes) / 1024**2)


def kernel() -> str:
    """Version of the kernel, without what a distribution or site has added."""
    match = re.match(r"\d+\.\d+", platform.release())
    return match.group() if match else platform.release()


# -- the chart -------------------------------------------------------------------------------------


def chart(figures: Sequence[Figure], ways: Sequence[Way], path: Path, below: str) -> None:
    """Draw the figures that matter most."""
    import matplotlib  # type: ignore[import-not-found]

    matplotlib.use("svg")
    import matplotlib.pyplot as plt  # type: ignore[import-not-found]

    plt.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    by_title = {figure.title: figure for figure in figures}
    names = [way.name for way in ways]
    panels = [
        ("Added to the start [ms]", ["the command's first instruction"], "added"),
        ("Requests/s, ratio to bare", _many("requests/s, {}"), "ratio"),
        ("p99, ratio to bare", _many("p99, {}"), "ratio-log"),
        (
            "200 connections at once, ratio to bare",
            ["200 new connections, last answer"],
            "ratio-log",
        ),
        ("Download, ratio to bare", _starting(by_title, "download"), "ratio"),
        ("Memory for each session: PSS [MB]", ["PSS, each of 10 sessions"], "value"),
    ]
    drawn = [panel for panel in panels if any(title in by_title for title in panel[1])]
    if not drawn:
        return
    rows = (len(drawn) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(10, 2.9 * rows), squeeze=False)
    for axis, (heading, titles, kind) in zip(axes.flat, drawn):
        _panel(axis, heading, [by_title[t] for t in titles if t in by_title], names, kind)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.set_axis_off()
    figure.text(0.01, 0.005, below, fontsize=7, color="#495057")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _many(pattern: str) -> list[str]:
    return [pattern.format(n) for n in ("1 connection", "16 connections", "128 connections")]


def _starting(by_title: Mapping[str, Figure], word: str) -> list[str]:
    return [title for title in by_title if word in title and "8 streams" not in title]


def _value(figure: Figure, name: str, kind: str) -> float | None:
    if name in figure.failures:
        return None
    if kind == "value":
        return figure.median(name)
    return figure.difference(name) if kind == "added" else figure.ratio(name)


def _panel(
    axis: Any, heading: str, figures: Sequence[Figure], names: Sequence[str], kind: str
) -> None:
    """Horizontal bars: a line for each way, a bar for each figure."""
    shown = [n for n in names if n != BARE and any(_value(f, n, kind) is not None for f in figures)]
    colours = _colours(names)
    height = 0.8 / len(figures)
    for place, name in enumerate(reversed(shown)):
        for index, figure in enumerate(figures):
            value = _value(figure, name, kind)
            if value is None:
                continue
            y = place + 0.4 - height * (index + 0.5)
            axis.barh(y, value, height * 0.9, color=colours[name], alpha=1 - 0.22 * index)
            label = f" {number(value)}" + (f"  ({_short(figure)})" if len(figures) > 1 else "")
            axis.text(value, y, label, va="center", fontsize=7)
    if kind in ("added", "ratio-log"):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    if kind.startswith("ratio"):
        axis.axvline(1, color="#212529", linewidth=0.8)
    axis.margins(x=0.25)
    axis.set_yticks(range(len(shown)), list(reversed(shown)))
    axis.set_title(heading, loc="left", fontsize=10)


def _short(figure: Figure) -> str:
    """What tells the bars of one way from each other."""
    match = re.search(r"(\d+) connection", figure.title)
    return match.group(1) if match else figure.title.partition(":")[0]


def _colours(names: Sequence[str]) -> dict[str, str]:
    ours = [name for name in names if name.startswith(OURS)]
    rivals = [name for name in names if name != BARE and name not in ours]
    colours = dict(zip(ours, OUR_COLOURS * len(ours)))
    colours.update(zip(rivals, RIVAL_COLOURS * len(rivals)))
    return colours
