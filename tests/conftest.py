"""Fixtures, and what a machine must have for the marked tests."""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Callable, Iterable, Iterator

import measure
import node
import pytest

from helpers import (
    NEIGHBOUR,
    OWNER,
    PREFIX,
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


def never_end_the_tests(event: str, arguments: tuple[object, ...]) -> None:
    """An exec in the process of the tests would end them all, with that program's status; and so
    does a signal to the process 0, which is what is there of a session where there is none."""
    if event == "os.exec" and os.getpid() == TESTS_PROCESS:
        raise AssertionError("exec in the process of the tests")
    if event == "os.kill" and arguments[0] == 0:
        raise AssertionError("a signal to the process group of the tests")


sys.addaudithook(never_end_the_tests)

TEST_ROOT = Path(os.environ.get("PORTWRAP_TEST_ROOT", "/opt/portwrap-tests"))

BUILT = Path(
    os.environ.get("PORTWRAP_TEST_ARCHIVE") or PROJECT / "dist" / "batchspawner-portwrap.pyz"
)


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
    reason = node.become()
    if reason:
        return reason
    result = run_as(OWNER, ["unshare", "-Urn", "true"])
    if result.returncode != 0:
        return f"no user and network namespaces here: {result.stderr.strip()}"
    if find_tool("slirp4netns") is None:
        return "not installed: slirp4netns; tests/setup.sh installs it"
    if run_as(OWNER, ["sh", "-c", ": <>/dev/net/tun"]).returncode != 0:
        return "/dev/net/tun is missing or not open to everyone; tests/setup.sh mends it"
    return None


# ---- which tests run, and where ---------------------------------------------------------------

FORWARDS = ("auto", "native", "relay")  # the one that stands first is kept
CHOOSES_FORWARD = ("each_forward", "forward", "busy")
"""The parameters of tests that have these values; others have the same words for something else."""

FEW = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-forward",
        action="store_true",
        help="leave out the tests that another one does with another forward",
    )
    parser.addoption(
        "--one-case",
        type=int,
        metavar="NUMBER",
        help="of each test one case: the first (0), the last (1), the one before (2), …; of those "
        "that are marked as every_python all",
    )
    parser.addoption(
        "--few-cases",
        action="store_true",
        help=f"the same with {FEW} cases of each test, from the first to the last",
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # that of Python 3.8 knows no other order
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # of what is left then
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--one-forward"):
        _keep(config, items, _with_one_forward(items))
    if config.getoption("--one-case") is not None:
        number = config.getoption("--one-case")
        _keep(config, items, _with_cases(items, lambda cases: [cases[-number % len(cases)]]))
    if config.getoption("--few-cases"):
        _keep(config, items, _with_cases(items, _few))
    if hasattr(config, "workerinput"):
        _longest_files_first(items)


WEIGHTS = {"slow": 25, "e2e": 5, "namespaces": 1}
"""About how long a test takes with one of these marks, the first that it has."""


def _longest_files_first(items: list[pytest.Item]) -> None:
    """A worker that gets a long file at last works while the others have nothing to do any more.
    pytest-xdist gives files out in this order (see pytest_configure)."""
    files: dict[Path, float] = defaultdict(float)
    for item in items:
        marks = (value for name, value in WEIGHTS.items() if item.get_closest_marker(name))
        files[item.path] += next(marks, 0.1)
    items.sort(key=lambda item: -files[item.path])


def _keep(config: pytest.Config, items: list[pytest.Item], kept: Iterable[pytest.Item]) -> None:
    chosen = set(map(id, kept))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = [item for item in items if id(item) in chosen]


def _few(cases: list[pytest.Item]) -> list[pytest.Item]:
    last = len(cases) - 1
    return [cases[place] for place in sorted({last * number // (FEW - 1) for number in range(FEW)})]


def _with_cases(
    items: list[pytest.Item], choose: Callable[[list[pytest.Item]], list[pytest.Item]]
) -> Iterator[pytest.Item]:
    """Of each test some cases; of some tests all."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("every_python"):
            yield item
        else:
            cases[item.nodeid.partition("[")[0]].append(item)
    for several in cases.values():
        yield from choose(several)


def _with_one_forward(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Of tests that differ in nothing but how connections reach the server, one."""
    chosen: dict[object, tuple[list[int], pytest.Item]] = {}
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        forwards = {name: params[name] for name in CHOOSES_FORWARD if params.get(name) in FORWARDS}
        rank = [FORWARDS.index(value) for value in forwards.values()]
        others = [(name, str(value)) for name, value in params.items() if name not in forwards]
        key = item.nodeid.partition("[")[0], *others
        if key not in chosen or rank < chosen[key][0]:
            chosen[key] = rank, item
    return (item for _, item in chosen.values())


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Before the first fixture: what a test finds out about its machine is true of the node."""
    if any(map(_needs_node, session.items)) and why_namespaces_fail() is None:
        # There is no package index on the node.
        os.environ.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(TEST_ROOT / "wheels"))


def _needs_node(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("namespaces", "e2e"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("namespaces"):
        reason = why_namespaces_fail()
        if reason:
            cannot(reason)


@pytest.fixture(scope="session")
def python() -> str:
    """The Python that runs our code: PORTWRAP_PYTHON, else the system's own."""
    return os.environ.get("PORTWRAP_PYTHON") or "/usr/bin/python3"


def make_world_dir() -> Path:
    """A new directory that every account can read: pytest's tmp_path is 0700."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    path.chmod(0o755)
    return path


@pytest.fixture
def world_dir() -> Iterator[Path]:
    """A directory of ours that every account can read; removed afterwards."""
    path = make_world_dir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def pyz() -> Iterator[Path]:
    """A copy of the built archive that every account can run."""
    path = make_world_dir()
    try:
        copy = path / BUILT.name
        if BUILT.exists():
            shutil.copyfile(BUILT, copy)
        else:
            subprocess.run([PROJECT / "build.sh", copy], check=True)
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
def own_orphans() -> None:
    """Orphans of the tests become children of this process, so that it knows them as its own."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_orphans() -> None:
    for pid in children_of(os.getpid()):
        if state_of(pid) == "Z":
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def _live_descendants() -> set[int]:
    return set(filter(lives, descendants(os.getpid())))


def _things() -> set[str]:
    """The node's mounts and network interfaces, and what lies in the machine's temporary folders
    of its accounts and of this process."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    things = {f"mount {line.split()[4]}" for line in mounts}
    things |= {f"interface {name}" for _, name in socket.if_nameindex()}
    for folder in WATCHED_FOLDERS:
        if os.path.isdir(folder):
            things |= {f"file {entry.path}" for entry in os.scandir(folder) if _is_ours(entry)}
    return things


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Other programs of this machine, and other runs of the tests, make files meanwhile."""
    try:
        uid = entry.stat(follow_symlinks=False).st_uid
    except OSError:
        return False
    return uid in _uids() or entry.name.startswith(PREFIX)


@functools.lru_cache(maxsize=None)
def _uids() -> set[int]:
    """Those of the node's accounts."""
    return {pwd.getpwnam(account).pw_uid for account in (OWNER, NEIGHBOUR)}


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest, own_orphans: None) -> Iterator[None]:
    """Fail a test that leaves a process, and with it whatever holds a port, or a mount, a network
    interface or a temporary file."""
    # Only these tests make any, and listing them takes longer than most unit tests.
    watched = _needs_node(request.node) and why_namespaces_fail() is None
    processes = _live_descendants()
    things = _things() if watched else set()
    yield
    deadline = time.monotonic() + LEFTOVER_LIMIT
    while True:
        left = _live_descendants() - processes
        made = _things() - things if watched else set()
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
