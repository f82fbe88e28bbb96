"""What the system may do at any place is one clear refusal; a bug of ours is a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from helpers import PROJECT

RAISING = """
import batchspawner_portwrap, portwrap.cli.parser

def raising(*_):
    raise {error}

portwrap.cli.parser.parse_port = raising
raise SystemExit(batchspawner_portwrap.main(["--port", "40001", "server"]))
"""


def run_raising(error: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run our program where the parser of ports raises this."""
    command = [*before, sys.executable, "-c", RAISING.format(error=error)]
    environ = {"PYTHONPATH": str(PROJECT), "PATH": os.defpath}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20)


ERRNOS = ["EPERM", "EINTR", "EIO", "EPIPE", "EBADF", "ESTALE", "EMFILE", "ENOMEM", "EAGAIN"]
SYSTEMS = {
    **{
        f"OSError({getattr(errno, name)}, {os.strerror(getattr(errno, name))!r})": os.strerror(
            getattr(errno, name)
        )
        for name in ERRNOS
    },
    "OSError(5, 'Input/output error', '/a file')": "/a file: Input/output error",
    "OSError('something without a number')": "something without a number",
    "TimeoutError": "TimeoutError",
    "ImportError('libffi.so.8: cannot open')": "libffi.so.8: cannot open",
    "MemoryError": "MemoryError",
}


@pytest.mark.parametrize("error", SYSTEMS)
def test_what_the_system_causes_is_two_lines(error: str) -> None:
    result = run_raising(error)
    assert (result.returncode, result.stdout) == (125, ""), result
    first, second = result.stderr.splitlines()
    assert first.startswith("batchspawner-portwrap: setting up (portwrap.cli.parser, line ")
    assert first.endswith(f"): {SYSTEMS[error]}")
    assert second.startswith("  ") and second.strip()


@pytest.mark.parametrize(
    "error", ["TypeError('a bug')", "KeyError('a bug')", "AssertionError('a bug')", "ValueError"]
)
def test_a_bug_is_a_traceback(error: str) -> None:
    result = run_raising(error)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert error.partition("(")[0] in result.stderr.splitlines()[-1]
