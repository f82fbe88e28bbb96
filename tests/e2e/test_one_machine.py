"""Any spawner, one machine: the hub is on 127.0.0.1, which inside is another one, and still the
server reaches it, with no setting but `c.Spawner.cmd`."""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import subprocess
from pathlib import Path
from typing import Any, Iterator, cast

import pytest
from e2e.examples import adapted
from e2e.hub import Hub, Kernel

from demo.client import HubClient

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import (
    NEIGHBOUR,
    OWNER,
    PROJECT,
    SYSTEM_PATH,
    cannot,
    end,
    free_port,
    run_as,
    wait_until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
KINDS = ("sandboxed", "relay", "localhost", "plain")
"""As the example has it, with the relay, at an address that is a name, and without the sandbox."""

# The hub's API as the server knows it; another port of the host's loopback; one of the kernel's.
LOOK_AROUND = """
import json, os, socket, urllib.request
def status(url):
    request = urllib.request.Request(url)
    request.add_header("Authorization", "token " + os.environ["JUPYTERHUB_API_TOKEN"])
    return urllib.request.urlopen(request, timeout=5).status
def connects(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
url = os.environ["JUPYTERHUB_API_URL"]
opened = socket.create_server(("0.0.0.0", 0))
print(json.dumps({
    "url": url,
    "user": status(url + "/user"),
    "proxy": connects(%d),
    "opened": opened.getsockname()[1],
    "network": os.readlink("/proc/self/ns/net"),
}))
"""


class OneMachine:
    """A hub with the settings that JupyterHub has by itself, and a logged-in owner."""

    def __init__(self, run: Path, archive: Path, kind: str) -> None:
        home = run / "home"
        home.mkdir()
        os.chown(home, pwd.getpwnam(OWNER).pw_uid, pwd.getpwnam(OWNER).pw_gid)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.proxy_port = free_port()
        settings: dict[str, Any] = {
            "run": str(run),
            "home": str(home),
            "url": self.url,
            "hub_port": free_port(),
            "proxy_api_url": f"http://127.0.0.1:{self.proxy_port}",
            "password": secrets.token_urlsafe(9),
            "owner": OWNER,
            "kind": kind,
            "example": str(adapted("one_machine_config.py", {"ARCHIVE": str(archive)}, run)),
        }
        self.log = run / "hub.log"
        self.process = self.start(run, settings)
        self.facts = self  # what a kernel asks its hub for
        self.client = HubClient(self.url)
        self.kernels: list[Kernel] = []
        try:
            self.wait_for_hub()
            self.client.login(OWNER, settings["password"])
        except BaseException:
            self.stop()
            raise

    def start(self, run: Path, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
        venv = TEST_ROOT / "hub-venv" / "bin"
        environment = {
            "PATH": f"{venv}:{TEST_ROOT}/chp/bin:{SYSTEM_PATH}",
            "HOME": str(run),
            "LC_ALL": "C.UTF-8",
            "PORTWRAP_TEST_SETTINGS": json.dumps(settings),
        }
        config = PROJECT / "tests" / "e2e" / "one_machine_config.py"
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [venv / "jupyterhub", "--config", config],
                cwd=run,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_for_hub(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.client.get("/hub/health").status == 200
            except OSError:
                return False

        wait_until(answers, 60, "the hub answers")

    def user(self, path: str) -> str:
        return f"/user/{OWNER}/{path}"

    def kernel(self) -> Kernel:
        self.kernels.append(Kernel(cast(Hub, self)))
        return self.kernels[-1]

    def stop(self) -> None:
        """The hub stops the servers and the proxy when it is told to end."""
        for kernel in self.kernels:
            kernel.socket.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            end(self.process)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(world_dir: Path, pyz: Path, kind: str) -> Iterator[OneMachine]:
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    if not (TEST_ROOT / "hub-venv" / ".complete").exists():
        cannot("no JupyterHub; tests/setup.sh installs it")
    made = OneMachine(world_dir, pyz, kind)
    try:
        yield made
    finally:
        made.stop()


def test_a_hub_on_one_machine(machine: OneMachine, kind: str) -> None:
    try:
        machine.client.spawn({})
    except Exception as error:
        error.args = (f"{error}\n{machine.log.read_text()}",)
        raise
    # The server is logged in to over the hub's own API: it reaches that.
    assert machine.client.get(machine.user("api/contents")).status == 200
    seen = json.loads(machine.kernel().cell(LOOK_AROUND % machine.proxy_port))
    assert seen["url"].startswith("http://127.0.0.1:")
    assert seen["user"] == 200
    sandboxed = kind != "plain"
    assert (seen["network"] != os.readlink("/proc/self/ns/net")) == sandboxed
    # Of the host's loopback the hub's API alone answers inside.
    assert seen["proxy"] == (not sandboxed)
    # And a neighbour reaches what the notebook has opened only without the sandbox.
    program = (PROJECT / "demo" / "stranger.py").read_text()
    place = f"127.0.0.1:{seen['opened']}"
    result = run_as(NEIGHBOUR, ["/usr/bin/python3", "-c", program, "", place])
    assert [answer["connected"] for answer in json.loads(result.stdout)] == [not sandboxed]
    if sandboxed:
        assert f"host services {seen['url'].split('/')[2]}" in machine.log.read_text()
    if kind == "localhost":
        # Whoever tries ::1 first finds her server as well, and never the neighbour's.
        found = re.search(r"forwarding localhost:(\d+)", machine.log.read_text())
        assert found
        port = found[1]
        program = str(PROJECT / "tests" / "programs" / "squat.py")
        words = ["/usr/bin/python3", "-", port, "::1", "::", "127.0.0.1", "0.0.0.0"]
        with open(program) as text:
            assert run_as(NEIGHBOUR, words, stdin=text).stdout == "[]\n"
    machine.client.stop()
