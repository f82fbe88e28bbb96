"""What bash offers for a Tab behind our commands: options and their values, up to the command."""

from __future__ import annotations

import os
import subprocess

import pytest

from helpers import PROJECT

COMPLETIONS = PROJECT / "share" / "bash-completion" / "completions"
TAB = """
. "$1"
shift
_command_offset() { COMPREPLY=("offset $1"); }
compopt() { :; }
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
set -- $(complete -p "$1") # complete -o default -F FUNCTION PROGRAM
"$5"
printf '%s\\n' "${COMPREPLY[@]}"
"""
OPTIONS = {"--forward", "--network", "--check", "-P"}


def offered(*words: str) -> list[str]:
    """What Tab offers for the last of these words."""
    file = COMPLETIONS / words[0].replace(".pyz", "")
    command = ["bash", "-uc", TAB, "bash", str(file), *words]
    env = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    "program", ["batchspawner-portwrap", "batchspawner-portwrap.pyz", "portwrap"]
)
def test_options(program: str) -> None:
    assert offered(program, "--for") == ["--forward"]
    assert offered(program, "--forward", "relay", "--verb") == ["--verbose"]


@pytest.mark.parametrize(
    "words, wanted",
    [
        (("--network", ""), ["auto", "slirp4netns", "pasta", "direct", "none"]),
        (("--network", "p"), ["pasta"]),
        (("--network", "=", "s"), ["slirp4netns"]),
        (("--network", "="), ["auto", "slirp4netns", "pasta", "direct", "none"]),
        (("--forward", "n"), ["native"]),
        (("-v", "--forward", ""), ["auto", "native", "relay"]),
        (("-P", ""), [""]),
        (("--publish", "30", ":", ""), [""]),
        (("--publish", "30", ":", "40", "--for"), ["--forward"]),
        (("--network", "=", "pasta", "--for"), ["--forward"]),
    ],
)
def test_values(words: tuple[str, ...], wanted: list[str]) -> None:
    assert offered("batchspawner-portwrap", *words) == wanted


@pytest.mark.parametrize(
    "words, offset",
    [
        (("python3", "--"), 1),
        (("-v", "--forward", "relay", "python3", "--for"), 4),
        (("--", "python3", "-"), 2),
        (("--network", "=", "none", "-P", "80", "sh", "--network", ""), 6),
    ],
)
def test_behind_the_command_nothing_of_ours(words: tuple[str, ...], offset: int) -> None:
    """bash-completion completes it as the command that it is."""
    assert offered("batchspawner-portwrap", *words) == [f"offset {offset}"]


def test_the_command_itself() -> None:
    assert "python3" in offered("batchspawner-portwrap", "-v", "python")
    assert "python3" in offered("portwrap", "-p", "80", "python")
