"""ruff, mypy and shellcheck are content with every file of the project."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from helpers import PROJECT, find_tool, needs


def assert_content(tool: str, *arguments: str | Path) -> None:
    needs(tool)
    path = find_tool(tool)
    assert path is not None
    result = subprocess.run(
        [path, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def shell_scripts() -> list[Path]:
    """Every shell script of the project; .ci/run has no suffix."""
    ours = [path for path in PROJECT.rglob("*.sh") if "node_modules" not in path.parts]
    return sorted([*ours, PROJECT / ".ci" / "run"])


def test_ruff_check() -> None:
    assert_content("ruff", "check", "--no-cache", ".")


def test_ruff_format() -> None:
    assert_content("ruff", "format", "--no-cache", "--check", "--diff", ".")


@pytest.mark.timeout(180)
def test_mypy(tmp_path: Path) -> None:
    arguments = ("--strict", "--cache-dir", tmp_path, "--no-error-summary")
    assert_content(
        "mypy",
        *arguments,
        "portwrap",
        "batchspawner_portwrap.py",
        "tests",
        "archive",
        "demo",
        "docs",
    )


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: str(path.name))
def test_shellcheck(script: Path) -> None:
    assert_content("shellcheck", "--external-sources", script.relative_to(PROJECT))
