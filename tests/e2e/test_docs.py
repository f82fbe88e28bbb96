"""docs/build.sh makes the pages into a site; a link that leads nowhere is an error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from e2e.checkout import fresh_copy

from conftest import TEST_ROOT
from helpers import cannot

pytestmark = [pytest.mark.e2e]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    if not (TEST_ROOT / "docs-venv").exists():
        cannot("no mkdocs: run tests/setup.sh")
    fresh_copy(tmp_path)
    return tmp_path


def build(copy: Path) -> subprocess.CompletedProcess[str]:
    words = [str(copy / "docs" / "build.sh"), str(copy / "site")]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_site_is_built_without_a_warning(copy: Path) -> None:
    result = build(copy)
    assert result.returncode == 0, result.stderr
    pages = {path.stem for path in (copy / "docs").glob("*.md")}
    assert pages <= {path.stem for path in (copy / "site").glob("*.html")}


@pytest.mark.parametrize("link", ["missing.md", "install.md#no-such-heading", "../README.md#none"])
def test_a_link_that_leads_nowhere_is_an_error(copy: Path, link: str) -> None:
    """The control of the test above."""
    page = copy / "docs" / "glossary.md"
    page.write_text(page.read_text() + f"\nSee [this]({link}).\n")
    result = build(copy)
    assert result.returncode == 1, result.stderr
    assert link.rpartition("/")[2] in result.stderr
