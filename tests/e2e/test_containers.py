"""Container engines under a real hub: as the command of a session, and around it. The image is a
system of its own (tests/containers.sh). Without the sandbox the neighbour has what is in there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from typing import Any, Iterator

import pytest
from e2e.hub import Hub, needs_installed

from conftest import TEST_ROOT
from helpers import PROJECT, cannot, needs, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

IMAGE = TEST_ROOT / "image"
APPTAINER = TEST_ROOT / "apptainer" / "usr" / "bin" / "apptainer"
PAGE = (PROJECT / "docs" / "containers.md").read_text()
SITES_IMAGE = "/nfs/images/notebook"
SECRET = "only for the owner"
REFUSED = {"connected": False, "why": "Connection refused"}


@dataclass(frozen=True)
class Engine:
    """A container engine: the words in front of what it runs."""

    name: str
    words: list[str]
    shuts_down: bool
    """A signal to the engine reaches the server, which shuts down; else the server is killed."""


def engine_of(row: str) -> Engine:
    """As the page has it, with the image and the Apptainer of the tests."""
    name, words, end = (cell.strip() for cell in row.strip("|").split("|"))
    program, *others = shlex.split(words.strip("`").replace(SITES_IMAGE, str(IMAGE)))
    program = str(APPTAINER) if program == "apptainer" else program
    return Engine(name, [program, *others], end == "shut down")


ENGINES = [
    engine_of(row)
    for row in PAGE.partition("<!-- engines")[2].partition("<!-- end of")[0].splitlines()[3:]
]
APPTAINER_EXEC, APPTAINER_SIF, APPTAINER_PID, CHARLIECLOUD, BUBBLEWRAP = ENGINES


@dataclass(frozen=True)
class Place:
    """Where a session has its container."""

    name: str
    around: Engine | None = None
    command: Engine | None = None

    def words(self, hub: Hub, sandbox: bool) -> list[str]:
        """The job's command line."""
        around = self.around.words if self.around else []
        command = self.command.words if self.command else []
        ours = [str(hub.archive)] if sandbox else []
        return [*around, "batchspawner-singleuser", *ours, *command, "jupyterhub-singleuser"]

    @property
    def engine(self) -> Engine:
        found = self.around or self.command
        assert found
        return found


def command(engine: Engine) -> Place:
    return Place(f"{engine.name} as the command", command=engine)


def around(engine: Engine) -> Place:
    return Place(f"{engine.name} around it", around=engine)


USUAL = (command(APPTAINER_EXEC), around(APPTAINER_EXEC), command(CHARLIECLOUD), around(BUBBLEWRAP))
OTHERS = (
    command(APPTAINER_SIF),
    around(APPTAINER_SIF),
    command(APPTAINER_PID),
    around(APPTAINER_PID),
    around(CHARLIECLOUD),
    command(BUBBLEWRAP),
)
PLACES = (*USUAL, *(pytest.param(place, marks=pytest.mark.matrix) for place in OTHERS))
CONTROLS = (
    around(APPTAINER_EXEC),
    *(
        pytest.param(around(engine), marks=pytest.mark.matrix)
        for engine in (CHARLIECLOUD, BUBBLEWRAP)
    ),
)

# Serves one page to everyone, and tells where it is.
OPEN_A_PORT = f"""
import json, os, socket, threading
server = socket.create_server(("0.0.0.0", 0))
def serve():
    while True:
        visitor, _ = server.accept()
        visitor.recv(65536)
        visitor.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n{SECRET}")
        visitor.close()
threading.Thread(target=serve, daemon=True).start()
print(json.dumps({{
    "port": server.getsockname()[1],
    "network": os.readlink("/proc/self/ns/net"),
    "image": os.path.exists("/etc/image-of-the-tests"),
}}))
"""


def name_of(value: object) -> str:
    return value.name if isinstance(value, Place) else str(value)


def needs_image(engine: Engine) -> None:
    needs_installed(IMAGE)
    image = next(word for word in engine.words if word.startswith(str(IMAGE)))
    if not os.path.exists(image):
        cannot(f"no {image}; tests/setup.sh matrix makes it")
    needs(engine.words[0])


@contextlib.contextmanager
def running(hub: Hub, place: Place, sandbox: bool = True) -> Iterator[None]:
    """The owner's server runs in such a place."""
    needs_image(place.engine)
    options = {"sandbox": sandbox, "cmd": shlex.join(place.words(hub, sandbox))}
    try:
        try:
            hub.client.spawn(options)
        except Exception as error:
            error.args = (f"{error}\n{hub.log()}",)
            raise
        yield
    finally:
        hub.stop()


@pytest.mark.parametrize("place", PLACES, ids=name_of)
def test_a_session(hub: Hub, place: Place) -> None:
    with running(hub, place):
        seen = json.loads(hub.start_kernel().cell(OPEN_A_PORT))
        assert seen["image"]
        assert seen["network"] != os.readlink("/proc/self/ns/net")
        assert re.search(r"forwarding \S+ -> 8888 \(native\), outbound native and slirp", hub.log())
        for path in (f"proxy/{seen['port']}/", "notes/"):
            assert hub.client.get(hub.user(path)).status == 200
        answers = neighbour_asks(hub, seen["port"])
        assert {place: answer for place, answer in answers.items() if answer != REFUSED} == {}
    wait_until(lambda: not hub.processes(), 60, f"the end of {hub.processes()}")
    end = "CANCELLED 0:0" if place.engine.shuts_down else "CANCELLED 0:15"
    assert hub.state() == end, hub.log()
    assert "killing what is left" not in hub.log()


@pytest.mark.parametrize("place", CONTROLS, ids=name_of)
def test_the_neighbour_has_it_without_the_sandbox(hub: Hub, place: Place) -> None:
    """The control: the container alone does not keep anybody out."""
    with running(hub, place, sandbox=False):
        seen = json.loads(hub.start_kernel().cell(OPEN_A_PORT))
        assert seen["image"]
        assert SECRET in neighbour_asks(hub, seen["port"])[f"127.0.0.1:{seen['port']}"]["body"]


def neighbour_asks(hub: Hub, port: int) -> dict[str, dict[str, Any]]:
    return hub.neighbour_asks(*(f"{host}:{port}" for host in ("127.0.0.1", hub.facts.node)))


NETWORKS = {
    "apptainer": (APPTAINER_EXEC, "exec", ("--net", "--network=none")),
    "bubblewrap": (BUBBLEWRAP, "--unshare-pid", ("--unshare-net",)),
}


@pytest.mark.matrix
@pytest.mark.parametrize("name", NETWORKS)
def test_a_container_with_a_network_of_its_own_is_reported(hub: Hub, name: str) -> None:
    engine, before, options = NETWORKS[name]
    needs_image(engine)
    words = list(engine.words)
    place = words.index(before) + 1
    words[place:place] = options
    hub.begin_spawn(hub.command(*words, "python3", "-m", "http.server", "{guest-port}"))
    report = "listens on port 8888 in another network namespace"
    try:
        wait_until(lambda: hub.state() == "RUNNING", 20, "the job")
        wait_until(lambda: report in hub.log(), 60, "a report")
    finally:
        hub.stop()
