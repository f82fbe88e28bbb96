"""Fixtures, and what a machine must have for the marked tests."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

from helpers import NEIGHBOUR, OWNER, PROJECT, cannot, find_tool, run_as

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
