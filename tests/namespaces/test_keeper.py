"""The processes of ours that stay: what they have, and what they must not have."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import termios
from pathlib import Path
from typing import Any, Iterator

import pytest
from launches import descriptors_of

from portwrap.keeper.log import Log

from helpers import OWNER, SYSTEM_PATH, find_tool, needs, run_as, wait_until
from sessions import (
    KEEPER,
    Inside,
    Portwrap,
    Session,
    kill,
    name_of,
    parent_of,
    unused_port,
)

pytestmark = pytest.mark.namespaces
WORKER = "portwrap-relay"
FORMS: dict[str, dict[str, Any]] = {  # where the keeper is
    "inside": {"forward": "relay"},
    "outside": {"forward": "native"},
    "outside, with a worker": {
        "forward": "relay",
        "extra_env": {"PORTWRAP_HOST_SERVICE": str(unused_port())},
    },
}


class Held:
    """A session whose launching process was given one end of a pipe besides."""

    def __init__(self, session: Session, writing: int) -> None:
        self.session = session
        self.writing = writing
        self.pipe = os.readlink(f"/proc/self/fd/{writing}")
        names = [session.named(WORKER)] if session.named(WORKER) else []
        self.ours = {session.keeper, *names}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.every_python) for name in FORMS])
def held(request: pytest.FixtureRequest, portwrap: Portwrap) -> Iterator[Held]:
    options = FORMS[request.param]
    reading, writing = os.pipe()
    try:
        with Session(portwrap, ["sleep", "600"], pass_fds=[writing], **options) as session:
            session.wait_until_up()
            if "worker" in request.param:
                wait_until(lambda: session.named(WORKER), what="the worker")
            yield Held(session, writing)
    finally:
        os.close(reading)
        os.close(writing)


def links_of(pid: int) -> set[str]:
    return set(descriptors_of(pid).values())


def test_nothing_that_the_job_has_handed_on(held: Held) -> None:
    """A reader of it waits for its end."""
    for pid in {*held.ours, held.session.driver}:
        assert held.pipe not in links_of(pid)
    look = ["ls", "-l", "/proc/self/fd"]
    control = run_as(OWNER, look, pass_fds=[held.writing]).stdout
    assert held.pipe in control


def capabilities_of(status: str) -> dict[str, int]:
    rows = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {name: int(rows[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}


def test_no_capability(held: Held, portwrap: Portwrap) -> None:
    """Whoever enters a user namespace of his own account gets all of them."""
    for pid in held.ours:
        assert not any(capabilities_of(Path(f"/proc/{pid}/status").read_text()).values())
    enter = (
        "import os; from portwrap.kernel import libc;"
        f"libc.setns(os.open('/proc/{held.session.pid}/ns/user', os.O_RDONLY));"
        "print(open('/proc/self/status').read())"
    )
    control = run_as(OWNER, [portwrap.python, "-c", enter], cwd=portwrap.folder).stdout
    assert capabilities_of(control)["CapEff"] != 0


def test_only_one_that_relays_is_in_the_sandbox(held: Held, request: pytest.FixtureRequest) -> None:
    """It needs no second process then; one that has to reach the host stays with it."""
    networks = {
        os.readlink(f"/proc/{pid}/ns/net") for pid in (held.session.keeper, held.session.pid)
    }
    is_inside = len(networks) == 1
    assert is_inside == (request.node.callspec.params["held"] == "inside")


@pytest.mark.parametrize("held", ["outside, with a worker"], indirect=True)
def test_a_worker_has_no_socket_of_the_keepers(held: Held) -> None:
    """Above all not the lifeline: the kernel tells the command that the keeper is gone when the
    last of its descriptors is closed."""
    keeper, worker = (
        {link for link in links_of(pid) if link.startswith(("socket:", "anon_inode:[pidfd]"))}
        for pid in (held.session.keeper, held.session.named(WORKER))
    )
    assert keeper and worker
    assert not keeper & worker


def test_a_driver_has_nothing_of_the_keepers(held: Held) -> None:
    """A port would not be free before it has ended, nor the command be told of the keeper's end."""
    keeper, driver = (
        {link for link in links_of(pid) if link.startswith(("socket:", "anon_inode:[pidfd]"))}
        for pid in (held.session.keeper, held.session.driver)
    )
    assert keeper
    assert not keeper & driver


def test_the_end_of_a_session_is_no_busy_loop(portwrap: Portwrap, world_dir: Path) -> None:
    """A connection to a host service is still open, which somebody outside has got: the keeper
    waits for its last bytes. That nobody is left to call listen is no event all the time."""
    needs("strace")
    log = world_dir / "calls"
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        extra = {"PORTWRAP_HOST_SERVICE": str(port)}
        with Inside(portwrap, forward="native", extra_env=extra) as session:
            session.wait_until_up()
            keeper = session.keeper
            with session.connect("127.0.0.1", port), service.accept()[0]:
                words = ["strace", "-qq", "-e", "trace=?epoll_wait,epoll_pwait", "-o", str(log)]
                with subprocess.Popen([*words, "-p", str(keeper)]) as strace:
                    wait_until(lambda: log.exists() and log.read_text(), what="strace at work")
                    kill(session.pid)
                    strace.wait(timeout=20)
    calls = log.read_text().splitlines()
    assert 1 < len(calls) < 20


KEEPS_ON = """#!{python}
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
os.execv({driver!r}, [{driver!r}, *sys.argv[1:]])
"""


def test_a_driver_that_the_kernel_does_not_end(portwrap: Portwrap, world_dir: Path) -> None:
    """A change of the security label at its start, as SELinux has one for pasta, clears the signal
    that it is to get when the keeper ends: so the keeper ends it."""
    needs("slirp4netns")
    driver = str(find_tool("slirp4netns"))
    wrapper = world_dir / "slirp4netns"
    wrapper.write_text(KEEPS_ON.format(python=portwrap.python, driver=driver))
    wrapper.chmod(0o755)
    extra = {"PATH": f"{world_dir}:{SYSTEM_PATH}"}
    with Session(portwrap, ["sleep", "600"], network="slirp4netns", extra_env=extra) as session:
        session.wait_until_up()
        assert Path(f"/proc/{session.driver}/cmdline").read_bytes().startswith(driver.encode())
        kill(session.pid)
        session.wait_until_gone(10)


PRCTL = {"x86_64": "157", "aarch64": "167"}.get(os.uname().machine, "")


def test_a_keeper_that_dies_while_its_driver_begins(portwrap: Portwrap) -> None:
    """Before the driver has asked the kernel to end it with the keeper."""
    needs("strace")
    slow = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", "inject=prctl:delay_enter=2000000"]
    with Session(portwrap, ["sleep", "600"], before=slow) as session:

        def beginning() -> list[int]:
            """The driver to be, in that call, when it has been told which driver it is to be."""
            ours = [pid for pid in session.alive() if name_of(pid) == KEEPER]
            waiting = [pid for pid in ours if parent_of(pid) in ours and call_of(pid) == PRCTL]
            return [pid for pid in waiting if holds_message(pid)]

        [driver] = wait_until(beginning, 30, "the driver to be")
        kill(parent_of(driver))
        assert session.process.wait(timeout=30) == 125
        session.wait_until_gone(10)


def holds_message(pid: int) -> bool:
    """Whether there is something to read in a pipe of this process."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if int(entry.name) > 2 and os.readlink(entry).startswith("pipe:"):
            pipe = os.open(entry, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4):
                    return True
            finally:
                os.close(pipe)
    return False


def call_of(pid: int) -> str:
    """The number of the system call that a process is in."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0]


def test_a_line_that_the_keeper_was_writing_when_it_forked() -> None:
    """A worker has no such child, and logs on."""
    log = Log("portwrap", verbose=False)
    log.writer = os.getppid()
    assert not log.is_writing()


# ---- what a program of the session can do to them -----------------------------------------------

SERVICE = {"PORTWRAP_HOST_SERVICE": str(unused_port())}
MOVES = {"forward": "native", "outward": "helper"}
"""The server of the test must be relayed: then the keeper goes into the sandbox."""
ATTACKED: dict[str, dict[str, Any]] = {
    "relay": {"forward": "relay", "outward": "helper"},
    "allow-from": {
        "forward": "auto",
        "outward": "helper",
        "extra_env": {"PORTWRAP_ALLOW_FROM": "127.0.0.0/8"},
    },
    "worker": {"forward": "relay", "outward": "helper", "extra_env": SERVICE},
    "relay and native": {"forward": "relay", "outward": "native"},
    "native": {"forward": "native", "outward": "native"},
    "native, then relay": MOVES,
}


def goes_inside(session: Session) -> bool:
    """Whether the keeper, or a worker, has entered the sandbox's network."""
    networks = {
        os.readlink(f"/proc/{pid}/ns/net") for pid in (session.keeper, session.named(WORKER)) if pid
    }
    return os.readlink(f"/proc/{session.pid}/ns/net") in networks


@pytest.mark.parametrize("network", ["slirp4netns", "pasta"])
@pytest.mark.parametrize("form", ATTACKED)
def test_a_program_of_the_session_gets_nothing_of_ours(
    portwrap: Portwrap, form: str, network: str
) -> None:
    """The keeper, its worker and the network driver have sockets of the host, by which it would
    reach the host's loopback."""
    options = {**ATTACKED[form], "network": network, "stdin": subprocess.PIPE}
    with Session(portwrap, portwrap.program("attack.py"), **options) as session:
        session.wait_until_up()
        if ATTACKED[form] is MOVES:
            session.client()
        if form != "native":
            wait_until(lambda: goes_inside(session), what="one of ours in the sandbox")
        ours = list(filter(None, [session.keeper, session.driver, session.named(WORKER)]))
        assert len(ours) == (3 if form in ("worker", "relay and native") else 2)
        out, _ = session.process.communicate(" ".join(map(str, ours)) + "\n", timeout=30)
        *outcomes, control = json.loads(out)
        assert set(control.values()) == {"done"}
        for each in outcomes:
            assert each["take"] == each["attach"] == "EPERM"
            assert set(each.values()) <= {"EPERM", "EACCES"}, outcomes
