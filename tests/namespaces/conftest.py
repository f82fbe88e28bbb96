"""Fixtures of the tests that need real namespaces."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest
from checked_node import Node
from network_drivers import OLD_AND_NEW, ChosenDriver
from networks import Host

from helpers import PREFIX, needs
from sessions import Inside, Portwrap


@pytest.fixture(scope="session")
def portwrap(python: str) -> Iterator[Portwrap]:
    """A copy of the package that every account can run."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield Portwrap(python, folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["relay", "auto"])
def each_forward(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything that the test starts forwards in this way, unless it is told another one."""
    monkeypatch.setenv("PORTWRAP_FORWARD", request.param)
    if request.param == "relay":  # with nothing else that keeps the keeper outside
        monkeypatch.setenv("PORTWRAP_OUTWARD", "helper")
    return str(request.param)


@pytest.fixture
def forward(request: pytest.FixtureRequest) -> str:
    """The way in of `inside`; tests that are about both ways name them."""
    return str(getattr(request, "param", "relay"))


@pytest.fixture
def inside(portwrap: Portwrap, forward: str) -> Iterator[Inside]:
    """A sandbox with a command that makes sockets in there."""
    with Inside(portwrap, forward=forward) as session:
        session.wait_until_up()
        yield session


@pytest.fixture(scope="session")
def standing_host() -> Iterator[Host]:
    """A host of our own, for all tests that leave it as it was."""
    needs("ip")
    made = Host()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def host(standing_host: Host) -> Iterator[Host]:
    """A host of our own; this test, and all that it starts, runs on it. It is left as it was."""
    before = standing_host.describe()
    with standing_host.entered(standing_host.host):
        yield standing_host
    assert standing_host.describe() == before


@pytest.fixture
def changing_host() -> Iterator[Host]:
    """The same for a test that changes the host: it is of no use afterwards."""
    needs("ip")
    made = Host()
    try:
        with made.entered(made.host):
            yield made
    finally:
        made.close()


@pytest.fixture(params=OLD_AND_NEW)
def driver(request: pytest.FixtureRequest) -> ChosenDriver:
    return ChosenDriver(request.param)


@pytest.fixture(params=[*OLD_AND_NEW, "none"])
def any_driver(request: pytest.FixtureRequest) -> ChosenDriver:
    return ChosenDriver(request.param)


@pytest.fixture
def make_node(portwrap: Portwrap, world_dir: Path) -> Iterator[Any]:
    needs("ip", "nsenter", "setpriv", "pasta")
    made: list[Node] = []

    def make(*preparation: str, kind: type[Node] = Node) -> Node:
        made.append(kind(portwrap, world_dir, preparation))
        return made[-1]

    try:
        yield make
    finally:
        for node in made:
            node.close()


@pytest.fixture
def node(make_node: Any) -> Node:
    made: Node = make_node()
    return made
