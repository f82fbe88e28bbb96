"""Every JupyterHub and batchspawner that a site may run, and the kinds of single-user servers.

`tests/setup.sh matrix` installs them; three pairs, in which the port arrives in three different
ways, are always here, and run without `-m matrix`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from _pytest.mark import ParameterSet
from e2e.hub import Hub, start_hub
from e2e.test_hub_ends import assert_free

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import cannot, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
GUEST_PORT = 8888
HUBS = ("1.5", "2.3", "3.1", "4.0", "4.1", "5.5", "6.1")
BATCHSPAWNERS = ("1.1", "1.2", "1.3")
USUAL = {("1.5", "1.3"), ("2.3", "1.2"), ("4.0", "1.3")}
SSL = ("4.1", "6.1")

APP = "JUPYTERHUB_SINGLEUSER_APP"
SERVERS = {
    "jupyter_server": {APP: "jupyter_server.serverapp.ServerApp"},
    "notebook": {APP: "notebook.notebookapp.NotebookApp"},
    "no extension": {"JUPYTERHUB_SINGLEUSER_EXTENSION": "0"},
    "jupyverse": {APP: "jupyverse"},
}
# It gives itself a second for each step of its start, which is too short on a busy machine.
JUPYVERSE = """
import functools
from jupyverse_api import cli
cli.main.callback = functools.partial(cli.main.callback, timeout=90)
from jupyterhub.singleuser import main
main()
"""
HUBS_WITH = {
    "jupyter_server": HUBS,
    "notebook": ("1.5", "2.3", "3.1", "4.1"),
    "no extension": ("4.0", "4.1", "5.5", "6.1"),
    "jupyverse": ("5.5", "6.1"),
}


def newer(version: str, than: str) -> bool:
    return [int(part) for part in version.split(".")] >= [int(part) for part in than.split(".")]


class Pair:
    """A JupyterHub with a batchspawner, and which configuration it runs with."""

    def __init__(self, hub: str, batchspawner: str, ssl: bool = False) -> None:
        self.hub = hub
        self.batchspawner = batchspawner
        self.ssl = ssl
        self.root = TEST_ROOT / "versions" / f"jupyterhub-{hub}+batchspawner-{batchspawner}"

    @property
    def servers(self) -> list[str]:
        known = [name for name in SERVERS if self.hub in HUBS_WITH[name]]
        # jupyverse serves plain HTTP only, with the sandbox or without.
        return [name for name in known if not (self.ssl and name == "jupyverse")]

    @property
    def port_is_a_word(self) -> bool:
        """Whether batchspawner tells the port as a last word of the command."""
        return not (newer(self.hub, "2.0") and newer(self.batchspawner, "1.3"))

    @property
    def port_is_lost(self) -> bool:
        """Whether batchspawner never tells the hub the port, with the sandbox or without: it calls
        a function of JupyterHub's that has to be awaited since version 3."""
        return newer(self.hub, "3.0") and not newer(self.batchspawner, "1.3")

    @property
    def port_is_in_the_url(self) -> bool:
        """Whether JupyterHub gives the command a URL."""
        return newer(self.hub, "2.0")

    @property
    def parameter(self) -> ParameterSet:
        words = [f"JupyterHub {self.hub}", f"batchspawner {self.batchspawner}"]
        usual = (self.hub, self.batchspawner) in USUAL and not self.ssl
        marks = () if usual else (pytest.mark.matrix,)
        return pytest.param(self, marks=marks, id=", ".join([*words, *["SSL"] * self.ssl]))

    def start(self, archive: Path) -> Iterator[Hub]:
        if not self.root.with_name(f"{self.root.name}.complete").exists():
            cannot(f"not installed: {self.root.name}; tests/setup.sh matrix")
        config = "versions_ssl_config.py" if self.ssl else "versions_config.py"
        yield from start_hub(self.root, archive, "--name", "versions", "--config", HERE / config)


ALL_PAIRS = [Pair(hub, batchspawner) for hub in HUBS for batchspawner in BATCHSPAWNERS]
PAIRS = [pair for pair in ALL_PAIRS if not pair.port_is_lost]
PAIRS += [Pair(hub, "1.3", ssl=True) for hub in SSL]


@pytest.fixture
def hub_of(request: pytest.FixtureRequest, pyz: Path) -> Iterator[Hub]:
    """The hub of the pair."""
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    yield from request.param.start(pyz)


@pytest.mark.parametrize("hub_of", [pair.parameter for pair in PAIRS], indirect=True)
def test_sessions_of(
    hub_of: Hub, request: pytest.FixtureRequest, subtests: pytest.Subtests
) -> None:
    """With each kind of single-user server that there is for this JupyterHub."""
    hub, pair = hub_of, request.node.callspec.params["hub_of"]
    for server in pair.servers:
        with subtests.test(server):
            with running(hub, server):
                assert_port_arrived(hub, pair)
                assert_only_the_server_is_open(hub)
                assert_it_serves(hub)
                port = hub.host_port()
            assert hub.state().startswith("CANCELLED "), hub.log()
            assert "killing what is left" not in hub.log()
            wait_until(lambda: not hub.processes(), 10, f"the end of {hub.processes()}")
            assert_free(port)


IS_LOST = """
import inspect
from batchspawner import singleuser
from jupyterhub.services.auth import HubAuth
calls = "hub_auth._api_request(" in inspect.getsource(singleuser)
print(calls and inspect.iscoroutinefunction(HubAuth._api_request))
"""


@pytest.mark.matrix
@pytest.mark.parametrize("pair", ALL_PAIRS, ids=lambda pair: pair.root.name)
def test_the_pairs_that_are_left_out_work_nowhere(pair: Pair) -> None:
    python = pair.root / "hub-venv" / "bin" / "python"
    if not python.exists():
        cannot(f"not installed: {pair.root.name}; tests/setup.sh matrix")
    result = subprocess.run([python, "-c", IS_LOST], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(pair.port_is_lost)


class running:
    """The owner's server of this kind runs in this context."""

    def __init__(self, hub: Hub, server: str) -> None:
        self.hub = hub
        environment = [f"{name}={value}" for name, value in SERVERS[server].items()]
        words = ["python3", "-c", JUPYVERSE] if server == "jupyverse" else ["jupyterhub-singleuser"]
        self.cmd = shlex.join(["env", *environment, *hub.command(*words)])

    def __enter__(self) -> None:
        try:
            self.hub.client.spawn({"sandbox": True, "cmd": self.cmd})
        except Exception as error:
            error.args = (f"{error}\n{self.hub.log() if self.hub.jobs() else 'no job'}",)
            self.hub.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.hub.stop()


def assert_port_arrived(hub: Hub, pair: Pair) -> None:
    """Whatever named the host's port names the guest port inside, and nothing else was added."""
    process = Path(f"/proc/{hub.job_pid()}")
    words = (process / "cmdline").read_bytes().decode().split("\0")
    environ = (process / "environ").read_bytes().decode().split("\0")
    urls = [line for line in environ if line.startswith("JUPYTERHUB_SERVICE_URL=")]
    assert [w for w in words if w.startswith("--port=")] == ["--port=8888"] * pair.port_is_a_word
    scheme = "https" if pair.ssl else "http"
    assert [line.partition("=")[2] for line in urls] == [
        f"{scheme}://127.0.0.1:{GUEST_PORT}/user/{hub.client.user}/"
    ] * pair.port_is_in_the_url


def assert_only_the_server_is_open(hub: Hub) -> None:
    assert os.readlink(f"/proc/{hub.job_pid()}/ns/net") != os.readlink("/proc/self/ns/net")
    guest, host = (f"{hub.facts.node}:{port}" for port in (GUEST_PORT, hub.host_port()))
    answers = hub.neighbour_asks(guest, host, path="")
    assert answers[guest] == {"connected": False, "why": "Connection refused"}
    assert answers[host]["connected"]


def assert_it_serves(hub: Hub) -> None:
    hub.client.get(hub.user(""))  # jupyverse sends its owner to the hub from here alone
    answer = hub.client.get(hub.user("api/contents"))
    assert answer.status == 200, answer.text
    assert "notes.txt" in [entry["name"] for entry in answer.json()["content"]]
