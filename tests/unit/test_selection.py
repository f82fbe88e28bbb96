"""Which tests run, and in which groups."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections import defaultdict

import pytest

from helpers import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@functools.lru_cache(maxsize=None)
def collected(*argv: str) -> list[str]:
    """The tests that such a run of pytest would be."""
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run(
        [*command, *argv], cwd=PROJECT, capture_output=True, text=True, timeout=120, check=True
    )
    return [line for line in result.stdout.splitlines() if "::" in line]


def without_forward(test: str) -> str:
    name, bracket, parameters = test.partition("[")
    return name + bracket + re.sub(r"\b(auto|native|relay)\b", "*", parameters)


def test_one_forward_leaves_every_test_there_is() -> None:
    everything = collected("tests/namespaces")
    one_each = collected("tests/namespaces", "--one-forward")
    assert len(one_each) < len(everything) - 100
    assert set(map(without_forward, one_each)) == set(map(without_forward, everything))
    kept = [test for test in one_each if "test_signals.py" in test]
    assert kept and not [test for test in kept if "[relay" in test]


SOME = [f"tests/namespaces/test_{name}.py" for name in ("keeper", "outbound", "signals")]
"""Files with tests of all kinds: to collect all of them takes seconds."""


def cases_by_test(*options: str) -> dict[str, list[str]]:
    """The tests of these files, and the cases that such a run of pytest would have of them."""
    found = defaultdict(list)
    for test in collected(*SOME, *options):
        found[test.partition("[")[0]].append(test)
    return found


def test_other_parameters_with_the_words_of_a_forward_keep_their_values() -> None:
    """Connections out of a session can be native, too."""
    name = "tests/namespaces/test_outbound.py::test_by_whose_socket"
    everything, one_forward = (
        {case.partition("-")[2] for case in cases_by_test(*options)[name]}
        for options in ([], ["--one-forward"])
    )
    assert {case.partition("-")[0] for case in everything} > {"auto", "native"}
    assert one_forward == everything


OTHERS = ("-m", "not (every_python or matrix or apps)")


def test_one_case_of_each_test_another_one_for_another_python() -> None:
    first, last = (cases_by_test(*OTHERS, f"--one-case={number}") for number in (0, 1))
    for name, cases in cases_by_test(*OTHERS).items():
        assert (first[name], last[name]) == (cases[:1], cases[-1:])


def test_few_cases_from_the_first_to_the_last() -> None:
    few = cases_by_test(*OTHERS, "--few-cases")
    for name, cases in cases_by_test(*OTHERS).items():
        assert [few[name][0], few[name][-1]] == [cases[0], cases[-1]]
        assert len(few[name]) == min(3, len(cases)) and set(few[name]) <= set(cases)


@pytest.mark.parametrize("option", ["--one-case=0", "--few-cases"])
def test_all_cases_of_some_tests(option: str) -> None:
    every_python = cases_by_test("-m", "every_python")
    assert every_python and cases_by_test("-m", "every_python", option) == every_python
