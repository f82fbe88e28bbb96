"""The end of a session of the check; a shell stands in for the session's processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from portwrap.check.session import Session


def test_the_check_waits_for_its_keeper(tmp_path: Path) -> None:
    """Which ends after the command, and has its standard error until then."""
    keeper = '(sleep 0.5; echo ended >"$0") >/dev/null & exec cat'
    session = Session.__new__(Session)
    session.reported = {"listening": {}}
    session.process = subprocess.Popen(
        ["sh", "-c", keeper, str(tmp_path / "keeper")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert session.process.stderr
    session.errors = session.process.stderr.fileno()
    session.end()
    assert (tmp_path / "keeper").read_text() == "ended\n"
