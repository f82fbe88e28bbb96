"""A hub whose sessions are jobs of a real Grid Engine, as examples/gridengine_config.py has it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterator, Mapping

import pytest
from e2e.conftest import needs_a_hub
from e2e.gridengine import GridEngine, GridEngineHub, GridEngineSession, why_no_gridengine
from e2e.slurm import run_directory, why_no_slurm

from helpers import NEIGHBOUR, PROJECT, cannot, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(300)]

KINDS = ("native", "relay", "plain")
STRANGER = (PROJECT / "demo" / "stranger.py").read_text()
OPEN_ONE = """
import os, socket
opened = socket.create_server(("0.0.0.0", 0))
print(opened.getsockname()[1], os.readlink("/proc/self/ns/net"))
"""


@pytest.fixture(scope="module")
def grid_hub(pyz: Path) -> Iterator[GridEngineHub]:
    """A hub's host and two nodes with a Grid Engine, and a JupyterHub."""
    needs_a_hub()
    reason = why_no_slurm() or why_no_gridengine()  # the hosts are those of the Slurm tests
    if reason:
        cannot(reason)
    with run_directory() as run, GridEngine(run) as cluster:
        yield GridEngineHub(cluster, pyz)


@pytest.fixture(params=KINDS)
def session(grid_hub: GridEngineHub, request: pytest.FixtureRequest) -> Iterator[GridEngineSession]:
    """A running session; afterwards it is over, and nothing of it is left."""
    made = GridEngineSession(grid_hub, request.param)
    try:
        made.start()
        yield made
    finally:
        grid_hub.stop_sessions()
        grid_hub.cluster.assert_clean()


def test_a_session_and_its_neighbour(session: GridEngineSession) -> None:
    assert session.get("api/contents").status == 200
    port, network = session.start_kernel().cell(OPEN_ONE).split()
    node = session.node()
    outside = os.readlink(f"/proc/{node.init}/ns/net")
    assert (network != outside) == session.sandboxed
    place = f"127.0.0.1:{port}"
    told = node.do("/usr/bin/python3", "-c", STRANGER, "", place, account=NEIGHBOUR)
    assert [answer["connected"] for answer in json.loads(told)] == [not session.sandboxed]
    if session.sandboxed:
        assert f" -> 8888 ({session.kind}" in session.log()  # the log of all sessions, in turn


def end_of(told: Mapping[str, str]) -> tuple[str, str]:
    """Why Grid Engine thinks that it failed, "0" for not at all, and its exit status."""
    return told["failed"].split()[0], told["exit_status"].split()[0]


def test_the_hub_stops_it(session: GridEngineSession) -> None:
    """qdel kills with signal 9 at once, the sandbox's own processes as well."""
    assert end_of(session.stop_grid()) == ("100", "137")


def test_its_owner_shuts_it_down(session: GridEngineSession) -> None:
    session.client.api("POST", session.path("api/shutdown"))
    assert end_of(session.wait_accounted()) == ("0", "0")


def test_the_server_is_killed(session: GridEngineSession) -> None:
    pid = session.server_pid_on(session.node())
    assert pid
    os.kill(pid, 9)
    assert end_of(session.wait_accounted()) == ("0", "137")
    wait_until(lambda: not session.is_known(), 60, "the hub's end of it")
