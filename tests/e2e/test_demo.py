"""`./demo.sh`, run as a newcomer runs it: what it prints, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Sequence

import pytest

from demo.rig import claim, own_address, own_port

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import PROJECT, cannot, descendants, end, free_port, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

ACCOUNTS = ("portwrap-alice", "portwrap-bob")
# Without the sandbox, said in the words of an archive.
NO_SANDBOX = "import os, sys\nos.execvp(sys.argv[1], sys.argv[1:])\n"
BROKEN = "import sys\nsys.exit('these words stand in the log of the job only')\n"


@pytest.fixture(autouse=True)
def can_run() -> None:
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    if not (TEST_ROOT / "hub-venv" / ".complete").exists():
        cannot("no JupyterHub; tests/setup.sh installs it")


@contextlib.contextmanager
def demo(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The demonstration in a process group of its own, as a terminal starts it."""
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process)


def shown_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What it prints up to the line with this pattern; the test's own limit ends the wait."""
    assert process.stdout
    shown = ""
    for line in process.stdout:
        shown += line
        if re.search(pattern, line):
            return shown
    raise AssertionError(f"it ended without {pattern!r}:\n{shown}")


def finish(words: Sequence[str | Path]) -> tuple[int, str]:
    """Its exit status and everything it prints."""
    with demo(*words) as process:
        shown, _ = process.communicate()
        return process.returncode, shown


def assert_nothing_left() -> None:
    """No account and no interface; conftest.py looks for processes and files."""
    names = [entry.pw_name for entry in pwd.getpwall()]
    assert not set(ACCOUNTS) & set(names)
    assert "pw-demo" not in os.listdir("/sys/class/net")


def rows_of(shown: str) -> list[list[str]]:
    """The cells of the printed table."""
    lines = [line for line in shown.splitlines() if re.match(r"(sandbox|without) ", line)]
    return [re.split(r"  +", line.strip()) for line in lines]


def parts(archive: Path) -> list[str | Path]:
    """The demonstration with an archive of the test's, without installing and building."""
    words = [sys.executable, "-B", "-m", "demo", "--once"]
    return [*words, "--root", TEST_ROOT, "--archive", archive]


def test_it_prints_the_proof_and_waits_with_the_address_until_control_c() -> None:
    with demo("./demo.sh", "--root", TEST_ROOT) as process:
        shown = shown_until(process, "^Ctrl-C")
        assert_proof(shown)
        assert re.search(r"^Open +http://127\.0\.0\.1:\d+/user/portwrap-alice/", shown, re.M)
        assert re.search(r"^Log in +as portwrap-alice, password \S{12}$", shown, re.M)
        # A terminal's Ctrl-C goes to every process of the group in the foreground.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
    assert_nothing_left()


def assert_proof(shown: str) -> None:
    alice, bob = ACCOUNTS
    through_the_hub = r"her notes application, through the hub"
    straight = r"her notes application, 127\.0\.0\.1:\d+"
    kernel = r"the 5 ports of her notebook's kernel"
    jupyter = r"her Jupyter server, 198\.18\.\d+\.1:\d+"
    expected = [
        ("sandbox", alice, through_the_hub, "200, reads her notes"),
        ("sandbox", bob, straight, r"refused \(Connection refused\)"),
        ("sandbox", bob, kernel, "all refused"),
        ("sandbox", bob, jupyter, "403, not logged in"),
        ("without", alice, through_the_hub, "200, reads her notes"),
        ("without", bob, straight, "200, reads her notes: a leak"),
        ("without", bob, kernel, "5 of 5 open"),
        ("without", bob, jupyter, "403, not logged in"),
    ]
    assert re.search(
        r": forwarding \S+ -> 8888 \((native|relay)\), (.*, )?outbound [\w ]+, ready in ", shown
    )
    rows = rows_of(shown)
    assert len(rows) == len(expected), shown
    for row, patterns in zip(rows, expected):
        assert len(row) == len(patterns), row
        for cell, pattern in zip(row, patterns):
            assert re.fullmatch(pattern, cell), (cell, pattern)


def test_sigterm_while_the_hub_starts_leaves_nothing(pyz: Path) -> None:
    with demo(*parts(pyz)) as process:
        shown_until(process, "Starting JupyterHub")
        wait_until(lambda: "pw-demo" in os.listdir("/sys/class/net"), 30, "its interface")
        process.terminate()
        assert process.wait(60) == 130
    assert_nothing_left()


def test_sigterm_while_a_session_starts_leaves_nothing(pyz: Path) -> None:
    with demo(*parts(pyz)) as process:
        shown_until(process, "A session without")
        wait_until(lambda: len(descendants(process.pid)) > 4, 30, "the processes of a job")
        process.terminate()
        assert process.wait(60) == 130
    assert_nothing_left()


def test_sigterm_while_it_installs_leaves_nothing(world_dir: Path) -> None:
    root = world_dir / "root"
    with demo("./demo.sh", "--root", root) as process:
        shown_until(process, "Installing JupyterHub")
        wait_until(lambda: (root / "hub-venv").exists(), 30, "the start of the installation")
        process.terminate()
        assert process.wait(30) == 130
        assert not descendants(process.pid)
    assert [path.name for path in root.iterdir()] == ["install.lock"]


def test_the_proof_does_not_hold_without_a_sandbox(world_dir: Path) -> None:
    """The control: the demonstration sees it when what it has built protects nobody."""
    shutil.copy2(PROJECT / "demo.sh", world_dir)
    shutil.copytree(PROJECT / "demo", world_dir / "demo")
    (world_dir / "dist").mkdir()
    (world_dir / "dist" / "batchspawner-portwrap.pyz").write_text(NO_SANDBOX)
    shutil.copyfile("/usr/bin/true", world_dir / "build.sh")
    (world_dir / "build.sh").chmod(0o755)
    status, shown = finish([world_dir / "demo.sh", "--once", "--root", TEST_ROOT])
    assert status == 1, shown
    marked = [row for row in rows_of(shown) if row[-1].endswith("UNEXPECTED")]
    assert [row[0] for row in marked] == ["sandbox", "sandbox"], shown
    assert_nothing_left()


def test_a_session_that_fails_shows_the_log_of_its_job(world_dir: Path) -> None:
    archive = world_dir / "batchspawner-portwrap.pyz"
    archive.write_text(BROKEN)
    status, shown = finish(parts(archive))
    assert status == 1
    assert "these words stand in the log of the job only" in shown
    assert "Traceback" not in shown
    assert_nothing_left()


def test_no_two_choose_the_same_port() -> None:
    """Both before either holds it."""
    wanted = free_port()
    with contextlib.ExitStack() as second:
        with contextlib.ExitStack() as first:
            assert own_port(first, "127.0.0.1", wanted) == wanted
            assert own_port(second, "127.0.0.1", wanted) != wanted
        assert own_port(second, "127.0.0.1", wanted) == wanted


def test_no_two_choose_the_same_address() -> None:
    """Nor does the second where the first has not added it yet."""
    with own_address("test-one") as chosen:
        pass
    with contextlib.ExitStack() as first:
        assert claim(first, chosen)
        with own_address("test-two") as other:
            assert other != chosen


def test_an_unknown_argument_is_refused() -> None:
    status, shown = finish(["./demo.sh", "--onec"])
    assert status == 2
    assert shown.startswith("demo.sh: unknown argument: --onec\n")
