"""examples/jupyter@.service on Debian 13: a person's Jupyter server without a hub."""

from __future__ import annotations

import json

import pytest
from vm.conftest import ARCHIVE
from vm.machine import PATIENCE, Machine
from vm.test_sessions import NEIGHBOURS_ANSWER
from vm.units import processes

from helpers import NEIGHBOUR, OWNER, PROJECT, wait_until

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("machine", ["trixie"], indirect=True),
]

UNIT = f"jupyter@{OWNER}"
PORT, TOKEN = 20901, "a-long-secret"
HERE = {
    "/usr/local/bin/batchspawner-portwrap.pyz": ARCHIVE,
    "jupyter lab": "/usr/bin/python3 -m jupyter_server",
}
"""What the machine has, in place of what a site has."""


def get(machine: Machine, url: str, account: str = OWNER, *options: str) -> str:
    """A page, or the status of curl(1)."""
    result = machine.run("curl", "--silent", "--show-error", *options, url, account=account)
    return result.output if result.status == 0 else str(result.status)


def test_the_unit(machine: Machine) -> None:
    text = (PROJECT / "examples" / "jupyter@.service").read_text()
    for theirs, ours in HERE.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    machine.write("/etc/systemd/system/jupyter@.service", text)
    settings = f"PORT={PORT}\nJUPYTER_TOKEN={TOKEN}\n"
    machine.write(f"/etc/jupyter/{OWNER}.env", settings, 0o600)
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "start", UNIT)
    place = f"http://127.0.0.1:{PORT}/api/status"
    tries = ("--retry", "600", "--retry-delay", "1", "--retry-connrefused", "--max-time", "900")
    named = ("--header", f"Authorization: token {TOKEN}")
    assert "started" in json.loads(get(machine, place, OWNER, *named, *tries))
    assert "Forbidden" in get(machine, place, NEIGHBOUR)
    guest = "http://127.0.0.1:8888/api/status"
    assert get(machine, guest, NEIGHBOUR) == str(NEIGHBOURS_ANSWER)
    machine.do("systemctl", "stop", UNIT)
    log = machine.do("journalctl", "-o", "cat", "-u", UNIT)
    assert "(native)" in log and "Traceback" not in log
    assert machine.do("systemctl", "show", "--value", "-p", "Result", UNIT) == "success\n"
    wait_until(lambda: processes(machine) == "", PATIENCE, "the end of its processes")
