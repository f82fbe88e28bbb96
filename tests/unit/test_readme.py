"""README.md tells of every option and of every exit status."""

from __future__ import annotations

import re

import pytest

from batchspawner_portwrap import PARSER
from portwrap import __main__, errors

from helpers import PROJECT


def readme() -> str:
    return (PROJECT / "README.md").read_text()


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
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", readme()), f"{name} is missing"


@pytest.mark.parametrize("status", [errors.USAGE, errors.OURS, errors.CANNOT_RUN, errors.NOT_FOUND])
def test_exit_status_has_its_row(status: int) -> None:
    assert re.search(rf"^\|\s*`?{status}`?\s*\|", readme(), re.MULTILINE), f"no row for {status}"
