"""Sessions on a real Slurm: what their owner does in them, and every way in which they end, each
next to the same session without the sandbox."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Callable, Iterator, Sequence, Tuple

import pytest
from e2e.slurm import Cluster, run_directory
from e2e.slurm_hub import Session, SlurmHub, start_all, stop_all

from helpers import OWNER, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

Way = Tuple[str, bool]
"""A kind of session, and whether the server is a step of the job (srun) or the script's child."""
WAYS = [("plain", True), ("native", True), ("relay", True), ("plain", False), ("native", False)]
SRUN = [("plain", True), ("native", True), ("relay", True)]
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
def sessions(slurm_hub: SlurmHub) -> Iterator[Callable[[Sequence[Way]], list[Session]]]:
    """Starts sessions, all at the same time; what still runs after the test is stopped."""

    def start(ways: Sequence[Way]) -> list[Session]:
        return start_all([slurm_hub.session(kind, srun=srun) for kind, srun in ways])

    try:
        yield start
    finally:
        slurm_hub.stop_sessions()
        slurm_hub.cluster.assert_clean()


def test_sessions_and_how_they_end(
    sessions: Callable[[Sequence[Way]], list[Session]],
    subtests: pytest.Subtests,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same sessions start again after each end of theirs. State and exit code of their jobs are
    those of the sessions without the sandbox."""
    limited = sessions(WAYS)
    for session in limited:
        open_notebook(session)
        time_limit(session)
    started = sessions(WAYS)
    for (kind, srun), session in zip(WAYS, started):
        with subtests.test(f"{kind} {SAME_SCRIPT[srun]} is used"):
            use(session)
    with subtests.test("used ones are stopped"):
        # With an application jupyter-server-proxy handles SIGTERM itself, not always in time.
        assert all(state.startswith("CANCELLED ") for state in stop_all(started))
        for session in started:
            wait_until(lambda: is_gone(session), 60, f"the end of {session.processes()}")  # noqa: B023
    for ending in ENDS:
        with subtests.test(ending.__name__):
            start_all(started)
            for session in started:
                open_notebook(session)
            for session in started:
                session.drop_kernels()
                ending(session)
            assert_ended_alike(started, ending, capsys)
    with subtests.test(time_limit.__name__):
        for session in limited:
            session.drop_kernels()
        try:
            assert_ended_alike(limited, time_limit, capsys)
        except AssertionError:
            # srun hears of the limit, too, and passes SIGTERM on: a second one, which on a busy
            # machine now and then meets a server that has shut down and handles signals no more.
            start_all(limited)
            for session in limited:
                open_notebook(session)
                time_limit(session)
                session.drop_kernels()
            assert_ended_alike(limited, time_limit, capsys)


def open_notebook(session: Session) -> None:
    assert session.start_kernel().cell("print('up')") == "up\n"


# ---- what its owner does ------------------------------------------------------------------------


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


ENDS = [
    stop_from_the_hub,
    scancel,
    shut_down_by_its_owner,
    scancel_term_full,
    kill_the_server,
]
CLEAN = [stop_from_the_hub, scancel, shut_down_by_its_owner, time_limit]
"""Ends that leave the server the time to shut down by itself. With `scancel --full` srun hears the
signal, too, and has what it started killed."""


def assert_ended_alike(
    started: list[Session], ending: Callable[[Session], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing differs but for what srun does."""
    states = [session.wait_over(150).state for session in started]
    for session in started:
        session.wait_forgotten()
        wait_until(lambda: not session.processes(), 60, f"the end of {session.processes()}")  # noqa: B023
    table = dict(zip(WAYS, zip(states, map(shut_down, started))))
    with capsys.disabled():
        for (kind, srun), (state, clean) in table.items():
            row = f"{ending.__name__:24}{kind:8}{SAME_SCRIPT[srun]:14}{state:16}"
            print(f"\n  {row}{'shut down' if clean else 'was killed'}", end="")
    for (_, srun), facts in table.items():
        assert facts == table["plain", srun], [session.log() for session in started]
    if ending in CLEAN:
        assert all(clean for _, clean in table.values())
        assert all("Kernel shutdown: " in session.log() for session in started)


def is_gone(session: Session) -> bool:
    """Whether nothing of it is left. Slurm signals an application, too, and jupyter-server-proxy
    starts again what a signal has ended, now and then just before its own end: with the sandbox or
    without, and not to be told from what a user has put into the background."""
    left = session.processes()
    for pid in [pid for pid, words in left.items() if any("notes_app" in word for word in words)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not left


def shut_down(session: Session) -> bool:
    """Whether the server has ended by itself, as the script saw it, which ends with the first
    command that fails."""
    log = session.log()
    return "Killed" not in log and GRACEFULLY in log


def test_a_node_that_is_drained_and_then_down(
    sessions: Callable[[Sequence[Way]], list[Session]], slurm_hub: SlurmHub
) -> None:
    update = ["scontrol", "update", "nodename=node1", "reason=test"]
    try:
        first = sessions(SRUN)
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
        started = start_all([hub.session(kind) for kind, _ in SRUN])
        kernels = [session.start_kernel() for session in started]
        for kernel in kernels:
            kernel.cell("x = 42")
        hub.stop()
        assert {session.job().state for session in started} == {"RUNNING 0:0"}
        hub.start()
        for session, kernel in zip(started, kernels):
            assert session.get("api/contents").status == 200
            kernel.reconnect()
            assert kernel.cell("print(x)") == "42\n"
        assert set(stop_all(started)) == {"CANCELLED 0:0"}
        cluster.assert_clean()


# ---- what its administrator does ----------------------------------------------------------------


def test_a_look_at_every_node(cluster: Cluster, pyz: Path) -> None:
    """As docs/install.md has it. Lines of several hosts come mixed, and long ones in pieces."""
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
