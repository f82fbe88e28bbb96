"""Applications that sites install, in place of a notebook server: served to their owner, in a
browser through the hub, and to nobody at their own ports. Without the sandbox the neighbour has
them."""

from __future__ import annotations

import contextlib
import pwd
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import pytest
from e2e.browser import chromium
from e2e.hub import Hub, needs_installed, start_hub

from demo.client import HubError

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import OWNER, SYSTEM_PATH, cannot, needs, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.apps, pytest.mark.timeout(400)]

TCP_LISTEN = "0A"
REFUSED = {"connected": False, "why": "Connection refused"}
PLACE = TEST_ROOT / "versions"
PROGRAMS = PLACE / "applications" / "bin"
CODE_SERVER = PLACE / "code-server"
STANDALONE = "jupyter standaloneproxy --timeout=120 --"
WHOLE_PATH = "jupyter standaloneproxy --timeout=120 --absolute-url --"
JHSINGLE = "jhsingle-native-proxy --ready-timeout=120"

# The words are put together when the program runs: its source on a page is not what it draws.
FILES = {
    "plot.py": """
from bokeh.io import curdoc
from bokeh.models import Div
curdoc().add_root(Div(text="drawn " + "by Bokeh"))
curdoc().title = "an owner's plot"
""",
    "dashboard.py": """
import os, sys
import dash
app = dash.Dash(requests_pathname_prefix=os.environ["JUPYTERHUB_SERVICE_PREFIX"])
app.layout = dash.html.Div("drawn " + "by Dash")
app.run(port=int(sys.argv[1]))
""",
    "page.py": """
import streamlit
streamlit.write("drawn " + "by Streamlit")
""",
    "page.ipynb": """{
 "cells": [{"cell_type": "code", "execution_count": null, "id": "only", "metadata": {},
   "outputs": [], "source": ["print('drawn ' + 'by Voila')"]}],
 "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
 "nbformat": 4, "nbformat_minor": 5}
""",
}

# What is drawn, in shadow trees, too, which WebDriver's text leaves out.
ALL_WORDS = """
const words = node => node.nodeName == "SCRIPT" ? "" : node.nodeType == 3 ? node.data :
    [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes].map(words).join("");
return words(document.body);
"""


@dataclass(frozen=True)
class Application:
    """An application, the proxy that stands before it, and what its owner sees in a browser."""

    name: str
    command: str
    words: str
    proxy: str = STANDALONE
    path: str = ""


STREAMLIT = (
    "streamlit run page.py --server.port={port} --server.address=127.0.0.1 --server.headless=true"
    " --browser.gatherUsageStats=false --server.enableCORS=false"
    " --server.enableXsrfProtection=false"
)
CODE = (
    f"{CODE_SERVER}/bin/node {CODE_SERVER}/node_modules/code-server/out/node/entry.js --auth=none"
    " --bind-addr=127.0.0.1:{port} --disable-telemetry --disable-update-check"
    " --disable-workspace-trust"
)
BOKEH = "bokeh serve plot.py --port={port} --prefix={base_url} --allow-websocket-origin=*"
VOILA = "voila page.ipynb {--}no-browser {--}port={port} {--}base_url={base_url}/"
MLFLOW = (
    "mlflow server --host=127.0.0.1 --port={port} --workers=1 --allowed-hosts=*"
    " --backend-store-uri=sqlite:///mlflow.db --static-prefix={base_url}"
)
DASK = (
    "dask scheduler --host=127.0.0.1 --port=0 --dashboard-address=127.0.0.1:{port}"
    " --dashboard-prefix={base_url}"
)

APPLICATIONS = (
    Application("Bokeh", BOKEH, "drawn by Bokeh", proxy=WHOLE_PATH, path="plot"),
    Application("TensorBoard", "tensorboard --logdir=. --port={port}", "No dashboards are active"),
    Application("Dash", "python dashboard.py {port}", "drawn by Dash"),
    Application("Streamlit", STREAMLIT, "drawn by Streamlit"),
    Application(
        "Voila",
        VOILA.replace("{--}", "--"),
        "drawn by Voila",
        proxy=WHOLE_PATH,
    ),
    Application(
        "Voila with jhsingle-native-proxy",
        VOILA + " {--}Voila.server_url=/",
        "drawn by Voila",
        proxy=JHSINGLE,
    ),
    Application("MLflow", MLFLOW, "Experiments", proxy=WHOLE_PATH),
    Application("Dask", DASK, "Occupancy", proxy=WHOLE_PATH, path="status"),
    Application("code-server", CODE, "notes.txt", path="?folder={home}"),
)
EACH = pytest.mark.parametrize("application", APPLICATIONS, ids=lambda each: each.name)


@pytest.fixture(scope="module")
def hub(pyz: Path) -> Iterator[Hub]:
    needs("chromium", "chromedriver")
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    needs_installed(PROGRAMS.parent)
    for made in start_hub(TEST_ROOT, pyz, "--name", "apps"):
        made.client.seconds = 120  # the proxies start an application while its first client waits
        for name, text in FILES.items():
            path = home(made) / name
            path.write_text(text)
            shutil.chown(path, OWNER)
        temporary(made).mkdir()
        shutil.chown(temporary(made), OWNER)
        yield made


def home(hub: Hub) -> Path:
    return hub.run / "home" / OWNER


def temporary(hub: Hub) -> Path:
    """Where applications leave what they do not remove: sockets of code-server, TensorBoard's list
    of those that run."""
    return home(hub) / "tmp"


@contextlib.contextmanager
def running(hub: Hub, application: Application, sandbox: bool) -> Iterator[None]:
    """The application runs in place of the owner's server."""
    if str(CODE_SERVER) in application.command:
        needs_installed(CODE_SERVER)
    words = hub.command() if sandbox else ["batchspawner-singleuser"]
    words += [*shlex.split(application.proxy), *shlex.split(application.command)]
    settings = [f"PATH={PROGRAMS}:{TEST_ROOT}/hub-venv/bin:{SYSTEM_PATH}"]
    settings += [f"TMPDIR={temporary(hub)}", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"]
    try:
        try:
            hub.client.spawn({"sandbox": sandbox, "cmd": shlex.join(["env", *settings, *words])})
        except HubError as error:
            error.args = (f"{error}\n{hub.log()}",)
            raise
        yield
    finally:
        hub.stop()


@EACH
def test_an_application(hub: Hub, world_dir: Path, application: Application) -> None:
    with running(hub, application, sandbox=True):
        see(hub, world_dir, application)
        answers = neighbour_asks(hub)
        assert {place: got for place, got in answers.items() if got != REFUSED} == {}
    wait_until(lambda: not hub.processes(), 10, f"the end of {hub.processes()}")


@EACH
def test_the_neighbour_has_it_without_the_sandbox(hub: Hub, application: Application) -> None:
    """The control: the same question at the same kind of port, and the application answers."""
    with running(hub, application, sandbox=False):
        assert (
            hub.client.get(hub.user("")).status < 500
        )  # the proxies start it when it is asked for
        answers = neighbour_asks(hub)
        assert [got for got in answers.values() if got["connected"] and got["status"]]


def see(hub: Hub, directory: Path, application: Application) -> None:
    """What is drawn comes by JavaScript, mostly over a WebSocket: a page alone shows nothing."""
    with chromium(directory) as browser:
        browser.log_in(hub.facts.url, hub.facts.owner, hub.facts.password)
        path = application.path.format(home=home(hub))
        browser.open(hub.facts.url + hub.user(path))
        try:
            wait_until(lambda: application.words in browser.run(ALL_WORDS), 120)
        except AssertionError:
            shown = f"{browser.url}: {browser.run(ALL_WORDS)}\n{hub.log()}"
            raise AssertionError(f"no {application.words!r} at {shown}") from None


def neighbour_asks(hub: Hub) -> dict[str, dict[str, Any]]:
    """What the neighbour gets at each port of the session, but for the one that is to be open."""
    ports = listening(hub) - {hub.host_port()}
    assert ports
    addresses = [f"{host}:{port}" for host in ("127.0.0.1", hub.facts.node) for port in ports]
    return hub.neighbour_asks(*addresses)


def listening(hub: Hub) -> set[int]:
    """The TCP ports that the owner listens on in the network of the job (proc(5))."""
    uid = str(pwd.getpwnam(OWNER).pw_uid)
    found = set()
    for family in ("tcp", "tcp6"):
        lines = Path(f"/proc/{hub.job_pid()}/net/{family}").read_text().splitlines()[1:]
        for fields in map(str.split, lines):
            if fields[3] == TCP_LISTEN and fields[7] == uid:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found
