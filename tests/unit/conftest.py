from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def none_of_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What steers the tests, PORTWRAP_MUST_WORK for one, is no setting of the programs."""
    for name in [name for name in os.environ if name.startswith("PORTWRAP_")]:
        monkeypatch.delenv(name)
