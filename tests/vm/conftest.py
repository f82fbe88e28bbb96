"""Virtual machines, one at a time: an emulated processor keeps a real one busy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from vm.machine import IMAGES, Machine

from conftest import TEST_ROOT
from helpers import PROJECT, cannot

HERE = Path(__file__).parent
PROGRAMS = "/opt/tests"
ARCHIVE = f"{PROGRAMS}/batchspawner-portwrap.pyz"
NETWORK = """
mkdir -p /opt/tests/site; echo hub01 >/opt/tests/page; cp /opt/tests/page /opt/tests/site/index.html
ip netns add hub01
ip link add eth0 type veth peer name eth0 netns hub01
ip address add 10.77.0.1/24 dev eth0; ip link set eth0 up; ip route add default via 10.77.0.2
ip -n hub01 address add 10.77.0.2/24 dev eth0; ip -n hub01 link set eth0 up
ip -n hub01 link set lo up
systemd-run --quiet --unit=hub-page -p NetworkNamespacePath=/run/netns/hub01 \
    python3 -m http.server --directory /opt/tests/site 8081
"""
"""Another host, at the other end of a cable, with a server."""


@pytest.fixture(scope="session")
def archive(pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With byte code for Debian 13's Python where its like is here: compiling takes an emulated
    processor seconds at each start."""
    python = TEST_ROOT / "venv-3.13" / "bin" / "python"
    if not python.exists():
        return pyz
    output = tmp_path_factory.mktemp("archive") / pyz.name
    subprocess.run([PROJECT / "build.sh", "--for", python, output], check=True)
    return output


@pytest.fixture(scope="session", params=["trixie", "bullseye"])
def machine(request: pytest.FixtureRequest, archive: Path) -> Iterator[Machine]:
    """A machine that has booted, on a network of two hosts, with our program."""
    built = (IMAGES / f"{request.param}.complete").exists()
    if shutil.which("qemu-system-x86_64") is None or not built:
        cannot("no virtual machine; tests/setup.sh vm makes them")
    made = Machine(request.param)
    try:
        made.do("systemctl", "is-system-running", "--wait")
        made.shell(NETWORK)
        made.write(ARCHIVE, archive.read_bytes(), 0o755)
        made.write(f"{PROGRAMS}/app.py", (HERE / "app.py").read_bytes())
        yield made
    finally:
        made.close()
