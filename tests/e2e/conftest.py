"""One hub for all of the end-to-end tests that need one."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest
from e2e.hub import Hub, start_hub

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import cannot


@pytest.fixture(scope="session")
def hub(pyz: Path) -> Iterator[Hub]:
    """A real JupyterHub with batchspawner; pw-owner is logged in, and has no server running."""
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    if not (TEST_ROOT / "hub-venv" / ".complete").exists():
        cannot("no JupyterHub; tests/setup.sh installs it")
    yield from start_hub(TEST_ROOT, pyz)
