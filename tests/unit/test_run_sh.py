"""tests/run.sh, which reports whether all tests have passed: small projects, and a real pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import PROJECT

pytestmark = pytest.mark.slow

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
            env={"PORTWRAP_WORKERS": "0", **environ, **extra_env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
        )


SUBTESTS = """
def test_parts(subtests):
    for number in range(3):
        with subtests.test(str(number)):
            assert number < MOST
"""


TWO = PASSES + FAILS.replace("test_it", "test_other")
SKIPS_ONE = PASSES + SKIPS.replace("test_it", "test_other")
OUTCOMES = {
    "skips too": (
        PASSES + SKIPS.replace("test_it", "test_other"),
        0,
        "1 passed, 0 failed, 1 skipped",
    ),
    "one of two": (TWO, 1, "1 passed, 1 failed, 0 skipped"),
    "import": ("import nothing_of_the_kind\n", 1, "0 passed, 1 failed, 0 skipped"),
    "only skips": (SKIPS, 1, "0 passed, 0 failed, 1 skipped"),
}


@pytest.mark.parametrize(
    ("workers", "outcome"),
    [*(("0", outcome) for outcome in OUTCOMES), ("2", "skips too"), ("2", "one of two")],
)
def test_status_and_summary(tmp_path: Path, workers: str, outcome: str) -> None:
    text, *told = OUTCOMES[outcome]
    result = Project(tmp_path, text).run(PORTWRAP_WORKERS=workers)
    assert [result.returncode, result.stdout.splitlines()[-1]] == told, result


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="this pytest has no subtests")
@pytest.mark.parametrize(
    ("most", "status", "summary"),
    [("3", 0, "2 passed, 0 failed, 0 skipped"), ("2", 1, "1 passed, 2 failed, 0 skipped")],
)
def test_subtests(tmp_path: Path, most: str, status: int, summary: str) -> None:
    """One that fails counts as itself and as its test."""
    result = Project(tmp_path, PASSES + SUBTESTS.replace("MOST", most)).run()
    assert (result.returncode, result.stdout.splitlines()[-1]) == (status, summary), result


@pytest.mark.parametrize(
    ("workers", "told"),
    [("0", "0 passed, 0 failed, 0 skipped"), ("2", "0 passed, 1 failed, 0 skipped")],
)
def test_a_test_that_makes_pytest_another_program(tmp_path: Path, workers: str, told: str) -> None:
    text = ENDS + PASSES.replace("test_it", "test_other")
    result = Project(tmp_path, text).run(PORTWRAP_WORKERS=workers)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (1, told), result


@pytest.mark.parametrize(("program", "status"), [('exec {} "$@"', 0), ("exit 0", 1)])
def test_a_run_without_an_end_after_another_one(tmp_path: Path, program: str, status: int) -> None:
    project = Project(tmp_path, PASSES)
    other = "root/venv-{}.{}/bin/python".format(*sys.version_info)
    project.write(other, f"#!/bin/sh\n{program.format(sys.executable)}\n")
    result = project.run("unit", PORTWRAP_PYTHONS=sys.executable)
    ended = "pytest did not finish" not in result.stdout
    assert (result.returncode, ended) == (status, status == 0), result
    assert result.stdout.endswith(f"\n{2 - status} passed, 0 failed, 0 skipped\n")


WRITES = """
from hypothesis import given, strategies
@given(strategies.text())
def test_it(text): pass
"""
TAKES_OPTIONS = """
def pytest_addoption(parser):
    parser.addoption("--one-forward", action="store_true")
"""


def test_quick_writes_nothing_into_the_checkout(tmp_path: Path) -> None:
    project = Project(tmp_path, WRITES)
    project.write("build.sh", '#!/bin/sh\ntouch "${1:-built}"\n')
    project.write("tests/conftest.py", TAKES_OPTIONS)
    project.write("tests/namespaces/test_more.py", PASSES)
    before = set(tmp_path.rglob("*"))
    result = project.run("quick")
    assert result.stdout.endswith("\n2 passed, 0 failed, 0 skipped\n"), result
    assert set(tmp_path.rglob("*")) == before
    project.run("unit")
    assert tmp_path / "built" in set(tmp_path.rglob("*")) - before


def test_no_test_can_make_pytest_another_program() -> None:
    with pytest.raises(AssertionError, match="exec in the process of the tests"):
        os.execv("/no/such/program", ["program"])
