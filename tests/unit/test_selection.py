"""Which tests run, and in which groups."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from helpers import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


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
