"""tests/run.sh, which reports whether all tests have passed: small projects, and a real pytest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import PROJECT, end, lives, wait_until

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

    def start(self, part: str, **extra_env: str) -> subprocess.Popen[str]:
        environ = {"PATH": os.environ["PATH"], "PORTWRAP_PYTHONS": "none"}
        environ["PORTWRAP_TEST_ROOT"] = str(self.folder / "root")
        return subprocess.Popen(
            [self.folder / "tests" / "run.sh", part, "--no-setup"],
            env={"PORTWRAP_WORKERS": "0", **environ, **extra_env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, part: str = "unit", **extra_env: str) -> subprocess.CompletedProcess[str]:
        process = self.start(part, **extra_env)
        try:
            stdout, stderr = process.communicate(timeout=50)
        finally:
            end(process)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


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
    parser.addoption("--one-case")
    parser.addoption("--few-cases", action="store_true")
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


COUNTS = """
from pathlib import Path
tries = Path("{}")
def test_it():
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    assert len(tries.read_text()) == {}
"""


@pytest.mark.parametrize(
    ("workers", "passes", "again", "status"),
    [("2", 2, 1, 0), ("0", 3, 1, 0), ("0", 4, 1, 1), ("0", 2, 0, 1)],
)
def test_a_failure_is_tried_twice_more(
    tmp_path: Path, workers: str, passes: int, again: int, status: int
) -> None:
    project = Project(tmp_path, COUNTS.format(tmp_path / "tries", passes))
    result = project.run(PORTWRAP_AGAIN=str(again), PORTWRAP_WORKERS=workers)
    tries = len((tmp_path / "tries").read_text())
    assert (result.returncode, tries) == (status, min(passes, 1 + 2 * again)), result
    assert result.stdout.count("AssertionError") >= min(tries, passes - 1), result
    assert ("1 failed at first" in result.stdout) == (again > 0), result


def test_too_many_failures_are_not_tried_again(tmp_path: Path) -> None:
    text = COUNTS.format(tmp_path / "tries", 2) + FAILS.replace("test_it", "test_other")
    result = Project(tmp_path, text).run(PORTWRAP_AGAIN="1")
    assert (result.returncode, (tmp_path / "tries").read_text()) == (1, "x"), result


DIES_ONCE = """
import os, pathlib, pytest
died = pathlib.Path("{}")
@pytest.mark.parametrize("number", range(3))
def test_it(number):
    if not died.exists():
        died.touch()
        os._exit(1)
"""


def test_the_tests_that_a_dead_worker_drops_are_missed(tmp_path: Path) -> None:
    """Tried again is what failed, which is the one test that the worker was at."""
    project = Project(tmp_path, DIES_ONCE.format(tmp_path / "died"))
    result = project.run(PORTWRAP_AGAIN="6", PORTWRAP_WORKERS="1")
    told = "0 passed, 1 failed, 0 skipped"
    assert [result.returncode, result.stdout.splitlines()[-1]] == [1, told], result
    assert result.stdout.splitlines()[-2].endswith("s, a worker died"), result


SIGINT_IS_DEFAULT = """
import signal
def test_it(): assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
# Not signal.pause(), which waits for the next signal if the first one comes just before it.
WAITS = """
import os, time
def test_it():
    os.mkdir(f"{}/{{os.getpid()}}")
    while True: time.sleep(0.1)
"""


def with_another_python(project: Project) -> dict[str, str]:
    """What makes run.sh test with this Python as another one too, beside the first run."""
    other = "root/venv-{}.{}/bin/python".format(*sys.version_info)
    project.write(other, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    return {"PORTWRAP_PYTHONS": sys.executable, "PORTWRAP_WORKERS": "5"}


def test_other_pythons_beside_the_first(tmp_path: Path) -> None:
    project = Project(tmp_path, SIGINT_IS_DEFAULT)
    result = project.run("unit", **with_another_python(project))
    assert result.stdout.endswith("\n2 passed, 0 failed, 0 skipped\n"), result
    assert [result.stdout.count(f"\n{number} workers [") for number in (3, 2)] == [1, 1], result


TELLS_ITS_CASE = """
from pathlib import Path
def test_it(request): Path("{}", str(request.config.getoption("--one-case"))).touch()
"""


def test_other_pythons_run_other_cases(tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    project = Project(tmp_path, PASSES)
    project.write("tests/conftest.py", TAKES_OPTIONS)
    project.write("tests/namespaces/test_more.py", TELLS_ITS_CASE.format(chosen))
    variables = with_another_python(project)
    variables["PORTWRAP_PYTHONS"] = f"{sys.executable} {sys.executable}"
    result = project.run("namespaces", **variables)
    assert result.returncode == 0, result
    assert {path.name for path in chosen.iterdir()} == {"None", "0", "1"}


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_an_end_before_its_time_ends_all_runs(tmp_path: Path, number: int, status: int) -> None:
    """As timeout(1) and Ctrl-C end them: all that is in its process group. No other run begins."""
    begun = tmp_path / "begun"
    begun.mkdir()
    project = Project(tmp_path, WAITS.format(begun))
    project.write("tests/namespaces/test_more.py", WAITS.format(begun))
    project.write("tests/e2e/test_most.py", PASSES)
    process = project.start("all", **with_another_python(project))
    try:
        wait_until(lambda: len(list(begun.iterdir())) == 3, 50, "both runs at their tests")
        os.killpg(process.pid, number)
        process.communicate(timeout=50)
    finally:
        end(process)
    assert (process.returncode, len(list(begun.iterdir()))) == (status, 3)
    wait_until(lambda: not any(lives(int(path.name)) for path in begun.iterdir()), 50, "an end")
