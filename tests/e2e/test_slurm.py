"""Sessions on a real Slurm: what their owner does in them, and every way in which they end, each
next to the same session without the sandbox."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Callable, Iterator, Sequence

import pytest
from e2e.slurm import Cluster, run_directory
from e2e.slurm_hub import Session, SlurmHub

from helpers import OWNER

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

WAYS = [("plain", True), ("native", True), ("relay", True), ("plain", False), ("native", False)]
"""Kinds of sessions, and whether the server is a step of the job (srun) or the script's child."""
USED = [("native", True), ("relay", True), ("native", False)]
SAME_SCRIPT = {True: "srun", False: "without srun"}

GRACEFULLY = "jupyterhub-singleuser ended gracefully"  # what batchspawner's script says last

SERVE_A_PAGE = """
import http.server, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a page of the kernel's")
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Page)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1])
"""


@pytest.fixture
def sessions(slurm_hub: SlurmHub) -> Iterator[Callable[..., list[Session]]]:
    """Starts sessions, all at the same time; what still runs after the test is stopped."""

    def start(ways: Sequence[tuple[str, bool]] = WAYS) -> list[Session]:
        made = [slurm_hub.session(kind, srun=srun) for kind, srun in ways]
        for session in made:
            session.begin()
        return [session.wait_ready() for session in made]

    try:
        yield start
    finally:
        slurm_hub.stop_sessions()
        slurm_hub.cluster.assert_clean()


# ---- what its owner does ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "srun"), USED, ids=lambda value: SAME_SCRIPT.get(value, value))
def test_a_session(sessions: Callable[..., list[Session]], kind: str, srun: bool) -> None:
    (session,) = sessions([(kind, srun)])
    use(session)
    assert session.stop().state == "CANCELLED 0:0", session.log()
    assert GRACEFULLY in session.log()
    session.start()
    assert session.get("api/contents").status == 200
    assert session.stop().state == "CANCELLED 0:0", session.log()
    assert GRACEFULLY in session.log()


def use(session: Session) -> None:
    kernel = session.start_kernel()
    assert kernel.cell("print(6 * 7)") == "42\n"
    of_the_server = os.readlink(f"/proc/{session.server_pid()}/ns/net")
    inside = kernel.cell("import os; print(os.readlink('/proc/self/ns/net'))").strip()
    assert inside == of_the_server
    node = os.readlink(f"/proc/{session.job().node.init}/ns/net")
    assert (inside != node) == session.sandboxed
    use_terminal(session)
    use_files(session)
    page = int(kernel.cell(SERVE_A_PAGE))
    answer = session.get(f"proxy/{page}/")
    assert (answer.status, answer.text) == (200, "a page of the kernel's")
    answer = session.get("notes/")
    assert answer.status == 200
    assert session.hub.secret() in answer.text


def use_terminal(session: Session) -> None:
    answer = session.client.api("POST", session.path("api/terminals"))
    assert answer.status == 200, answer.text
    name = answer.json()["name"]
    terminal = session.client.websocket(session.path(f"terminals/websocket/{name}"))
    try:
        terminal.send(json.dumps(["stdin", "echo $((6 * 7))-$USER\r"]))
        shown = ""
        while f"42-{OWNER}" not in shown:
            kind, *rest = json.loads(terminal.recv())
            shown += rest[0] if kind == "stdout" else ""
    finally:
        terminal.close()


def use_files(session: Session) -> None:
    content = os.urandom(1_000_000)
    file = {"type": "file", "format": "base64", "content": base64.b64encode(content).decode()}
    answer = session.client.api("PUT", session.path("api/contents/uploaded.bin"), file)
    assert answer.status in (200, 201), answer.text
    assert (session.hub.cluster.home() / "uploaded.bin").read_bytes() == content
    answer = session.get("files/uploaded.bin")
    assert answer.status == 200
    assert answer.body == content


# ---- how it ends --------------------------------------------------------------------------------


def stop_from_the_hub(session: Session) -> None:
    session.ask_to_stop()


def scancel(session: Session) -> None:
    session.hub.cluster.hub.do("scancel", str(session.job().number), account=OWNER)


def scancel_term_full(session: Session) -> None:
    words = ["scancel", "--signal=TERM", "--full", str(session.job().number)]
    session.hub.cluster.hub.do(*words, account=OWNER)


def time_limit(session: Session) -> None:
    # scontrol reads "now", and slurmctld refuses a time that has passed when it hears of it.
    words = ["scontrol", "update", f"jobid={session.job().number}", "EndTime=now+10"]
    session.hub.cluster.hub.do(*words)


def shut_down_by_its_owner(session: Session) -> None:
    session.client.api("POST", session.path("api/shutdown"))


def kill_the_server(session: Session) -> None:
    os.kill(session.server_pid(), 9)


CLEAN = [stop_from_the_hub, scancel, time_limit, shut_down_by_its_owner]
"""Ends that leave the server the time to shut down by itself. With `scancel --full` srun hears the
signal, too, and has what it started killed."""


@pytest.mark.parametrize(
    "ending", [*CLEAN, scancel_term_full, kill_the_server], ids=lambda ending: ending.__name__
)
def test_an_end(
    sessions: Callable[..., list[Session]],
    ending: Callable[[Session], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """State and exit code of the job are those of the same session without the sandbox."""
    started = sessions()
    for session in started:
        assert session.start_kernel().cell("print('up')") == "up\n"
    for session in started:
        session.drop_kernels()
        ending(session)
    states = [session.wait_over(90).state for session in started]
    table = dict(zip(WAYS, zip(states, map(shut_down, started))))
    with capsys.disabled():
        for (kind, srun), (state, clean) in table.items():
            row = f"{ending.__name__:24}{kind:8}{SAME_SCRIPT[srun]:14}{state:16}"
            print(f"\n  {row}{'shut down' if clean else 'was killed'}", end="")
    for (_, srun), facts in table.items():
        assert facts == table["plain", srun], [session.log() for session in started]
    assert ending not in CLEAN or all(clean for _, clean in table.values())
    started[0].hub.cluster.assert_clean()


def shut_down(session: Session) -> bool:
    """Whether the server with its kernel has ended by itself: by its own words, and as the script
    saw it."""
    log = session.log()
    return "Kernel shutdown: " in log and "Killed" not in log and GRACEFULLY in log


def test_a_node_that_is_drained_and_then_down(
    sessions: Callable[..., list[Session]], slurm_hub: SlurmHub
) -> None:
    both = [("plain", True), ("native", True), ("relay", True)]
    update = ["scontrol", "update", "nodename=node1", "reason=test"]
    try:
        first = sessions(both)
        assert {session.job().node.name for session in first} == {"node1"}
        slurm_hub.cluster.hub.do(*update, "state=drain")
        (later,) = sessions([("native", True)])
        assert later.job().node.name == "node2"
        for session in [*first, later]:
            assert session.get("api/contents").status == 200
            assert session.job().state == "RUNNING 0:0"
        slurm_hub.cluster.hub.do(*update, "state=down")
        states = {session.wait_over().state for session in first}
        assert len(states) == 1 and states.pop().startswith("NODE_FAIL")
        assert later.get("api/contents").status == 200
        assert later.stop().state == "CANCELLED 0:0"
    finally:
        slurm_hub.cluster.hub.do("scontrol", "update", "nodename=node1", "state=resume")
        slurm_hub.cluster.wait_idle()


def test_the_hub_is_restarted_while_the_server_runs(pyz: Path) -> None:
    """A cluster of its own: the processes of the hub that all share are not to change."""
    with run_directory() as run, Cluster(run) as cluster:
        hub = SlurmHub(cluster, pyz)
        both = [hub.session(kind).begin() for kind in ("plain", "native", "relay")]
        kernels = [session.wait_ready().start_kernel() for session in both]
        for kernel in kernels:
            kernel.cell("x = 42")
        hub.stop()
        assert [session.job().state for session in both] == 3 * ["RUNNING 0:0"]
        hub.start()
        for session, kernel in zip(both, kernels):
            assert session.get("api/contents").status == 200
            kernel.reconnect()
            assert kernel.cell("print(x)") == "42\n"
        assert [session.stop().state for session in both] == 3 * ["CANCELLED 0:0"]
        cluster.assert_clean()


# ---- what its administrator does ----------------------------------------------------------------


def test_a_look_at_every_node(cluster: Cluster, pyz: Path) -> None:
    """As README.md has it. Lines of several hosts come mixed, and long ones in pieces."""
    folder = cluster.home() / "checks"
    folder.mkdir()
    folder.chmod(0o777)
    srun = ["srun", "-N2", "--overcommit"]
    names = sorted(node.name for node in cluster.nodes)
    lines = cluster.node.do(*srun, pyz, "--check", account=OWNER, seconds=60).splitlines()
    verdicts = [line for line in lines if "A session would start here" in line]
    assert sorted(line.partition(": ")[0] for line in verdicts) == names
    assert all(line.startswith(tuple(f"{name}: " for name in names)) for line in lines)
    output = f"--output={folder}/%N.json"
    cluster.node.do(*srun, output, pyz, "--check", "--json", account=OWNER, seconds=60)
    for name in names:
        answer = json.loads((folder / f"{name}.json").read_text())
        assert (answer["host"], answer["would_start"]) == (name, True)
        assert answer["job"].isdigit()
    cluster.assert_clean()
