"""The results in Markdown; docs/generate.py makes the tables of README.md and docs/ from them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from . import goals
from .results import Results
from .ways import BARE, CONTROL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rig import Figure, Size

NONE = "-"
FAILED = "failed"
TIMES = "\N{MULTIPLICATION SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


VERSIONS: Sequence[tuple[str, Sequence[str], str]] = (
    ("slirp4netns", ("slirp4netns", "--version"), r"version (\S+)"),
    ("pasta", ("pasta", "--version"), r"pasta (\d\S*)"),
    ("pasta", ("dpkg-query", "--show", "passt"), r"git(\d{8})"),  # Debian 12's does not know it
    ("bubblewrap", ("bwrap", "--version"), r"bubblewrap (\S+)"),
    ("RootlessKit", ("rootlesskit", "--version"), r"version (\S+)"),
    ("systemd", ("systemctl", "--version"), r"systemd (\d+)"),
    ("wrk", ("wrk", "--version"), r"wrk \D*(\d[\d.]*)"),
)


# -- tables ----------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits that count, and no more."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def compared(figure: Figure, name: str, with_spread: bool = True) -> str:
    """How a way compares with bare; nothing where there is nothing to compare."""
    found = figure.compared(name)
    if name == BARE or found is None:
        return ""
    digits = 3 if abs(found) < 0.1 else 2
    text = f"{found:+.{digits}f}" if figure.added else f"{TIMES} {found:.{digits}f}"
    if abs(found) >= 100:
        text = f"{found:+,.0f}" if figure.added else f"{TIMES} {found:,.0f}"
    spread = figure.spread(name)
    if not with_spread or spread is None:
        return text
    return f"{text} {PLUS_MINUS}{number(spread) if spread >= 0.005 else '0.00'}"


def cell(figure: Figure, name: str) -> str:
    """The median of a way, and how that compares with bare."""
    median = figure.median(name)
    if name in figure.failures:
        return FAILED
    if median is None:
        return NONE
    comparison = compared(figure, name)
    return f"{number(median)} ({comparison})" if comparison else number(median)


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


def markdown(results: Results, drawn: bool) -> str:
    """The whole of results.md."""
    lines = ["# Measurements", "", f"`{results.command}`", "", results.versions, "", results.size]
    lines += [
        "",
        "Medians. In brackets the comparison with bare, the same server without a sandbox, in the",
        f"same round: {TIMES} is the ratio (the median of the rounds' ratios), + the difference;",
        f"{PLUS_MINUS} is half the distance between the quartiles of the rounds. Less is better;",
        f"more, where there is an ↑. *{CONTROL}* is a second bare server: how far it is from",
        f"{TIMES} 1.00 is the noise of this run. But for outbound, all traffic is on the",
        "loopback interface: the client, the server and what is between them share the machine's",
        "processors.",
        "",
    ]
    if drawn:
        lines += ["![The same figures as a chart](results.svg)", ""]
    short = short_table(results)
    if short:
        lines += ["## In short", "", *short, ""]
    reached = goals.lines(results)
    if reached:
        lines += ["## Goals, and the worst figure for each", "", *reached, ""]
    for group in dict.fromkeys(figure.group for figure in results.figures):
        lines += [f"## {group}", "", *words_about(group)]
        lines += table([each for each in results.figures if each.group == group], results.names)
        lines.append("")
    lines += ["## The ways", ""]
    about = {way.name: way.about for way in (*results.special, *results.ways)}
    lines += [f"* **{name}**: {about[name]}" for name in results.names]
    lines += [f"* **{name}** was left out: {why}" for name, why in results.left_out.items()]
    failures = [*(f"* {note}" for note in results.notes), *failed_lines(results.figures)]
    if failures:
        lines += ["", "## What is missing", "", *failures]
    return "\n".join(lines) + "\n"


NOTES = {
    "Programs": (
        "Processor time. With any seccomp filter the kernel leaves its shortest path at each",
        "system call: what *any filter* adds, one that allows everything, containers add, too.",
        "Ours has to be compared with that. Since Linux 5.11 the kernel remembers which calls a",
        "filter always allows, and does not run it for these; ours asks the keeper at bind and",
        "listen, and where outbound is native at some others. Relayed sessions have no filter.",
    ),
    "Outbound": (
        "The server is on another host of the bench's own, behind a veth cable. No package has",
        "bypass4netns. Only root's bench measures rootlesskit: it needs subordinate uids.",
    ),
}
"""What a group's table does not tell by itself, by the group's beginning."""


def words_about(group: str) -> list[str]:
    """What stands above its table."""
    return [line for start in NOTES if group.startswith(start) for line in (*NOTES[start], "")]


def failed_lines(figures: Sequence[Figure]) -> list[str]:
    """Each figure that a way did not reach, and why; those that failed together on one line."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for figure in figures:
        for name, reason in figure.failures.items():
            found.setdefault((name, figure.group, reason), []).append(figure.title)
    return [f"* {name}, {titles[0]}: {reason}" for (name, _, reason), titles in found.items()]


# -- in short --------------------------------------------------------------------------------------

# Group, title (its beginning) and how the short table calls it.
SHORT = (
    ("Start", "first answer of a small server", "start, to the first answer"),
    ("Start under", "first answer", "the same under batchspawner-singleuser, from its hand-over"),
    ("Requests", "requests/s, 1 ", "requests/s, 1 connection"),
    ("Requests", "requests/s, 16 ", "requests/s, 16 connections"),
    ("Requests", "requests/s, 128 ", "requests/s, 128 connections"),
    ("Requests", "p99, 128 ", "slowest 1 % of requests, 128 connections"),
    ("Requests", "200 new", "200 new connections at once, last answer"),
    ("An application", "a page", "a page of a proxied application, 6 connections"),
    ("Round trips", "kernel message", "kernel message and reply, WebSocket"),
    ("Streams", "jupyter_server: download, 8", "download, jupyter_server, 8 streams"),
    ("Streams", "raw server: download, ", "download, a server that only sends"),
    ("Streams", "raw server: upload, ", "upload, a server that only receives"),
    ("Outbound", "download from inside, 1 ", "outbound: download, 1 stream"),
    ("Outbound", "upload from inside, 8 ", "outbound: upload, 8 streams"),
    ("Outbound", "connect to another", "outbound: a connection to another host"),
    ("What stays", "PSS, each of 100", "memory (PSS) of each of 100 sessions"),
    ("What stays", "wake-ups a minute when idle", "wake-ups a minute when idle"),
)


def short_table(results: Results) -> list[str]:
    """Bare in absolute figures, everything else compared with it."""
    names = [way.name for way in results.ways if way.name != CONTROL]
    rows = []
    for group, title, label in SHORT:
        for figure in results.figures:
            if figure.group.startswith(group) and figure.title.startswith(title):
                arrow = " ↑" if figure.more_is_better else ""
                cells = " | ".join(short_cell(figure, name) for name in names)
                rows.append(f"| {label}{arrow} | {cells} |")
                break
    return [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}", *rows] if rows else []


def short_cell(figure: Figure, name: str) -> str:
    """The comparison with bare where there is one, else the figure itself."""
    if name in figure.failures:
        return FAILED
    median = figure.median(name)
    if median is None:
        return NONE
    comparison = compared(figure, name, with_spread=False)
    if comparison and not figure.added:
        return comparison
    unit = f" {figure.unit}".replace(" /s", "/s") if figure.unit else ""
    return (comparison or number(median)) + unit


# -- the machine -----------------------------------------------------------------------------------


def version_line(hub_python: str) -> str:
    """The machine and the programs, in general terms."""
    found = [f"{os.cpu_count()} processors ({processor()})", f"{memory()} GiB"]
    found.append(f"Linux {kernel()}")
    found.append(f"Python {platform.python_version()}")
    asked = "import jupyter_server, tornado; print(jupyter_server.__version__, tornado.version)"
    if Path(hub_python).exists():
        server, tornado = answer([hub_python, "-c", asked]).split()
        found.append(f"jupyter_server {server} on tornado {tornado}")
    found.append(f"batchspawner-portwrap {project_version()}")
    for name, words, pattern in VERSIONS:
        match = re.search(pattern, answer(words)) if shutil.which(words[0]) else None
        if match and not found[-1].startswith(name):
            found.append(f"{name} {match.group(1)}")
    return ", ".join(found) + "."


def project_version() -> str:
    """Ours, of which this is a part."""
    from portwrap import __version__

    return __version__


def processor() -> str:
    """Its model, or at least its architecture."""
    match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return match.group(1) if match else platform.machine()


def describe(size: Size) -> str:
    """How much was measured."""
    return (
        f"{size.starts} starts ({size.few} of what takes seconds), {size.rounds} rounds of"
        f" everything else, or on a slow machine as many as the time allows, {size.seconds} s"
        f" of requests each, {size.idle:g} s of idling."
    )


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
