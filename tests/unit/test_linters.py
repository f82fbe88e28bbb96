"""ruff, mypy and shellcheck are content with every file of the project, wherever they are asked:
here, before a commit, and on the repository's host."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers import PROJECT, cannot, find_tool, needs

RUFF_CHECK = ["ruff", "check", "--no-cache", "."]
RUFF_FORMAT = ["ruff", "format", "--no-cache", "--check", "--diff", "."]
MYPY = ["mypy", "--strict", "--no-error-summary", "portwrap", "batchspawner_portwrap.py"]
MYPY += ["tests", "archive", "demo", "docs", "bench"]
SHELLCHECK = ["shellcheck", "--external-sources"]
GENERATED = ["python", "docs/generate.py", "--check"]


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
    assert_content(*RUFF_CHECK)


def test_ruff_format() -> None:
    assert_content(*RUFF_FORMAT)


@pytest.mark.timeout(180)
def test_mypy(tmp_path: Path) -> None:
    assert_content(*MYPY, "--cache-dir", tmp_path)


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: str(path.name))
def test_shellcheck(script: Path) -> None:
    assert_content(*SHELLCHECK, script.relative_to(PROJECT))


# ---- before a commit --------------------------------------------------------------------------


def read_yaml(path: str) -> Any:
    yaml = pytest.importorskip("yaml", reason="no pre-commit here, which brings it")
    return yaml.safe_load((PROJECT / path).read_text())


def test_pre_commit_asks_what_is_asked_here() -> None:
    (local,) = read_yaml(".pre-commit-config.yaml")["repos"]
    entries = {hook["id"]: hook["entry"].split() for hook in local["hooks"]}
    commands = (RUFF_CHECK, RUFF_FORMAT, MYPY, SHELLCHECK, GENERATED)
    assert list(entries.values()) == [["tests/tool.sh", *command] for command in commands]


@pytest.mark.timeout(180)
def test_pre_commit_is_content(tmp_path: Path) -> None:
    """mypy has had its turn above."""
    needs("pre-commit")
    (tmp_path / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    settings = {"HOME": str(tmp_path), "PRE_COMMIT_HOME": str(tmp_path), "SKIP": "mypy"}
    git = ["git", "-C", str(PROJECT), "rev-parse"]
    if subprocess.run(git, env={**os.environ, **settings}, check=False).returncode != 0:
        cannot("not a git checkout")
    command = [str(find_tool("pre-commit")), "run", "--all-files", "--color=never"]
    result = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    answers = [line.rpartition(".")[2] for line in result.stdout.splitlines()]
    assert sorted(answers) == ["Passed"] * 4 + ["Skipped"], result.stdout


def test_a_linter_has_the_version_that_is_pinned() -> None:
    """tests/tool.sh is what pre-commit calls."""
    needs("ruff")
    pins = (PROJECT / "tests" / "requirements.txt").read_text()
    words = [str(PROJECT / "tests" / "tool.sh"), "ruff", "--version"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^ruff==(.*)$", pins, re.MULTILINE) == [printed.split()[1]]


# ---- on the repository's host -----------------------------------------------------------------


def test_the_workflows_call_programs_that_are_here() -> None:
    called = set()
    for path in (PROJECT / ".github" / "workflows").iterdir():
        for job in read_yaml(str(path))["jobs"].values():
            text = "\n".join(step.get("run", "") for step in job["steps"])
            called |= set(re.findall(r"(?:^|[ =])((?:\.|\.ci|tests)/[\w.]+)", text, re.MULTILINE))
    assert called == {".ci/run", "./build.sh", "tests/run.sh"}
    assert all(os.access(PROJECT / name, os.X_OK) for name in called)
