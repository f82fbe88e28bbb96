"""`bench/run.sh`, with so little of everything that its figures say nothing: that it runs, tells of
every way that it has, and leaves nothing. Speed itself is not tested."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from e2e.conftest import needs_a_hub

from conftest import TEST_ROOT
from helpers import PROJECT, needs

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

RIVALS = {"slirp4netns", "pasta", "socket-proxyd", "rootlesskit"}
OURS = {"portwrap native", "portwrap relay"}
WITHOUT = {"TMPDIR", "PYTHONPATH"}


@pytest.fixture(autouse=True)
def can_run(pyz: Path) -> None:
    needs_a_hub()
    needs("ip", "nc", "wrk", "rootlesskit", "newuidmap", "systemd-socket-activate")


def measure(folder: Path, *words: str) -> str:
    """Run it; returns results.md."""
    environ = {name: value for name, value in os.environ.items() if name not in WITHOUT}
    result = subprocess.run(
        [PROJECT / "bench" / "run.sh", "--size", "tiny", "--output", folder, *words],
        env={**environ, "BENCH_SET_UP": "no", "PORTWRAP_TEST_ROOT": str(TEST_ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    text = (folder / "results.md").read_text()
    assert result.stdout == text + "\n"
    return text


def tables(text: str) -> dict[str, dict[str, dict[str, str]]]:
    """The cells of each table, by its heading, by row and column."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for section in text.split("\n## ")[1:]:
        heading, _, rest = section.partition("\n")
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in rest.splitlines()
            if line.startswith("|") and not line.startswith("|--")
        ]
        if rows:
            found[heading] = {row[0]: dict(zip(rows[0][1:], row[1:])) for row in rows[1:]}
    return found


def assert_whole(text: str) -> None:
    """Every way has a figure in every row of its table, and nothing has failed."""
    assert "## What is missing" not in text, text
    assert "was left out" not in text, text
    for heading, rows in tables(text).items():
        assert rows, heading
        for row, cells in rows.items():
            without = {name for name, cell in cells.items() if not cell.strip("-")}
            # Only some are started under batchspawner-singleuser, have a keeper, or have goals for
            # outbound connections, and that is all they lack.
            some = heading.startswith(("In short", "Goals")) or row.startswith(
                "memory of the keeper"
            )
            assert not without or some, (heading, row, cells)


def test_forwarding(tmp_path: Path) -> None:
    text = measure(tmp_path, "--only", "start", "--only", "forward", "--ways", "portwrap native")
    assert_whole(text)
    found = tables(text)
    assert len(found["Start"]) == 2
    (singleuser,) = (rows for heading, rows in found.items() if heading.startswith("Start under"))
    assert len(singleuser) == 2
    assert "requests/s, 16 connections [/s] ↑" in found["Requests to jupyter_server"]
    assert "kernel message over WebSocket [ms]" in found["Round trips"]
    assert len(found["Streams"]) == 8
    assert len(found["Published ports, raw server"]) == 3
    assert set(found["Streams"].popitem()[1]) == {"bare", "portwrap native"}
    for name in ("results.svg", "summary.svg"):
        shown = " ".join(ElementTree.parse(tmp_path / name).getroot().itertext())
        assert "bench/run.sh --size tiny --only start --only forward" in shown
        assert "Requests/s (connections)" in shown and "portwrap native" in shown


def test_every_rival_and_every_network_driver(tmp_path: Path) -> None:
    text = measure(tmp_path, "--only", "out", "--only", "calls")
    assert_whole(text)
    found = tables(text)
    out = found["Outbound"]
    assert len(out) == 11
    newer = {"portwrap slirp4netns of Debian 13", "portwrap pasta of Debian 13"}
    ways = {"bare", "portwrap native", "portwrap slirp4netns", "portwrap pasta"}
    rivals = {"slirp4netns", "pasta", "rootlesskit"}
    assert set(out["connect to another host [µs]"]) - newer == {*ways, *rivals}
    (calls,) = (rows for heading, rows in found.items() if heading.startswith("Programs"))
    assert set(calls.popitem()[1]) == {"bare", "any filter", *OURS, *RIVALS}
    assert [row for row in calls if row.startswith("git status of 200 files")]
    (goal,) = (row for row in found["Goals, and the worst figure for each"] if "seccomp" in row)
    assert goal.startswith("dd")


@pytest.mark.matrix
@pytest.mark.timeout(1200)  # it takes two minutes on an idle machine
def test_all_of_it(tmp_path: Path) -> None:
    """Memory and growth, too, and every rival's forward."""
    text = measure(tmp_path)
    _, _, missing = text.partition("## What is missing")
    lacking = [line for line in missing.splitlines() if line.startswith("* ")]
    # Its own forwarding has a backlog of one connection.
    theirs = re.compile(r"\* slirp4netns, (200 new|.* connections were served$)")
    assert not list(itertools.filterfalse(theirs.match, lacking)), text
    found = tables(text)
    assert len(found) >= 10
    (memory,) = (rows for heading, rows in found.items() if heading.startswith("What stays"))
    assert set(memory["PSS, each of 2 sessions [MB]"]) == {*OURS, *RIVALS, "fixed wait"}
    assert "**fixed wait**" in text


def test_interrupted(tmp_path: Path) -> None:
    """It writes nothing then; that no process of it is left, every test sees."""
    words = [str(PROJECT / "bench" / "run.sh"), "--size", "tiny", "--output", str(tmp_path)]
    with subprocess.Popen(
        [*words, "--only", "start", "--ways", "portwrap relay"],
        env={**os.environ, "BENCH_SET_UP": "no"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        shown = ""
        for line in process.stderr:
            shown += line
            if "batchspawner-singleuser" in line:
                process.terminate()
    assert process.returncode == 130, shown
    assert "interrupted; nothing is written" in shown
    assert not list(tmp_path.iterdir())
