"""Fixtures, and what a machine must have for the marked tests."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

import measure
import pytest

from helpers import (
    NEIGHBOUR,
    OWNER,
    PROJECT,
    cannot,
    children_of,
    descendants,
    describe,
    find_tool,
    lives,
    run_as,
    state_of,
)

measure.begin()
# Under nohup(1), or in some shells' background, what we start would be deaf to it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TESTS_PROCESS = os.getpid()


def never_become_another(event: str, _: object) -> None:
    """An exec in the process of the tests would end them all, with that program's status."""
    if event == "os.exec" and os.getpid() == TESTS_PROCESS:
        raise AssertionError("exec in the process of the tests")


sys.addaudithook(never_become_another)

TEST_ROOT = Path(os.environ.get("PORTWRAP_TEST_ROOT", "/opt/portwrap-tests"))


@functools.lru_cache(maxsize=None)
def why_namespaces_fail() -> str | None:
    """Why this machine cannot run the tests that need namespaces; None if it can.

    Asks the kernel by util-linux' `unshare`, never our own code: a bug there is no reason to skip.
    """
    if os.geteuid() != 0:
        return "needs root, to act as two other accounts"
    for account in (OWNER, NEIGHBOUR):
        try:
            pwd.getpwnam(account)
        except KeyError:
            return f"no account {account}; tests/setup.sh makes it"
    result = run_as(OWNER, ["unshare", "-Urn", "true"])
    if result.returncode != 0:
        return f"no user and network namespaces here: {result.stderr.strip()}"
    if find_tool("slirp4netns") is None:
        return "not installed: slirp4netns; tests/setup.sh installs it"
    if run_as(OWNER, ["sh", "-c", ": <>/dev/net/tun"]).returncode != 0:
        return "/dev/net/tun is missing or not open to everyone; tests/setup.sh mends it"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("namespaces"):
        reason = why_namespaces_fail()
        if reason:
            cannot(reason)


@pytest.fixture(scope="session")
def python() -> str:
    """The Python that runs our code: PORTWRAP_PYTHON, else the system's own."""
    return os.environ.get("PORTWRAP_PYTHON") or "/usr/bin/python3"


def _make_world_dir() -> Path:
    # pytest's tmp_path is 0700: no other account gets in.
    path = Path(tempfile.mkdtemp(prefix="portwrap-test-", dir="/tmp"))
    path.chmod(0o755)
    return path


@pytest.fixture
def world_dir() -> Iterator[Path]:
    """A directory of ours that every account can read; removed afterwards."""
    path = _make_world_dir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def pyz() -> Iterator[Path]:
    """A copy of the built archive that every account can run."""
    built = PROJECT / "dist" / "batchspawner-portwrap.pyz"
    if not built.exists():
        subprocess.run([PROJECT / "build.sh"], check=True)
    path = _make_world_dir()
    try:
        copy = path / built.name
        shutil.copyfile(built, copy)
        copy.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        yield copy
    finally:
        shutil.rmtree(path)


# ---- nothing is left after a test -----------------------------------------------------------

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
WATCHED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run/netns")
LEFTOVER_LIMIT = 20.0
"""Seconds that what a test has ended may take to be gone."""


@pytest.fixture(scope="session", autouse=True)
def run_lock() -> Iterator[int | None]:
    """Orphans of the tests become children of this process, so that it knows them as its own; and
    a lock shared by all runs on this machine: one that is alone may look at what all share."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        lock = os.open(TEST_ROOT / ".running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        yield None
        return
    fcntl.flock(lock, fcntl.LOCK_SH)
    yield lock
    os.close(lock)


def _is_alone(lock: int | None) -> bool:
    if lock is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        fcntl.flock(lock, fcntl.LOCK_SH)


def _reap_orphans() -> None:
    for pid in children_of(os.getpid()):
        if state_of(pid) == "Z":
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def _live_descendants() -> set[int]:
    return set(filter(lives, descendants(os.getpid())))


def _shared_things() -> set[str]:
    """What the whole machine sees: mounts, network interfaces, entries of temporary folders."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    things = {f"mount {line.split()[4]}" for line in mounts}
    things |= {f"interface {name}" for name in os.listdir("/sys/class/net")}
    for folder in WATCHED_FOLDERS:
        if os.path.isdir(folder):
            things |= {f"file {entry.path}" for entry in os.scandir(folder) if _may_be_ours(entry)}
    return things


def _may_be_ours(entry: os.DirEntry[str]) -> bool:
    """Other programs of this machine make files meanwhile."""
    try:
        owner = pwd.getpwuid(entry.stat(follow_symlinks=False).st_uid).pw_name
    except (OSError, KeyError):
        return False
    return owner in (OWNER, NEIGHBOUR) or entry.name.startswith("portwrap-test-")


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest, run_lock: int | None) -> Iterator[None]:
    """Fail a test that leaves a process, and with it whatever holds a port, or a mount, a network
    interface or a temporary file."""
    # Only these tests make any, and listing them takes longer than most unit tests.
    shared = any(request.node.get_closest_marker(name) for name in ("namespaces", "e2e"))
    processes = _live_descendants()
    things = _shared_things() if shared and _is_alone(run_lock) else None
    yield
    deadline = time.monotonic() + LEFTOVER_LIMIT
    while True:
        left = _live_descendants() - processes
        made: set[str] = set()
        if things is not None and _is_alone(run_lock):
            made = _shared_things() - things
        if not (left or made) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    told = [*map(describe, sorted(left)), *sorted(made)]
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    _reap_orphans()
    assert not told, "left behind:\n" + "\n".join(told)
