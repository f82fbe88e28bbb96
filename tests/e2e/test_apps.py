"""Applications that sites install, served in place of a notebook server: to their owner through the
hub, and to nobody at their own ports."""

from __future__ import annotations

import html
import shlex
from pathlib import Path
from typing import Iterator

import pytest
from e2e.hub import Hub, start_hub

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import cannot

pytestmark = [pytest.mark.e2e, pytest.mark.apps, pytest.mark.timeout(180)]

TCP_LISTEN = "0A"
REFUSED = {"connected": False, "why": "Connection refused"}
PROGRAMS = TEST_ROOT / "versions" / "applications" / "bin"
BOKEH_APP = """
from bokeh.io import curdoc
from bokeh.models import Div
curdoc().add_root(Div(text="drawn by Bokeh"))
curdoc().title = "an owner's plot"
"""


@pytest.fixture
def hub(pyz: Path) -> Iterator[Hub]:
    reason = why_namespaces_fail()
    if not reason and not (TEST_ROOT / "versions" / "applications.complete").exists():
        reason = f"no {PROGRAMS}; tests/setup.sh matrix installs it"
    if reason:
        cannot(reason)
    yield from start_hub(TEST_ROOT, pyz, "--name", "apps")


@pytest.mark.parametrize(
    ("command", "path", "words_on_it"),
    [
        pytest.param(
            ["bokeh", "serve", "{app}", "--port={port}", "--allow-websocket-origin=*"],
            "plot",
            "an owner's plot",
            id="Bokeh",
        ),
        pytest.param(
            ["tensorboard", "--logdir=.", "--port={port}"], "", "TensorBoard", id="TensorBoard"
        ),
    ],
)
def test_an_application_behind_the_standalone_proxy(
    hub: Hub, world_dir: Path, command: list[str], path: str, words_on_it: str
) -> None:
    app = world_dir / "plot.py"
    app.write_text(BOKEH_APP)
    app.chmod(0o644)
    command = [str(PROGRAMS / command[0]), *command[1:]]
    command = [word.replace("{app}", str(app)) for word in command]
    words = hub.command("jupyter", "standaloneproxy", "--", *command)
    try:
        hub.client.spawn({"sandbox": True, "cmd": shlex.join(words)})
        page = hub.client.get(hub.user(path))
        assert page.status == 200 and words_on_it in html.unescape(page.text), page.text
        ports = ports_inside(hub) - {hub.host_port()}
        assert len(ports) >= 2  # the proxy's, and the application's
        addresses = [f"{host}:{port}" for host in ("127.0.0.1", hub.facts.node) for port in ports]
        answers = hub.neighbour_asks(*addresses)
        assert {place: got for place, got in answers.items() if got != REFUSED} == {}
    finally:
        hub.stop()
    assert not hub.processes()


def ports_inside(hub: Hub) -> set[int]:
    """The TCP ports that are listened on in the network of the job (proc(5), /proc/PID/net/tcp)."""
    found = set()
    for family in ("tcp", "tcp6"):
        lines = Path(f"/proc/{hub.job_pid()}/net/{family}").read_text().splitlines()[1:]
        fields = [line.split() for line in lines]
        found |= {int(f[1].rpartition(":")[2], 16) for f in fields if f[3] == TCP_LISTEN}
    return found
