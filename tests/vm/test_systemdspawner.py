"""A hub on Debian 13 whose servers are services: systemdspawner, with each of its options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence
from urllib.parse import quote

import pytest
from vm.conftest import ARCHIVE, HERE, PROGRAMS
from vm.machine import PATIENCE, Machine
from vm.test_sessions import NEIGHBOURS_ANSWER
from vm.units import HUB_PAGE, processes

from helpers import NEIGHBOUR, OWNER, wait_until

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("machine", ["trixie"], indirect=True),
]

OTHER = 21900
HUB = "http://127.0.0.1:8000"
TOKEN = "Authorization: token the-token-of-the-tests"
PROXY = """
systemd-run --quiet --unit=proxy --setenv=CONFIGPROXY_AUTH_TOKEN=the-token-of-the-proxy \\
    /opt/chp/bin/configurable-http-proxy --ip 127.0.0.1 --port 8000 --api-ip 127.0.0.1 \\
    --api-port 8001 --default-target http://127.0.0.1:8081
"""
UNIT = f"jupyter-{OWNER}"
JOURNAL = ("journalctl", "-o", "cat", "-u", "hub")
DRIVER = "outbound native and "


@dataclass
class Row:
    """Options of the Spawner, a command in the session with the words that it prints, which show
    that they are in force, and words of the start-up line."""

    options: Mapping[str, Any]
    command: str
    prints: str
    line: str = DRIVER


ROWS = {
    "defaults": Row({}, "id -un", OWNER),
    "isolate_tmp": Row({"isolate_tmp": True}, "ls -d /tmp/here || echo hidden", "hidden"),
    "isolate_devices": Row(
        {"isolate_devices": True}, "ls /dev/net || echo hidden", "hidden", line="outbound native,"
    ),
    "disable_user_sudo": Row(
        {"disable_user_sudo": True}, "grep NoNewPrivs: /proc/self/status", "NoNewPrivs:\t1"
    ),
    "readonly_paths": Row(
        {"readonly_paths": ["/"], "readwrite_paths": [f"/home/{OWNER}", "/proc", "/tmp"]},
        "touch /tmp/there ~/there && touch /var/tmp/there",
        "Read-only file system",
    ),
    "mem_limit": Row(
        {"mem_limit": "512M"},
        "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max",
        f"{512 << 20}",
    ),
    "cpu_limit": Row(
        {"cpu_limit": 1.5},
        "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/cpu.max",
        "150000 100000",
    ),
    "slice": Row({"slice": "people.slice"}, "cat /proc/self/cgroup", "/people.slice/"),
    "unit_extra_properties": Row(
        {
            "unit_extra_properties": {
                "ProtectSystem": "full",
                "ProtectHome": "tmpfs",
                "BindPaths": "/home/{USERNAME}",
            }
        },
        'echo "<$(ls /home)>"',
        f"<{OWNER}>",
    ),
    "dynamic_users": Row({"dynamic_users": True}, "pwd", f"/var/lib/private/{OWNER}"),
}


TLJHS = {
    "extra_paths": [f"{PROGRAMS}/user/bin"],
    "default_shell": "/bin/bash",
    "disable_user_sudo": True,
}
"""What The Littlest JupyterHub sets, with the name of the unit."""


def failed(machine: Machine) -> str:
    """The services that have, such as the hub."""
    return machine.do("systemctl", "list-units", "--failed", "--no-legend")


class Hub:
    """The API of a hub in the machine, and what its proxy serves."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def curl(self, *words: str, account: str = "root") -> str:
        before = ["curl", "--silent", "--show-error", "--max-time", "120"]
        return self.machine.run(*before, *words, account=account).output

    def wait_for(self, url: str) -> None:
        """Until something answers there."""
        wait_until(lambda: self.curl("--head", url) or failed(self.machine), 10 * PATIENCE, url)
        assert not failed(self.machine), failed(self.machine) + self.machine.do(*JOURNAL)

    def api(self, method: str, path: str) -> dict[str, Any]:
        answer = self.curl("-X", method, "-H", TOKEN, f"{HUB}/hub/api/{path}")
        return dict(json.loads(answer or "{}"))

    def choose(self, command: Sequence[str], options: Mapping[str, Any]) -> None:
        settings = {"cmd": [ARCHIVE, *command], **options}
        self.machine.write("/run/hub/settings.json", json.dumps(settings))

    def start(self) -> None:
        self.machine.shell("journalctl --rotate --vacuum-time=1us")
        self.api("POST", f"users/{OWNER}/server")
        wait_until(self.is_settled, 10 * PATIENCE, "a server, or a failure")
        assert self.is_ready(), self.log() + self.machine.do(*JOURNAL)

    def server(self) -> dict[str, Any]:
        return dict(self.api("GET", f"users/{OWNER}")["servers"].get("", {}))

    def is_ready(self) -> bool:
        return bool(self.server().get("ready"))

    def is_settled(self) -> bool:
        server = self.server()
        return not server or bool(server["ready"] or failed(self.machine))

    def get(self, path: str) -> str:
        return self.curl("-H", TOKEN, f"{HUB}/user/{OWNER}/{path}")

    def stop(self) -> None:
        self.api("DELETE", f"users/{OWNER}/server")
        wait_until(lambda: not self.server(), 10 * PATIENCE, "its end")

    def log(self) -> str:
        return self.machine.do("journalctl", "-o", "cat", "-u", UNIT)


@pytest.fixture(scope="module")
def hub(machine: Machine) -> Iterator[Hub]:
    # Services of other tests have failed, as they were to.
    machine.shell("mkdir -p /run/hub && touch /tmp/here && systemctl reset-failed")
    every = sorted({name for row in ROWS.values() for name in row.options} | {*TLJHS})
    machine.write("/run/hub/all.json", json.dumps(every))
    machine.write("/run/hub/config.py", (HERE / "hub_config.py").read_bytes())
    machine.shell(PROXY)
    made = Hub(machine)
    made.wait_for("http://127.0.0.1:8001/api/routes")
    words = ["systemd-run", "--quiet", "--unit=hub", "-p", "WorkingDirectory=/run/hub"]
    machine.do(*words, "/usr/bin/python3", "-m", "jupyterhub", "-f", "/run/hub/config.py")
    made.wait_for("http://127.0.0.1:8081/hub/api")
    made.api("POST", f"users/{OWNER}")
    yield made
    machine.shell("systemctl stop hub proxy; systemctl reset-failed")  # a proxy fails at SIGTERM


@pytest.mark.parametrize("name", ROWS)
def test_an_option(machine: Machine, hub: Hub, name: str) -> None:
    row = ROWS[name]
    hub.choose(["/usr/bin/python3", f"{PROGRAMS}/app.py", "url", str(OTHER)], row.options)
    hub.start()
    assert row.prints in hub.get("run/" + quote(row.command, safe=""))
    assert hub.get(f"fetch/{HUB_PAGE}") == "hub01\n"
    assert hub.get(f"fetch/http://127.0.0.1:{OTHER}/").startswith("served by ")
    neighbours = machine.run("curl", "--silent", f"http://127.0.0.1:{OTHER}/", account=NEIGHBOUR)
    assert neighbours.status == NEIGHBOURS_ANSWER
    assert "(native)" in hub.log() and row.line in hub.log()
    hub.stop()
    assert "shut down" in hub.log() and "Traceback" not in hub.log()
    machine.do("rm", "-rf", f"/run/{UNIT}")  # a dynamic user's is a link, at which a start fails
    wait_until(lambda: processes(machine) == "", PATIENCE, "the end of its processes")


def test_a_notebook_server(machine: Machine, hub: Hub) -> None:
    """With the settings of The Littlest JupyterHub."""
    server = '#!/bin/sh\nexec /usr/bin/python3 -m jupyterhub.singleuser "$@"\n'
    machine.write(f"{PROGRAMS}/user/bin/jupyterhub-singleuser", server, 0o755)
    hub.choose(["jupyterhub-singleuser"], TLJHS)
    hub.start()
    assert "started" in json.loads(hub.get("api/status"))
    assert "(native)" in hub.log() and DRIVER in hub.log()
    hub.stop()
    assert "Traceback" not in hub.log()
    wait_until(lambda: processes(machine) == "", PATIENCE, "the end of its processes")
