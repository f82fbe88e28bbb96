"""One hub for all of the end-to-end tests that need one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from e2e.hub import Hub, start_hub
from e2e.slurm import Cluster, run_directory, why_no_slurm
from e2e.slurm_hub import SlurmHub

from conftest import TEST_ROOT, make_world_dir, why_namespaces_fail
from helpers import PROJECT, cannot


@pytest.fixture(scope="session")
def hub(pyz: Path) -> Iterator[Hub]:
    """A real JupyterHub with batchspawner; pw-owner is logged in, and has no server running."""
    needs_a_hub()
    yield from start_hub(TEST_ROOT, pyz)


COPIES_VENVS = """#!/bin/sh
[ "$1 $2" != "-m venv" ] || exec cp -a {venv} "$3"
exec {python} "$@"
"""


@pytest.fixture(scope="session")
def builder() -> Iterator[Path]:
    """A Python for build.sh (PYTHON) that copies a virtual environment each time: to make one takes
    longer than all else that a build does."""
    python, folder = "/usr/bin/python3", make_world_dir()
    try:
        venv, program = folder / "venv", folder / "python3"
        subprocess.run([python, "-m", "venv", venv], check=True)
        program.write_text(COPIES_VENVS.format(venv=venv, python=python))
        program.chmod(0o755)
        yield program
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def built_by_builder(builder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each build.sh that the test starts takes that Python, unless it is told another one."""
    monkeypatch.setenv("PYTHON", str(builder))


@pytest.fixture(scope="session")
def fast_pyz(python: str, builder: Path) -> Iterator[Path]:
    """An archive with byte code for the Python that runs our code; every account can run it."""
    folder = make_world_dir()
    try:
        output = folder / "with-byte-code.pyz"
        words = [str(PROJECT / "build.sh"), "--for", python, str(output)]
        subprocess.run(words, env={**os.environ, "PYTHON": str(builder)}, check=True)
        yield output
    finally:
        shutil.rmtree(folder)


def needs_a_hub() -> None:
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    if not (TEST_ROOT / "hub-venv" / ".complete").exists():
        cannot("no JupyterHub; tests/setup.sh installs it")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A hub's host and two nodes with a real Slurm."""
    reason = why_namespaces_fail() or why_no_slurm()
    if reason:
        cannot(reason)
    with run_directory() as run, Cluster(run) as made:
        yield made


@pytest.fixture(scope="session")
def slurm_hub(cluster: Cluster, pyz: Path) -> SlurmHub:
    """A JupyterHub with SlurmSpawner on that cluster."""
    needs_a_hub()
    return SlurmHub(cluster, pyz)
