"""The manual pages: groff finds nothing to warn of, and what is to be pasted stays whole."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from portwrap.diagnostics.remedies import table

from helpers import PROJECT, needs

PAGES = sorted((PROJECT / "share" / "man" / "man1").glob("*.1"))
NARROW = "-rLL=60n"
HYPHEN = "\N{HYPHEN}"
"""What groff breaks a word with; a real "-" is another character."""


def groff(*words: str | Path) -> subprocess.CompletedProcess[str]:
    needs("groff")
    command = ["groff", "-ww", "-k", "-Tutf8", "-man", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def plain(text: str) -> str:
    """Without what makes a terminal show letters in bold."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_there_is_a_page_for_each_command() -> None:
    assert [page.stem for page in PAGES] == ["batchspawner-portwrap", "portwrap"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.stem))
def test_groff_has_nothing_to_warn_of(page: Path) -> None:
    result = groff("-z", page)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_groff_warns_of_what_is_wrong(tmp_path: Path) -> None:
    """The control of the test above."""
    page = tmp_path / "page.1"
    page.write_text(PAGES[0].read_text() + ".NOSUCH\n")
    assert "NOSUCH" in groff("-z", page).stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.stem))
def test_no_word_is_broken(page: Path) -> None:
    assert HYPHEN not in groff(NARROW, page).stdout


def test_a_word_would_be_broken(tmp_path: Path) -> None:
    """The control of the test above: without the lines that forbid it."""
    page = tmp_path / "page.1"
    page.write_text(PAGES[0].read_text().replace(".nr HY 0\n.nh\n", ""))
    assert HYPHEN in groff(NARROW, page).stdout


def test_commands_stand_on_one_line_as_they_are_typed() -> None:
    lines = {line.strip() for line in plain(groff(NARROW, PAGES[0]).stdout).splitlines()}
    commands = [text for row in table() for text in row.commands.values() if text]
    assert len(commands) > 10
    assert [text for text in commands if "{" not in text and text not in lines] == []
