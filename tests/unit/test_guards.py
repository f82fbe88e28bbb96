"""The list of guards, for which `mutants.py` looks whether a test misses each."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from guards import GUARDS, Guard

from helpers import PROJECT


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_a_guard_is_in_the_product(guard: Guard) -> None:
    changed = guard.taken_out_of((PROJECT / guard.file).read_text())
    compile(changed, guard.file, "exec")


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_its_nearest_tests_are_files(guard: Guard) -> None:
    words = shlex.split(guard.tests)
    files = [Path(word) for word in words if word.endswith(".py")]
    assert files and all((PROJECT / "tests" / file).is_file() for file in files)
    assert len({str(each) for each in GUARDS}) == len(GUARDS) >= 80


def test_a_guard_that_has_gone_is_noticed() -> None:
    with pytest.raises(ValueError, match="0 times"):
        GUARDS[0].taken_out_of("")
    with pytest.raises(ValueError, match="2 times"):
        GUARDS[0].taken_out_of(2 * GUARDS[0].text)
