"""How the measurements of bench/ become figures, tables and goals."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

import pytest

from bench import goals, load, report
from bench.accounts import Account
from bench.growth import STARTS
from bench.results import Results
from bench.rig import SIZES, Figure, Rig
from bench.ways import ANY_FILTER, BARE, BYTE_CODE, CONTROL, Port, Way, choose_calls, ours

OURS = "portwrap relay"
ABOUT: Mapping[str, Any] = {"left_out": {}, "notes": [], "command": "", "size": "", "versions": ""}


def figure(samples: Mapping[str, Sequence[float]], **kw: Any) -> Figure:
    made = Figure("Requests", "p99, 1 connection", "ms", **kw)
    made.samples = {name: list(values) for name, values in samples.items()}
    return made


def results(*figures: Figure) -> Results:
    names = dict.fromkeys(name for each in figures for name in each.samples)
    ways = [Way(name, () if name in (BARE, CONTROL) else ("x",), "") for name in names]
    return Results(figures=figures, ways=ways, special=[], **ABOUT)


def test_a_round_is_compared_with_itself() -> None:
    """The second round met a machine that was ten times slower."""
    found = figure({BARE: [1, 10, 1], OURS: [2, 20, 3]})
    assert found.compared(OURS) == 2
    assert found.spread(OURS) == 0.25
    assert report.cell(found, OURS) == "3.00 (× 2.00 ±0.25)"
    found = figure({BARE: [1, 10, 1], OURS: [2, 11, 3]}, added=True)
    assert report.cell(found, OURS) == "3.00 (+1.00 ±0.25)"


def test_bare_is_not_compared_with_itself_and_the_control_is() -> None:
    found = figure({BARE: [2.0], CONTROL: [3.0]})
    assert report.cell(found, BARE) == "2.00"
    assert report.cell(found, CONTROL) == "3.00 (× 1.50)"


def test_a_failure_is_no_figure(tmp_path: Path) -> None:
    """What has failed twice is not asked again, and is said instead of the samples before."""
    rig = Rig([], {}, {}, Account("nobody", 1, 1, "/"), tmp_path, SIZES["tiny"])
    asked = []

    def take(value: float) -> list[float]:
        asked.append(value)
        if value < 0:
            raise load.LoadError("connection refused")
        return [value]

    found = rig.figure("Requests", "requests/s", "/s", more_is_better=True)
    for value in (1.0, -1.0, 2.0):
        rig.sample([found], OURS, take, value)
    rig.sample([found], BARE, take, 3.0)
    assert asked == [1.0, -1.0, -1.0, 3.0]
    assert report.cell(found, OURS) == report.short_cell(found, OURS) == "failed"
    assert found.samples[BARE] == [3.0]
    text = report.markdown(results(found), drawn=False)
    assert f"* {OURS}, requests/s: connection refused\n" in text


def test_one_failure_is_none(tmp_path: Path) -> None:
    rig = Rig([], {}, {}, Account("nobody", 1, 1, "/"), tmp_path, SIZES["tiny"])
    answers: list[OSError | list[float]] = [ConnectionResetError(), [1.0]]

    def take() -> list[float]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    found = rig.figure("Requests", "requests/s", "/s")
    rig.sample([found], OURS, take)
    assert report.cell(found, OURS) == "1.00"


def test_rounds_end_when_patience_does(tmp_path: Path) -> None:
    """But not before there are enough of them."""
    size = SIZES["full"]._replace(timeout=-1.0)
    rig = Rig([], {}, {}, Account("nobody", 1, 1, "/"), tmp_path, size)
    assert list(rig.rounds(9)) == [0, 1, 2]
    rig.size = size._replace(timeout=60.0)
    assert len(list(rig.rounds(9))) == 9


def test_everybody_is_first_once(tmp_path: Path) -> None:
    rig = Rig([], {}, {}, Account("nobody", 1, 1, "/"), tmp_path, SIZES["tiny"])
    assert "".join(rig.in_turn(3, "abc")) == "abcbcacab"


@pytest.mark.parametrize(("values", "said"), [([1.2, 1.3], "1.3"), ([1.2, 1.4], "**1.4, missed**")])
def test_a_goal_is_judged_by_its_worst_figure(values: Sequence[float], said: str) -> None:
    figures = [figure({BARE: [1], OURS: [value]}) for value in values]
    assert goals.lines(results(*figures))[-1] == f"| p99, of bare: at most 1.3 | {said} |"


def test_a_goal_that_failed_is_not_reached() -> None:
    found = figure({BARE: [1], OURS: [1]})
    found.failures[OURS] = "timeout"
    assert goals.lines(results(found))[-1].endswith("| failed |")


def test_a_goal_may_compare_with_another_way() -> None:
    """In the same round: bare has no say in it."""
    found = Figure("Programs", "dd of 5 single bytes", "s")
    found.samples = {BARE: [1, 1, 1], ANY_FILTER: [2, 20, 4], OURS: [2, 20, 8]}
    lines = goals.lines(results(found))
    assert lines[-1] == "| dd of single bytes, of what any seccomp filter costs: at most 1.03 | 1 |"


def test_a_start_from_byte_code_has_goals_of_its_own() -> None:
    found = Figure("Start", "first answer of a small server", "ms", added=True)
    found.samples = {BARE: [1], OURS: [30], BYTE_CODE: [30]}
    assert goals.lines(results(found))[-2:] == [
        "| added to a start, plain: at most 39 ms | 29 | - |",
        "| the same from byte code: at most 25 ms | - | **29, missed** |",
    ]


def test_the_reference_stands_between_ours_and_the_rivals() -> None:
    found = figure({"pasta": [1], OURS: [1], BARE: [1]})
    special = choose_calls("x86_64").ways
    assert results(found)._replace(special=special).names == [BARE, OURS, ANY_FILTER, "pasta"]


def test_what_is_left_out_is_said() -> None:
    ways, left_out = choose_calls("riscv64")
    assert not ways
    assert left_out == {ANY_FILTER: "seccomp's number on riscv64 is not known here"}


def test_growth_is_judged_from_the_first_to_the_last() -> None:
    figures = [
        Figure("Growth", f"start {number}", "ms", added=True, point=(STARTS, number))
        for number in (200, 1)
    ]
    for each, value in zip(figures, (26.0, 20.0)):
        each.samples = {BARE: [1.0], OURS: [value]}
    assert goals.lines(results(*figures))[-1].endswith("| **1.3, missed** |")


def test_words_of_a_way() -> None:
    """Bare listens on the host's port, a sandboxed command on the guest port."""
    command, values = ("server", "{port}"), {"python": "py", "archive": "a.pyz"}
    assert Way(BARE, (), "").words(command, Port(5), values) == ["server", "5"]
    way = ours()[0]
    assert way.words(command, Port(5), values)[-2:] == ["server", "8888"]
    assert way.variables(Port(5), Port(6)) == {"JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:5/"}


def test_the_short_table_compares_with_bare() -> None:
    found = Figure("Requests", "requests/s, 1 connection", "/s", more_is_better=True)
    found.samples = {BARE: [1000.0], OURS: [900.0]}
    lines = report.short_table(results(found))
    assert lines[-1] == "| requests/s, 1 connection ↑ | 1,000/s | × 0.90 |"
