"""Fixtures of the tests that need real namespaces."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

from sessions import Inside, Portwrap


@pytest.fixture(scope="session")
def portwrap(python: str) -> Iterator[Portwrap]:
    """A copy of the package that every account can run."""
    folder = Path(tempfile.mkdtemp(prefix="portwrap-test-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield Portwrap(python, folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def inside(portwrap: Portwrap) -> Iterator[Inside]:
    """A sandbox with a command that makes sockets in there."""
    with Inside(portwrap) as session:
        session.wait_until_up()
        yield session
