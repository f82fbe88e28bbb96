"""A session of the check; a shell, or a thread, stands in for the session's processes."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from portwrap.check import session as check
from portwrap.check.session import Session


def started(*argv: str, **reported: Any) -> Session:
    """A session whose process is this one, and which has reported that."""
    session = Session.__new__(Session)
    session.reported = {**reported}
    session.text = b""
    session.began = time.monotonic()
    session.process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert session.process.stdout and session.process.stderr
    session.output = session.process.stdout.fileno()
    session.errors = session.process.stderr.fileno()
    return session


def test_the_check_waits_for_its_keeper(tmp_path: Path) -> None:
    """Which ends after the command, and has its standard error until then."""
    keeper = '(sleep 0.5; echo ended >"$0") >/dev/null & exec cat'
    session = started("sh", "-c", keeper, str(tmp_path / "keeper"), listening={})
    session.end()
    assert (tmp_path / "keeper").read_text() == "ended\n"


def test_a_session_that_is_late() -> None:
    """It has not ended, and is not said to have."""
    session = started("cat", made={})
    session.began -= check.START_TIMEOUT + 1
    assert not session.started()
    assert session.refusal().message == "a session was not ready in 60 s"
    session.end()


def test_a_session_that_has_ended() -> None:
    reports: list[dict[str, Any]] = [{"made": {}}, {}]
    for reported in reports:
        session = started("true", **reported)
        session.process.wait()
        session.began -= check.START_TIMEOUT + 1
        assert not session.started()
        assert "ended" in session.refusal().message
        session.end()


def test_a_server_that_takes_longer_than_a_look() -> None:
    """On a busy node."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("", 0)) as other:

        def serve() -> None:
            with server.accept()[0] as connection:
                time.sleep(1.2 * check.PROBE_TIMEOUT)
                connection.sendall(b"token")

        thread = threading.Thread(target=serve)
        thread.start()
        host, guest = server.getsockname()[1], other.getsockname()[1]
        other.close()
        listening = {"listening": {"application": guest}}
        shown: Any = SimpleNamespace(
            token="token", host_port=host, guest_port=guest, reported=listening
        )
        assert check.check_isolation(shown).status == "ok"
        thread.join()
