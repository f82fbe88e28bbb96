"""The pages list every option and every exit status; what is generated is up to date."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchspawner_portwrap import PARSER
from portwrap import __main__
from portwrap.cli import help
from portwrap.diagnostics import errors

from helpers import PROJECT

PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]
README_LINES, README_WORDS = 150, 1200


def configuration() -> str:
    return (PROJECT / "docs" / "configuration.md").read_text()


def test_the_readme_is_short() -> None:
    text = (PROJECT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    assert len(text.split()) <= README_WORDS


OPTIONS = sorted(
    {
        name
        for parser in (PARSER, __main__.PARSER)
        for option in parser.options
        for name in option.names
    }
)


@pytest.mark.parametrize("name", OPTIONS)
def test_option(name: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", configuration()), (
        f"{name} is missing"
    )


@pytest.mark.parametrize(
    "status",
    [errors.EXIT_USAGE, errors.EXIT_SANDBOX, errors.EXIT_NOT_EXECUTABLE, errors.EXIT_NOT_FOUND],
)
def test_exit_status_has_its_row(status: int) -> None:
    assert re.search(rf"^\|\s*`?{status}`?\s*\|", configuration(), re.MULTILINE), (
        f"no row for {status}"
    )


def test_the_written_parts_are_those_of_the_tables() -> None:
    """Options, exit statuses, troubleshooting and figures, the manual page, and the completions."""
    command = [sys.executable, str(PROJECT / "docs" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}run docs/generate.py"


def test_a_changed_table_is_seen(tmp_path: Path) -> None:
    """The control of the test above."""
    for name in ("README.md", "batchspawner_portwrap.py"):
        shutil.copy(PROJECT / name, tmp_path)
    for name in ("bench", "docs", "portwrap", "share"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    table = tmp_path / "portwrap" / "diagnostics" / "remedies.py"
    table.write_text(table.read_text().replace("The tun device is missing", "No tun device"))
    command = [sys.executable, str(tmp_path / "docs" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result
    assert sorted(line.split(":")[0] for line in result.stdout.splitlines()) == [
        "batchspawner-portwrap.1",
        "troubleshooting.md",
    ]


def test_links_between_the_pages_lead_somewhere() -> None:
    found = []
    for page in PAGES:
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        found += [page.parent / link for link in links]
    assert len(found) > 10
    assert [path for path in found if not path.exists()] == []


def test_the_map_of_the_code_shows_every_module() -> None:
    tour = (PROJECT / "CONTRIBUTING.md").read_text()
    modules = {path.name for path in (PROJECT / "portwrap").glob("**/[!_]*.py")}
    assert {name for name in modules if not re.search(rf"[`/]{name}`", tour)} == set()


def test_every_option_stands_under_a_heading() -> None:
    for parser in (PARSER, __main__.PARSER):
        shown = [option for _, options in help.topics(parser) for option in options]
        assert sorted(map(id, shown)) == sorted(map(id, parser.options))
