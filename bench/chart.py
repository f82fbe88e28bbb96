"""The results as a chart: bars where ways are compared, curves where something grows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .growth import CONNECTIONS, LATENCY, STARTS, curve
from .report import number
from .ways import ANY_FILTER, BARE, CONTROL, OURS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .results import Results
    from .rig import Figure

# Those of Okabe and Ito, which the colour-blind can tell apart, and some between.
OUR_COLOURS = ("#d55e00", "#e69f00", "#8c3b00", "#f5c55a")
RIVAL_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#495057", "#882255")
BARE_COLOUR, FILTER_COLOUR = "#adb5bd", "#868e96"
MARKERS = "os^Dv*"
BAR_HEIGHT, PANEL_HEIGHT, CURVE_HEIGHT, FOOT = 0.13, 1.1, 2.7, 0.6  # inches
LEAST_BARS = 8


class Panel(NamedTuple):
    """One picture of bars. A figure belongs to it whose group and title match."""

    heading: str
    group: str
    title: str
    kind: str  # added, ratio or value
    logarithmic: bool = False
    in_summary: bool = False


PANELS = (
    Panel("Added to the start, to the first answer [ms]", "Start", "small s", "added", True, True),
    Panel("Requests/s (connections)", "Requests", "requests/s", "ratio", in_summary=True),
    Panel("Slowest 1 % of requests (connections)", "Requests", "p99,", "ratio"),
    Panel("200 connections at once", "Requests", "200 new", "ratio"),
    Panel("A page of a proxied application", "An appl", "a page", "ratio", True),
    Panel("Added to a kernel's message and reply [ms]", "Round", "kernel", "added"),
    Panel("Download", "Streams", "download, [^8]", "ratio", in_summary=True),
    Panel("Upload", "Streams", "upload|saving", "ratio"),
    Panel("Download and upload from inside", "Outbound", "load", "ratio", in_summary=True),
    Panel("Connect to another host [µs]", "Outbound", "connect to another", "value"),
    Panel("Programs of system calls, processor time", "Programs", "^(dd|find|git)", "ratio"),
    Panel(
        *("Memory of each session, PSS [MB] (sessions)", "What stays"),
        *("^PSS, (each|1 session$)", "value"),
        in_summary=True,
    ),
)
SHORTER = (
    ("at once$", "acknowledged at once"),
    ("kernel message", "usual client"),
    ("saving", "saving a file"),
    ("jupyter_server: ", "jupyter_server"),
    ("raw server: upload, 8", "raw, 8 streams"),
    ("raw server: ", "raw"),
    ("PSS, 1 session", "1"),
    ("^dd", "dd of single bytes"),
    ("^find", "find"),
    ("^git", "git status"),
)
"""What tells the bars of a panel from each other."""
CURVES = (
    (STARTS, "Time to the first answer [ms]", "sessions on the node"),
    (LATENCY, "A request [ms]", "sessions on the node"),
    (CONNECTIONS, "A request to jupyter_server [ms]", "open connections of the session"),
)


def draw(results: Results, folder: Path) -> list[str]:
    """Draw results.svg, and summary.svg for docs/; returns which of them there are. None:
    there is no figure for it, or no plotting library."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return []
    matplotlib.use("svg")
    panels = [(panel, _figures_of(panel, results)) for panel in PANELS]
    panels = [(panel, figures) for panel, figures in panels if figures]
    first = [(panel, figures) for panel, figures in panels if panel.in_summary]
    curves = [each for each in CURVES if any(_points(results, each[0]).values())]
    drawn = []
    for name, bars, lines in (("results.svg", panels, curves), ("summary.svg", first, [])):
        if bars or lines:
            _draw(results, bars, lines, folder / name)
            drawn.append(name)
    return drawn


def _draw(
    results: Results,
    panels: Sequence[tuple[Panel, Sequence[Figure]]],
    curves: Sequence[tuple[str, str, str]],
    path: Path,
) -> None:
    import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    plt.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"figure.facecolor": "white", "legend.frameon": False})
    heights = [_height(panel, figures, results.names) for panel, figures in panels]
    heights += [CURVE_HEIGHT] * len(curves)
    rows = [max(heights[index : index + 2]) for index in range(0, len(heights), 2)]
    figure, axes = plt.subplots(
        *(len(rows), 2),
        figsize=(11, sum(rows) + FOOT),
        squeeze=False,
        gridspec_kw={"height_ratios": rows},
    )
    free = list(axes.flat)
    for panel, figures in panels:
        _bars(free.pop(0), panel, figures, results.names)
    for name, heading, along in curves:
        _lines(free.pop(0), heading, along, _points(results, name), results.names)
    for axis in free:
        axis.set_axis_off()
    below = f"{results.command}\n{results.versions}"
    figure.text(0.01, 0.004, _wrapped(below, 170), fontsize=7, color="#495057", va="bottom")
    figure.tight_layout(rect=(0, FOOT / (sum(rows) + FOOT), 1, 1), w_pad=2)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    # The library leaves blanks at the ends of lines.
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def _shown(panel: Panel, figures: Sequence[Figure], names: Sequence[str]) -> list[str]:
    """The ways that have a bar, or have failed to."""
    return [
        name
        for name in names
        if any(name in figure.failures or _has(panel, figure, name) for figure in figures)
        # nothing to see of the noise next to milliseconds
        and not (panel.kind == "added" and name == CONTROL)
    ]


def _has(panel: Panel, figure: Figure, name: str) -> bool:
    return _value(figure, name, panel.kind) is not None


def _height(panel: Panel, figures: Sequence[Figure], names: Sequence[str]) -> float:
    bars = len(figures) * len(_shown(panel, figures, names))
    return PANEL_HEIGHT + BAR_HEIGHT * max(LEAST_BARS, bars)


def _figures_of(panel: Panel, results: Results) -> list[Figure]:
    return [
        each
        for each in results.figures
        if each.group.startswith(panel.group)
        and "singleuser" not in each.group
        and re.search(panel.title, each.title)
        and any(_has(panel, each, name) for name in results.names)
    ]


def _value(figure: Figure, name: str, kind: str) -> float | None:
    if name in figure.failures or name == BARE:
        return None
    return figure.median(name) if kind == "value" else figure.compared(name)


def _bars(axis: Any, panel: Panel, figures: Sequence[Figure], names: Sequence[str]) -> None:
    """A line for each way, a bar for each figure."""
    colours = _colours(names)
    names = _shown(panel, figures, names)
    height = 0.8 / len(figures)
    # No line through the labels.
    style = {"va": "center", "fontsize": 6.5}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    for place, name in enumerate(reversed(names)):
        for index, figure in enumerate(figures):
            value, y = _value(figure, name, panel.kind), place + 0.4 - height * (index + 0.5)
            which = f"  ({_short(figure)})" if len(figures) > 1 else ""
            if value is not None:
                fade = 1 - 0.66 * index / max(3, len(figures) - 1)
                axis.barh(y, value, height * 0.9, color=colours[name], alpha=fade)
                axis.text(max(value, 0), y, f" {number(value)}{which}", **style)
            elif name in figure.failures:
                transform = axis.get_yaxis_transform()  # at the axis, wherever that begins
                axis.text(0, y, f" failed{which}", transform=transform, color="#c92a2a", **style)
    if panel.logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    if panel.kind == "ratio":
        axis.axvline(1, color="#212529", linewidth=0.8, zorder=2)
    axis.margins(x=0.3)
    labels = [name.replace(" of Debian", "\nof Debian") for name in reversed(names)]
    axis.set_yticks(range(len(names)), labels)
    ratio = "ratio to bare; " if panel.kind == "ratio" else ""
    better = "more" if figures[0].more_is_better else "less"
    axis.set_xlabel(f"{ratio}{better} is better", fontsize=8)
    axis.set_title(panel.heading, loc="left", fontsize=10)


def _short(figure: Figure) -> str:
    """What tells the bars of one way from each other."""
    match = re.search(r"(\d+) connections?$|each of (\d+)", figure.title)
    if match:
        return match.group(1) or match.group(2)
    for pattern, short in SHORTER:
        if re.search(pattern, figure.title):
            return short
    return figure.title.replace(" from inside", "")


def _points(results: Results, name: str) -> dict[str, list[tuple[int, float]]]:
    return {way: curve(results.figures, name, way) for way in results.names}


def _lines(
    axis: Any,
    heading: str,
    along: str,
    points: dict[str, list[tuple[int, float]]],
    names: Sequence[str],
) -> None:
    colours = _colours(names)
    shown = [name for name in names if points[name]]
    for index, name in enumerate(shown):
        style = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "linewidth": 1.2}
        axis.plot(*zip(*points[name]), color=colours[name], label=name, **style)
    axis.set_xscale("symlog")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(f"{along}; less is better", fontsize=8)
    axis.set_title(heading, loc="left", fontsize=10)
    axis.legend(fontsize=6.5, ncols=2)


def _colours(names: Sequence[str]) -> dict[str, str]:
    ours = [name for name in names if name.startswith(OURS)]
    colours = {BARE: BARE_COLOUR, CONTROL: BARE_COLOUR, ANY_FILTER: FILTER_COLOUR}
    rivals = [name for name in names if name not in colours and name not in ours]
    colours.update(zip(ours, OUR_COLOURS * len(ours)))
    colours.update(zip(rivals, RIVAL_COLOURS * len(rivals)))
    return colours
