"""Slurm 24.11 of Debian 13, with its plugins for cgroups: every way in which a job ends, each next
to the same server without the sandbox; its devices and its directories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Callable, Iterator
from urllib.parse import quote

import pytest
from vm.conftest import ARCHIVE
from vm.machine import PATIENCE, Machine
from vm.slurm import DEVICE, Job, Slurm
from vm.test_refusals import BY_DRIVER
from vm.test_sessions import use
from vm.units import named, processes

from helpers import OWNER, PROJECT, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(7200)]
ON_DEBIAN_13 = pytest.mark.parametrize("machine", ["trixie"], indirect=True)

KINDS = {
    "plain": {},
    "native": {"PORTWRAP_FORWARD": "native"},
    "relay": {"PORTWRAP_FORWARD": "relay"},
}
WAYS = [("plain", True), ("native", True), ("relay", True), ("plain", False), ("native", False)]
"""Kinds of a session, and whether the server is a step of the job (srun) or its script's child."""


@pytest.fixture(scope="module")
def slurm(machine: Machine) -> Iterator[Slurm]:
    made = Slurm(machine)
    yield made
    made.stop()


# ---- how it ends --------------------------------------------------------------------------------


def scancel(job: Job) -> None:
    job.machine.do("scancel", str(job.number), account=OWNER)


def scancel_term(job: Job) -> None:
    job.machine.do("scancel", "--signal=TERM", str(job.number), account=OWNER)


def scancel_term_full(job: Job) -> None:
    job.machine.do("scancel", "--signal=TERM", "--full", str(job.number), account=OWNER)


def time_limit(job: Job) -> None:
    job.machine.do("scontrol", "update", f"jobid={job.number}", "EndTime=now+10")


def shut_down(job: Job) -> None:
    job.get("end/0")


def status_3(job: Job) -> None:
    job.get("end/3")


def kill_the_server(job: Job) -> None:
    job.machine.do("pkill", "-KILL", "-f", f"^/usr/bin/python3 [^ ]* [^ ]* {job.other}$")


def fill_the_memory(job: Job) -> None:
    job.get("fill")


@dataclass
class End:
    """What brings it about, and what comes of it with srun and without: state, exit code, and
    whether the server shuts down cleanly."""

    act: Callable[[Job], None]
    with_srun: tuple[str, bool]
    without: tuple[str, bool]


GOES_ON = "RUNNING 0:0"
ENDS = {
    "stop from the hub, `scancel`": End(scancel, ("CANCELLED 0:0", True), ("CANCELLED 0:9", False)),
    "time limit": End(time_limit, ("TIMEOUT 0:0", True), ("TIMEOUT 0:9", False)),
    "shut down by its owner": End(shut_down, ("COMPLETED 0:0", True), ("COMPLETED 0:0", True)),
    "ends with status 3": End(status_3, ("FAILED 3:0", True), ("FAILED 3:0", True)),
    "`scancel --signal=TERM --full`": End(
        scancel_term_full, ("FAILED 137:0", False), ("COMPLETED 0:0", True)
    ),
    "server killed with -9": End(kill_the_server, ("FAILED 137:0", False), ("FAILED 137:0", False)),
    "memory limit exceeded": End(
        fill_the_memory, ("FAILED 1:0", False), ("OUT_OF_MEMORY 0:125", False)
    ),
    "`scancel --signal=TERM`": End(scancel_term, ("COMPLETED 0:0", True), (GOES_ON, False)),
}
"""By their names in docs/batch-systems.md; last what would have ended by now."""


@ON_DEBIAN_13
def test_how_a_session_ends(slurm: Slurm, subtests: pytest.Subtests) -> None:
    jobs = {
        (name, kind, srun): Job(slurm, KINDS[kind], srun) for name in ENDS for kind, srun in WAYS
    }
    for job in jobs.values():
        job.wait_ready()
    for (name, _, _), job in jobs.items():
        ENDS[name].act(job)
    for (name, kind, srun), job in jobs.items():
        expected = ENDS[name].with_srun if srun else ENDS[name].without
        with subtests.test(name, kind=kind, srun=srun):
            state = job.state() if expected[0] == GOES_ON else job.end()
            assert (state, "shut down" in job.log()) == expected, job.log()
            assert "Traceback" not in job.log()
    for job in jobs.values():
        job.machine.run("scancel", "--signal=KILL", "--full", str(job.number))
    wait_until(lambda: processes(slurm.machine) == "", PATIENCE, "the end of all processes")


def test_the_page_has_the_ends() -> None:
    page = (PROJECT / "docs" / "batch-systems.md").read_text()
    for name, end in ENDS.items():
        assert f"| {name} | {told(*end.with_srun)} | {told(*end.without)} |\n" in page


def told(state: str, clean: bool) -> str:
    return "goes on" if state == GOES_ON else f"{state}, {'shut down' if clean else 'killed'}"


# ---- what it has --------------------------------------------------------------------------------

READ = "run/" + quote(f"dd if={DEVICE} of=/dev/null bs=1 count=1", safe="")


@ON_DEBIAN_13
def test_devices_and_directories(slurm: Slurm) -> None:
    """A device that a job has to ask for is closed to its session, too; the tun device is none.
    And the session has the job's own /tmp."""
    machine = slurm.machine
    machine.do("touch", "/tmp/of-the-node")
    session, plain = Job(slurm, BY_DRIVER), Job(slurm, {})
    asked = Job(slurm, BY_DRIVER, options=["--gres=gpu:1"])
    for job in (session, asked):
        use(job)
        assert "outbound slirp4netns" in job.log()
    plain.wait_ready()
    assert plain.neighbours().output == "served by 1000"
    assert all("Operation not permitted" in job.get(READ) for job in (session, plain))
    assert "1+0 records out" in asked.get(READ)
    listed = session.get("run/" + quote("ls -a /tmp", safe=""))
    assert ".." in listed and "of-the-node" not in listed, listed
    words = ["srun", "--quiet", ARCHIVE, "--check", "--json"]
    answer = json.loads(machine.do(*words, account=OWNER, environ=BY_DRIVER))
    assert named(answer)["tun device"]["status"] == "ok", answer
    for job in (session, plain, asked):
        scancel(job)
        assert job.end() == "CANCELLED 0:0", job.log()
    wait_until(lambda: processes(machine) == "", PATIENCE, "the end of all processes")
