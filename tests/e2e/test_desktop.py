"""Remote desktops of two people on one node at the same time: each sees the own one in a browser
through the hub, and the neighbour gets at nothing of the owner's. Without the sandbox he does."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any, Iterator

import pytest
from e2e.browser import chromium
from e2e.hub import Hub, needs_installed, start_hub

from demo.client import HubClient

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import (
    NEIGHBOUR,
    OWNER,
    PROJECT,
    SYSTEM_PATH,
    cannot,
    descendants,
    describe,
    lives,
    needs,
    run_as,
    wait_until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.apps, pytest.mark.timeout(400)]

PROXY = TEST_ROOT / "versions" / "desktop"
COLOURS = {OWNER: "#c00020", NEIGHBOUR: "#0020c0"}
SOCKETS = Path("/tmp/.X11-unix")

XSTARTUP = """#!/bin/sh
xsetroot -solid "$COLOUR"
echo "${DISPLAY#:}" >"$HOME/display"
exec sleep infinity
"""

# What the page of the desktop shows in its middle.
COLOUR = """
const canvas = document.querySelector("#screen canvas");
if (!canvas || !canvas.width || !canvas.height) return "";
const context = canvas.getContext("2d");
const pixel = context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
return "#" + [...pixel].slice(0, 3).map(value => value.toString(16).padStart(2, "0")).join("");
"""

# A VNC server as older proxies start it: on a TCP port of the loopback, without a password.
OPEN_VNC = """
import os, socket, subprocess
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
ready, told = os.pipe()
vnc = subprocess.Popen(
    ["Xtigervnc", "-displayfd", str(told), "-rfbport", str(port), "-localhost", "-SecurityTypes",
     "None"],
    pass_fds=[told], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
os.close(told)
assert os.read(ready, 9)
print(port)
"""
CLOSE_VNC = "vnc.terminate(); vnc.wait()"

# Connects to the display's abstract socket, its socket file, and the port of X11.
KNOCK = """
import json, os, socket, sys
number = int(sys.argv[1])
answers = {}
for name, family, address in (
    ("abstract", socket.AF_UNIX, f"\\0/tmp/.X11-unix/X{number}"),
    ("file", socket.AF_UNIX, f"/tmp/.X11-unix/X{number}"),
    ("tcp", socket.AF_INET, ("127.0.0.1", 6000 + number)),
):
    with socket.socket(family) as client:
        client.settimeout(5)
        answers[name] = os.strerror(client.connect_ex(address))
print(json.dumps(answers))
"""
REFUSED = "Connection refused"


@pytest.fixture(scope="module")
def hub(pyz: Path) -> Iterator[Hub]:
    needs("chromium", "chromedriver", "Xtigervnc", "xsetroot")
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    needs_installed(PROXY)
    with contextlib.suppress(FileExistsError):  # else the first desktop would make and leave it
        SOCKETS.mkdir()
        SOCKETS.chmod(0o1777)
    config = PROJECT / "tests" / "e2e" / "desktop_config.py"
    for made in start_hub(TEST_ROOT, pyz, "--name", "desktop", "--config", config):
        for account in (OWNER, NEIGHBOUR):
            furnish(home(made, account), account)
        yield made


def home(hub: Hub, account: str) -> Path:
    return hub.run / "home" / account


def furnish(directory: Path, account: str) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / "tmp").mkdir()
    xstartup = directory / "xstartup"
    xstartup.write_text(XSTARTUP)
    xstartup.chmod(0o755)
    for path in (directory, directory / "tmp", xstartup):
        shutil.chown(path, account, account)


class Person:
    """Somebody with a desktop."""

    def __init__(self, hub: Hub, account: str) -> None:
        self.hub = hub
        self.account = account
        self.client = hub.client if account == OWNER else HubClient(hub.facts.url)
        if account != OWNER:
            self.client.login(account, hub.facts.password)

    def spawn(self, sandbox: bool) -> None:
        settings = {
            "PATH": f"{TEST_ROOT}/hub-venv/bin:{SYSTEM_PATH}",
            "PYTHONPATH": PROXY,
            "JUPYTER_CONFIG_PATH": f"{self.hub.run}/etc/jupyter:{PROXY}/etc/jupyter",
            "JUPYTER_REMOTE_DESKTOP_PROXY_XSTARTUP": home(self.hub, self.account) / "xstartup",
            "COLOUR": COLOURS[self.account],
            "TMPDIR": home(self.hub, self.account) / "tmp",
        }
        words = ["env", *(f"{name}={value}" for name, value in settings.items())]
        words += self.hub.command() if sandbox else ["batchspawner-singleuser"]
        command = shlex.join([*words, "jupyterhub-singleuser"])
        self.client.spawn({"sandbox": sandbox, "cmd": command})

    def see(self, directory: Path) -> None:
        """Open the desktop in a browser and wait for its colour."""
        directory.mkdir()
        with chromium(directory) as browser:
            browser.log_in(self.hub.facts.url, self.account, self.hub.facts.password)
            browser.open(f"{self.hub.facts.url}/user/{self.account}/desktop/")
            try:
                wait_until(lambda: browser.run(COLOUR) == COLOURS[self.account], 90)
            except AssertionError:
                shown = f"{browser.url}: {browser.text()} {browser.run(COLOUR)}\n{self.hub.log()}"
                raise AssertionError(f"not the desktop of {self.account}: {shown}") from None

    @property
    def display(self) -> int:
        return int((home(self.hub, self.account) / "display").read_text())

    def tidy_up(self) -> None:
        """At a stop jupyter-server-proxy leaves Xvnc to the batch system, which kills it, with the
        sandbox or without: its files stay."""
        for path in (SOCKETS / f"X{self.display}", Path(f"/tmp/.X{self.display}-lock")):
            path.unlink(missing_ok=True)
        shutil.rmtree(home(self.hub, self.account) / ".vnc")


@contextlib.contextmanager
def two_desktops(hub: Hub, directory: Path, sandbox: bool) -> Iterator[tuple[Person, Person]]:
    """Both are there at the same time; the owner's is the newest job."""
    people = Person(hub, NEIGHBOUR), Person(hub, OWNER)
    try:
        for person in people:
            person.spawn(sandbox)
        for person in people:
            person.see(directory / person.account)
        yield people
    finally:
        people[0].client.stop()
        hub.stop()
        wait_until(lambda: not desktops(hub), 20, f"the end of {desktops(hub)}")
        for person in people:
            person.tidy_up()


def desktops(hub: Hub) -> list[str]:
    """The processes of both, which are below the hub's."""
    below = filter(lives, descendants(hub.process.pid))
    return [line for line in map(describe, below) if "Xtigervnc" in line]


def neighbour_gets(hub: Hub, owner: Person) -> dict[str, Any]:
    """What is to be had of the owner's desktop, and of a VNC server on a TCP port."""
    words = ["/usr/bin/python3", "-c", KNOCK, str(owner.display)]
    found: dict[str, Any] = json.loads(run_as(NEIGHBOUR, words).stdout)
    kernel = hub.start_kernel()
    place = f"127.0.0.1:{int(kernel.cell(OPEN_VNC))}"
    try:
        found["vnc"] = hub.neighbour_asks(place)[place]
    finally:
        kernel.cell(CLOSE_VNC)
    return found


@pytest.mark.parametrize("sandbox", [True, False], ids=["sandbox", "control"])
def test_two_desktops_on_one_node(hub: Hub, world_dir: Path, sandbox: bool) -> None:
    with two_desktops(hub, world_dir, sandbox) as (neighbour, owner):
        assert owner.display != neighbour.display  # their lock files are in one /tmp
        found = neighbour_gets(hub, owner)
        if sandbox:
            assert found["abstract"] == found["tcp"] == found["vnc"].get("why") == REFUSED
        else:
            assert found["abstract"] == "Success"
            assert found["vnc"]["body"].startswith("RFB 003.")
        # A file is in no network; X11 asks for the cookie in the owner's ~/.Xauthority there.
        assert found["file"] == "Success"
    wait_until(lambda: not hub.processes(), 20, f"the end of {hub.processes()}")
