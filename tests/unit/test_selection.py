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


def test_other_parameters_with_the_words_of_a_forward_keep_their_values() -> None:
    """Connections out of a session can be native, too."""

    def behind_the_forward(*options: str) -> set[str]:
        tests = collected("tests/namespaces", *options)
        return {test.partition("-")[2] for test in tests if "::test_by_whose_socket[" in test}

    values = behind_the_forward()
    assert {value.partition("-")[0] for value in values} > {"auto", "native"}
    assert behind_the_forward("--one-forward") == values


def cases_by_test(tests: list[str]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for test in tests:
        found[test.partition("[")[0]].add(test)
    return found


def test_one_case_of_each_test_and_all_of_some() -> None:
    every_python = cases_by_test(collected("tests/namespaces", "-m", "every_python"))
    others = cases_by_test(collected("tests/namespaces"))
    everything = {name: others[name] - every_python.get(name, set()) for name in others}
    everything = {name: cases for name, cases in everything.items() if cases}
    assert every_python and everything
    chosen = [cases_by_test(collected("tests/namespaces", f"--one-case={n}")) for n in (0, 1)]
    for cases in chosen:
        assert set(cases) == set(others)
    for name, all_cases in everything.items():
        first, last = (cases[name] - every_python.get(name, set()) for cases in chosen)
        assert len(first) == len(last) == 1 and first | last <= all_cases
        assert (first == last) == (len(all_cases) == 1)
    for name, all_cases in every_python.items():
        assert all(all_cases <= cases[name] for cases in chosen)
