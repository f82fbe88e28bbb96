"""tests/run.sh, which reports whether all tests have passed: small projects, and a real pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import PROJECT

PASSES = "def test_it(): pass\n"
FAILS = "def test_it(): assert False\n"
ENDS = "import os\ndef test_it(): os.execv('/bin/true', ['true'])\n"
SKIPS = "import pytest\ndef test_it(): pytest.skip('no reason')\n"


class Project:
    """A project of one test file, and its tests/run.sh."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        (folder / "tests" / "unit").mkdir(parents=True)
        for name in ("run.sh", "environment.sh"):
            shutil.copy(PROJECT / "tests" / name, folder / "tests")
        self.write("build.sh", "#!/bin/sh\n")
        self.write("root/venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self.write("tests/unit/test_something.py", text)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *argv: str, **extra_env: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "PORTWRAP_PYTHONS": "none"}
        environ["PORTWRAP_TEST_ROOT"] = str(self.folder / "root")
        return subprocess.run(
            [self.folder / "tests" / "run.sh", *(argv or ("unit",)), "--no-setup"],
            env={**environ, **extra_env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
        )


@pytest.mark.parametrize(
    ("text", "status", "summary"),
    [
        (PASSES, 0, "1 passed, 0 failed, 0 skipped"),
        (PASSES + SKIPS.replace("test_it", "test_other"), 0, "1 passed, 0 failed, 1 skipped"),
        (FAILS, 1, "0 passed, 1 failed, 0 skipped"),
        (PASSES + FAILS.replace("test_it", "test_other"), 1, "1 passed, 1 failed, 0 skipped"),
        ("import nothing_of_the_kind\n", 1, "0 passed, 1 failed, 0 skipped"),
        (SKIPS, 1, "0 passed, 0 failed, 1 skipped"),
        (ENDS, 1, "0 passed, 0 failed, 0 skipped"),
    ],
    ids=["passes", "skips too", "fails", "one of two", "import", "only skips", "pytest ends"],
)
def test_status_and_summary(tmp_path: Path, text: str, status: int, summary: str) -> None:
    result = Project(tmp_path, text).run()
    assert (result.returncode, result.stdout.splitlines()[-1]) == (status, summary), result


@pytest.mark.parametrize(("text", "status"), [(PASSES, 0), (ENDS, 1)], ids=["passes", "ends"])
def test_a_run_that_ends_in_the_middle_after_another_one(
    tmp_path: Path, text: str, status: int
) -> None:
    project = Project(tmp_path, PASSES)
    project.write("tests/e2e/test_more.py", text)
    result = project.run("unit", "e2e")
    assert result.returncode == status, result
    assert ("pytest did not finish" in result.stdout) == (status == 1)


def test_no_test_can_make_pytest_another_program() -> None:
    with pytest.raises(AssertionError, match="exec in the process of the tests"):
        os.execv("/no/such/program", ["program"])
