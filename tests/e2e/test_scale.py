"""Many sandboxed sessions of two accounts on one node, and sessions that come and go."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Iterator, Sequence

import pytest
from e2e.slurm import Cluster, Host, Job

from helpers import NEIGHBOUR, OWNER, children_of, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

FIRST_PORT = 20000

# One answer for everyone who asks: which session this is.
SERVER = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[2].encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


class Small:
    """A sandboxed session with a small server."""

    def __init__(self, cluster: Cluster, archive: Path, number: int) -> None:
        self.account = (OWNER, NEIGHBOUR)[number % 2]
        self.port = FIRST_PORT + number
        self.name = f"session {number} of {self.account}"
        self.cluster = cluster
        forward = ("native", "relay")[number // 2 % 2]
        options = f"--port {self.port} --forward {forward}"
        server = f"/usr/bin/python3 {archive.with_name('small_server.py')} {{guest-port}}"
        self.began = time.monotonic()
        self.job = cluster.submit(
            f"exec {archive} {options} {server} '{self.name}'",
            "--nodelist=node1",
            f"--output=small-{number}.log",
            account=self.account,
        )
        self.log = cluster.home(self.account) / f"small-{number}.log"

    def answer(self) -> str:
        """What the server says to a client on the hub's host; "" for nothing."""
        try:
            with self.cluster.hub.connect(self.cluster.node.address, self.port) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.makefile().read().rpartition("\n")[2]
        except OSError:
            return ""

    def wait_until_served(self) -> float:
        """Wait for its own answer; returns the seconds since it was submitted."""
        wait_until(lambda: self.answer() == self.name, 120, f"{self.name}: {self.said()}")
        return time.monotonic() - self.began

    def own_start(self) -> int:
        """The milliseconds that the start itself has taken, by the start-up line."""
        found = re.search(r"ready in (\d+) ms ", self.said())
        assert found, self.said()
        return int(found[1])

    def processes(self) -> dict[str, int]:
        """Its server, its keeper and its network driver, by their names."""
        mark = f"SLURM_JOB_ID={self.job}".encode()
        found = {}
        for pid in self.cluster.node.processes(self.account):
            try:
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found[name_of(pid)] = pid
            except OSError:
                continue  # it has ended
        # The driver has nothing of the job's environment.
        for pid in children_of(found.get("portwrap-keeper", 0)):
            found[name_of(pid)] = pid
        return found

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def archive(cluster: Cluster, fast_pyz: Path) -> Path:
    """An archive where the cluster's hosts see it, beside the small server."""
    copy = cluster.run / "bin" / f"small-{fast_pyz.name}"
    copy.write_bytes(fast_pyz.read_bytes())
    copy.chmod(0o755)
    copy.with_name("small_server.py").write_text(SERVER)
    return copy


@pytest.fixture
def clean_node(cluster: Cluster) -> Iterator[Host]:
    """The node; nothing of the test may be left on it, whatever has happened."""
    try:
        yield cluster.node
    finally:
        for account in (OWNER, NEIGHBOUR):
            cluster.hub.do("scancel", f"--user={account}")
        cluster.assert_clean()


def memory_of(node: Host, accounts: Sequence[str]) -> int:
    """The memory in kB that only these accounts' processes need, shared pages by their share."""
    total = 0
    for account in accounts:
        for pid in node.processes(account):
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue  # it has ended
            total += int(re.findall(r"^Pss: +(\d+)", rollup, re.MULTILINE)[0])
    return total


@pytest.mark.parametrize("count", [pytest.param(100, marks=pytest.mark.matrix), 30])
def test_many_sessions(
    cluster: Cluster,
    archive: Path,
    clean_node: Host,
    count: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All start, each serves its own, all are stopped, nothing is left."""
    sessions = [Small(cluster, archive, number) for number in range(count)]
    seconds = [session.wait_until_served() for session in sessions]
    # All at once now: each answers with its own name.
    assert [session.answer() for session in sessions] == [session.name for session in sessions]
    inside = {
        os.stat(f"/proc/{pid}/ns/net").st_ino
        for account in (OWNER, NEIGHBOUR)
        for pid in clean_node.processes(account)
    }
    outside = {os.stat(f"/proc/{clean_node.init}/ns/net").st_ino}
    assert len(inside - outside) == count
    with capsys.disabled():
        first, last = sessions[0].own_start(), sessions[-1].own_start()
        each = memory_of(clean_node, (OWNER, NEIGHBOUR)) / count / 1024
        print(
            f"\n  {count} sessions: start of the first {first} ms, of the last {last} ms;"
            f" served {seconds[0]:.1f} s and {seconds[-1]:.1f} s after they were submitted;"
            f" {each:.1f} MB each, server and batch script among them"
        )
    for account in (OWNER, NEIGHBOUR):
        cluster.hub.do("scancel", f"--user={account}")
    wait_until(lambda: not running(cluster, sessions), 120, "the end of all jobs")
    states = {job.state for job in jobs_of(cluster, sessions)}
    assert states <= {"CANCELLED 0:0", "CANCELLED 0:15"}, states


def jobs_of(cluster: Cluster, sessions: Sequence[Small]) -> list[Job]:
    numbers = {session.job for session in sessions}
    return [job for job in cluster.jobs() if job.number in numbers]


def running(cluster: Cluster, sessions: Sequence[Small]) -> list[Job]:
    return [job for job in jobs_of(cluster, sessions) if not job.is_over]


# ---- coming and going ---------------------------------------------------------------------------


TOGETHER = 10
"""Sessions of one round."""


def scancel(session: Small) -> None:
    session.cluster.hub.do("scancel", str(session.job))


def scancel_at_its_start(session: Small) -> None:
    wait_until(lambda: session.processes(), 60, f"a first process of {session.name}")
    scancel(session)


def kill_server(session: Small) -> None:
    os.kill(session.processes()["python3"], signal.SIGKILL)


def terminate_server(session: Small) -> None:
    os.kill(session.processes()["python3"], signal.SIGTERM)


def kill_keeper(session: Small) -> None:
    os.kill(session.processes()["portwrap-keeper"], signal.SIGKILL)


def kill_helper(session: Small) -> None:
    os.kill(session.processes()["slirp4netns"], signal.SIGKILL)


ENDS = (
    scancel,
    scancel_at_its_start,
    kill_server,
    terminate_server,
    kill_keeper,
    kill_helper,
)


@pytest.mark.parametrize("seconds", [pytest.param(480, marks=pytest.mark.matrix), 0])
@pytest.mark.timeout(700)
def test_sessions_that_come_and_go(
    cluster: Cluster,
    archive: Path,
    clean_node: Host,
    seconds: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After every round the node is as it was after the second one."""
    seed = random.randrange(1_000_000)
    choose = random.Random(seed)
    until = time.monotonic() + seconds
    first: dict[str, int] = {}
    rounds = 0
    while rounds < 4 or time.monotonic() < until:
        # Each end once, the others as it happens, in any order.
        ends = [*ENDS, *choose.choices(ENDS, k=TOGETHER - len(ENDS))]
        choose.shuffle(ends)
        sessions = [Small(cluster, archive, number) for number in range(TOGETHER)]
        for session, end in zip(sessions, ends):
            if end is not scancel_at_its_start:
                session.wait_until_served()
            end(session)
        wait_until(lambda: not running(cluster, sessions), 120, f"the end of all jobs, {seed}")  # noqa: B023
        cluster.assert_clean()
        rounds += 1
        if rounds == 1:
            continue  # Slurm's daemons open some things with the first jobs
        first = first or used(cluster, clean_node)
        told = f"round {rounds}, seed {seed}: {first}"
        wait_until(lambda: not grown(first, used(cluster, clean_node)), 30, f"no growth; {told}")  # noqa: B023
    with capsys.disabled():
        print(f"\n  {rounds * TOGETHER} sessions came and went; left is what was: {first}")


def grown(first: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in now.items() if count > first[name]}


def used(cluster: Cluster, node: Host) -> dict[str, int]:
    """What could grow on a node. A namespace without a process is held by a descriptor or by a
    mount, or it is gone."""
    pids = processes_on(node)
    sockets = Path(f"/proc/{node.init}/net/sockstat").read_text()
    spaces = {link(f"/proc/{pid}/ns/{kind}") for pid in pids for kind in ("net", "user", "mnt")}
    folders = (Path(f"/proc/{node.init}/root/run"), cluster.home(OWNER), cluster.home(NEIGHBOUR))
    return {
        "processes": len(pids),
        "descriptors": sum(map(descriptors, pids)),
        "mounts": len(Path(f"/proc/{node.init}/mountinfo").read_text().splitlines()),
        "interfaces": len(Path(f"/proc/{node.init}/net/dev").read_text().splitlines()),
        "sockets": int(sockets.split()[2]),
        "namespaces": len(spaces),
        "files": sum(1 for folder in folders for _ in folder.rglob("*")),
    }


def descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0  # the process has ended


def processes_on(node: Host) -> list[int]:
    """Every process in the node's PID namespace."""
    ours = link(f"/proc/{node.init}/ns/pid")
    pids = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in pids if link(f"/proc/{pid}/ns/pid") == ours]


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""  # the process has ended


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
