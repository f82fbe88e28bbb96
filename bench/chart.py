"""The results as a chart: bars where ways are compared, curves where something grows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .growth import CONNECTIONS, LATENCY, STARTS, curve
from .report import number
from .ways import BARE, CONTROL, OURS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .report import Results
    from .rig import Figure

OUR_COLOURS = ("#d9480f", "#f08c00", "#e8590c", "#fab005")
RIVAL_COLOURS = ("#364fc7", "#1098ad", "#5c940d", "#ae3ec9", "#495057", "#e64980")
BARE_COLOUR = "#adb5bd"
BAR_HEIGHT, PANEL_HEIGHT, CURVE_HEIGHT, FOOT = 0.13, 0.9, 2.7, 0.6  # inches
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
    Panel(
        "Added to the start, to the first answer [ms]", "Start", "small server", "added", True, True
    ),
    Panel("Requests/s, ratio to bare", "Requests", r"requests/s", "ratio", in_summary=True),
    Panel("Slowest 1 % of requests (p99), ratio to bare", "Requests", r"p99,", "ratio"),
    Panel("200 connections at once, ratio to bare", "Requests", r"200 new", "ratio"),
    Panel("A page of a proxied application, ratio to bare", "An appl", r"a page", "ratio", True),
    Panel("Added to a kernel's message and reply [ms]", "Round", r"kernel", "added"),
    Panel("Download, ratio to bare", "Streams", r"download, [^8]", "ratio", in_summary=True),
    Panel("Upload, ratio to bare", "Streams", r"upload|saving", "ratio"),
    Panel("The way out, ratio to bare", "The way out", r"load", "ratio"),
    Panel(
        "Memory of each session, PSS [MB]",
        "What stays",
        r"^PSS, (each|1 session$)",
        "value",
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
)
"""What tells the bars of a panel from each other."""
CURVES = (
    (STARTS, "Time to the first answer [ms]", "sessions on the node"),
    (LATENCY, "A request [ms]", "sessions on the node"),
    (CONNECTIONS, "A request to jupyter_server [ms]", "open connections of the session"),
)


def draw(results: Results, folder: Path) -> bool:
    """Draw results.svg, and summary.svg for README.md. False: there is no plotting library."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return False
    matplotlib.use("svg")
    panels = [(panel, _figures_of(panel, results)) for panel in PANELS]
    panels = [(panel, figures) for panel, figures in panels if figures]
    curves = [each for each in CURVES if any(_points(results, each[0]).values())]
    _draw(results, panels, curves, folder / "results.svg")
    first = [(panel, figures) for panel, figures in panels if panel.in_summary]
    _draw(results, first, [], folder / "summary.svg")
    return True


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
    if not panels and not curves:
        return
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
    """The ways that have a bar."""
    return [
        name
        for name in names
        if any(_value(figure, name, panel.kind) is not None for figure in figures)
        # nothing to see of the noise next to milliseconds
        and not (panel.kind == "added" and name == CONTROL)
    ]


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
        and any(_value(each, name, panel.kind) is not None for name in results.names)
    ]


def _value(figure: Figure, name: str, kind: str) -> float | None:
    if name in figure.failures or name == BARE:
        return None
    return figure.median(name) if kind == "value" else figure.compared(name)


def _bars(axis: Any, panel: Panel, figures: Sequence[Figure], names: Sequence[str]) -> None:
    """A line for each way, a bar for each figure."""
    names = _shown(panel, figures, names)
    colours = _colours(names)
    height = 0.8 / len(figures)
    for place, name in enumerate(reversed(names)):
        for index, figure in enumerate(figures):
            value = _value(figure, name, panel.kind)
            if value is None:
                continue
            y = place + 0.4 - height * (index + 0.5)
            axis.barh(y, value, height * 0.9, color=colours[name], alpha=1 - 0.22 * index)
            label = f" {number(value)}" + (f"  ({_short(figure)})" if len(figures) > 1 else "")
            axis.text(max(value, 0), y, label, va="center", fontsize=6.5)
    if panel.logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    if panel.kind == "ratio":
        axis.axvline(1, color="#212529", linewidth=0.8)
    axis.margins(x=0.3)
    axis.set_yticks(range(len(names)), list(reversed(names)))
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
    for name in names:
        if not points[name]:
            continue
        style = {"marker": "o", "markersize": 3, "linewidth": 1.2}
        axis.plot(*zip(*points[name]), color=colours[name], label=name, **style)
    axis.set_xscale("symlog")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(along, fontsize=8)
    axis.set_title(heading, loc="left", fontsize=10)
    axis.legend(fontsize=6.5, ncols=2)


def _colours(names: Sequence[str]) -> dict[str, str]:
    ours = [name for name in names if name.startswith(OURS)]
    rivals = [name for name in names if name not in (BARE, CONTROL) and name not in ours]
    colours = dict.fromkeys((BARE, CONTROL), BARE_COLOUR)
    colours.update(zip(ours, OUR_COLOURS * len(ours)))
    colours.update(zip(rivals, RIVAL_COLOURS * len(rivals)))
    return colours
