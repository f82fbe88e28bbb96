"""Who ends when somebody else does: the command, the keeper, the network driver."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Sequence

import pytest

from portwrap.kernel.procfs import has_ended
from portwrap.launch.story import LIFELINE_FROM

from helpers import OWNER, as_user, end, lives, state_of, wait_until
from sessions import (
    DRIVER,
    KEEPER,
    Inside,
    Portwrap,
    Session,
    assert_quiet,
    kill,
    last_words,
    name_of,
    parent_of,
    serves,
    settle,
    unused_ports,
)

pytestmark = pytest.mark.namespaces

LIMIT = 1.9  # less than the keeper's PROC_INTERVAL
LIMIT_WITHOUT_PIDFD = 4.0
"""Seconds within which nothing may be left, and the command must have been told."""
FORWARDS = ("relay", "auto")
KERNELS = [
    # with pidfds?, --forward: without them there is no hand-over
    pytest.param(True, "relay", id="relay"),
    pytest.param(True, "auto", id="auto"),
    pytest.param(False, "auto", id="no-pidfd"),
]
every_kernel = pytest.mark.parametrize(("pidfd", "forward"), KERNELS)


class Told(Session):
    """A session whose command counts the SIGTERMs that it gets."""

    def __init__(
        self,
        portwrap: Portwrap,
        folder: Path,
        *modes: str,
        pidfd: bool = True,
        forward: str = "relay",
        shell: bool = False,
        before: Sequence[str] = (),
        stderr: int = subprocess.PIPE,
    ) -> None:
        self.log = folder / f"log-{random.getrandbits(64):x}"
        self.log.touch()
        self.log.chmod(0o666)
        self.limit = LIMIT if pidfd else LIMIT_WITHOUT_PIDFD
        command = portwrap.program("count_sigterm.py", self.log, *modes)
        if shell:
            command = ["sh", "-c", 'exec "$0" "$@"', *command]
        if not pidfd:
            before = portwrap.program("without.py", "pidfds")
        super().__init__(portwrap, command, before=before, forward=forward, stderr=stderr)

    def __enter__(self) -> Told:
        return self

    def wait_until_ready(self) -> None:
        wait_until(lambda: "R" in self.log.read_text(), what="the command is ready")
        self.wait_until_served()

    def wait_until_alone(self) -> None:
        """Fail unless nobody but the command is left, and it was told once, in time."""
        wait_until(lambda: not self.others(), self.limit, "only the command left")
        wait_until(lambda: "T" in self.log.read_text(), self.limit, "SIGTERM for the command")
        assert self.log.read_text() == "RT"
        assert self.process.poll() is None


@pytest.fixture(params=FORWARDS)
def forward(request: pytest.FixtureRequest) -> str:
    return str(request.param)


HOLDERS: list[tuple[str, ...]] = [(), ("closes",), ("child",), ("child", "closes")]


# ---- the network driver or the keeper ends ------------------------------------------------------


def complaint(session: Session) -> str:
    """What the keeper has said, when everything of the session has ended."""
    session.end_processes()
    return session.stderr()


@every_kernel
@pytest.mark.parametrize("modes", HOLDERS, ids=lambda modes: "-".join(modes) or "plain")
def test_the_network_driver_dies(
    portwrap: Portwrap, world_dir: Path, modes: tuple[str, ...], pidfd: bool, forward: str
) -> None:
    with Told(portwrap, world_dir, *modes, pidfd=pidfd, forward=forward) as session:
        session.wait_until_ready()
        driver, keeper = session.driver, session.keeper
        kill(driver)
        wait_until(lambda: state_of(keeper) in ("", "Z"), session.limit, "the keeper gone")
        wait_until(lambda: "T" in session.log.read_text(), session.limit, "SIGTERM")
        assert session.process.poll() is None
        said = complaint(session)
        assert session.log.read_text() == "RT"
        assert said == "portwrap: slirp4netns ended by signal 9; ending the command (SIGTERM)\n"


def test_the_network_driver_dies_and_nobody_reads_what_is_said(
    portwrap: Portwrap, world_dir: Path
) -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writing, bytes(4096))
        os.set_blocking(writing, True)
        with Told(portwrap, world_dir, stderr=writing) as session:
            session.wait_until_ready()
            kill(session.driver)
            session.wait_until_alone()
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("modes", [(), ("child",), ("child", "closes")], ids="-".join)
@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped"])
def test_the_keeper_dies(
    portwrap: Portwrap, world_dir: Path, modes: tuple[str, ...], stopped: bool, forward: str
) -> None:
    with Told(portwrap, world_dir, *modes, forward=forward) as session:
        session.wait_until_ready()
        driver, keeper = session.driver, session.keeper
        if stopped:
            os.kill(keeper, signal.SIGSTOP)
            wait_until(lambda: state_of(keeper) == "T", what="the keeper stopped")
        kill(keeper)
        wait_until(lambda: state_of(driver) in ("", "Z"), LIMIT, "the network driver gone")
        wait_until(lambda: "T" in session.log.read_text(), LIMIT, "SIGTERM")
        assert session.process.poll() is None
        assert complaint(session) == ""
        assert session.log.read_text() == "RT"


LATE_DRIVER = """#!/bin/sh
for word; do case $word in --ready-fd=*) ready=${{word#*=}};; esac; done
until [ -e {go} ]; do sleep 0.01; done
printf 1 >/proc/self/fd/$ready
exec sleep 600
"""
"""A network driver that is ready once there is a file of this name."""


def test_the_keeper_dies_just_before_the_command_is_executed(
    portwrap: Portwrap, world_dir: Path
) -> None:
    """Between its word that it is ready and the kernel's promise to tell of its end."""
    go, driver = world_dir / "go", world_dir / DRIVER
    driver.write_text(LATE_DRIVER.format(go=go))
    driver.chmod(0o755)
    command = portwrap.program("count_sigterm.py", world_dir / "log")
    path = {"PATH": f"{world_dir}:/usr/bin:/bin"}
    with Session(portwrap, command, extra_env=path) as session:
        # the driver, too, has the keeper's name until it is exec'ed
        keeper = wait_until(lambda: session.driver and session.keeper, what="a keeper")
        waits_in(keeper, "poll")
        os.kill(session.pid, signal.SIGSTOP)
        go.touch()
        wait_until(lambda: serves(keeper), what="a keeper that is ready, and watches")
        kill(keeper)
        # A process that ends has no environment any more some time before it closes its files.
        wait_until(lambda: state_of(keeper) in ("", "Z"), what="the keeper's files closed")
        wait_until(lambda: not session.others(), what="its driver gone")
        os.kill(session.pid, signal.SIGCONT)
        assert session.process.wait(timeout=20) == 125
        said = session.stderr()
        assert said.startswith("portwrap: the keeper process ended while the sandbox was set up\n")
        session.wait_until_gone(LIMIT)


FAILED = "portwrap: the keeper failed: "
ENDING = "; ending the command (SIGTERM)\n"


def test_the_keeper_cannot_serve_once_the_command_has_begun(
    portwrap: Portwrap, forward: str
) -> None:
    """What serves is loaded while the command begins: one line, and SIGTERM."""
    before = portwrap.program("without.py", "epoll")
    with Session(portwrap, ["sleep", "600"], before=before, forward=forward) as session:
        # 125 if it fails before the kernel has promised to tell of its end
        assert session.process.wait(timeout=20) in (125, -signal.SIGTERM)
        session.wait_until_gone(LIMIT)
        first, *more = session.stderr().splitlines(keepends=True)
        assert first == f"{FAILED}Too many open files{ENDING}"
        assert len(more) == (2 if session.process.returncode == 125 else 0)


@pytest.mark.parametrize("more", [False, True])
def test_hardly_any_descriptor_is_no_reason_to_end_a_command(
    portwrap: Portwrap, forward: str, more: bool
) -> None:
    """What the keeper will need it has before it is ready: else there is no session."""
    seen = set()
    for most in range(9, 33):
        published, offered = map(str, unused_ports(2))
        extra = {"PORTWRAP_PUBLISH": published, "PORTWRAP_HOST_SERVICE": offered} if more else {}
        limit = ["prlimit", f"--nofile={most}", "--"]
        with Session(
            portwrap,
            ["sleep", "600"],
            before=limit,
            forward=forward,
            network="none",
            extra_env=extra,
        ) as session:
            wait_until(
                lambda: serves(session.keeper) or session.process.poll() is not None,
                what="a keeper that serves, or an end",
            )
            status = session.process.poll()
            if status is not None:
                assert ENDING not in session.stderr(), most
            assert status in (None, 125), most
            seen.add(status)
    assert seen == {None, 125}


@pytest.mark.parametrize("pause", [0, 0.005, 0.01, 0.015])
def test_the_keeper_fails_while_the_command_closes_what_it_does_not_know(
    portwrap: Portwrap, pause: float
) -> None:
    before = portwrap.program("without.py", "epoll")
    text = f"sleep {pause}; exec {LIFELINE_FROM}>&-; exec sleep 600"
    with Session(portwrap, ["bash", "-c", text], before=before) as session:
        assert session.process.wait(timeout=20) in (125, -signal.SIGTERM)
        session.wait_until_gone(LIMIT)


def waits_in(pid: int, call: str) -> None:
    """Wait until the process sleeps in a function of the kernel with this in its name."""
    place = Path(f"/proc/{pid}/wchan")
    wait_until(lambda: call in place.read_text(), what=f"{call} of {pid}")


@pytest.mark.parametrize("name", [KEEPER, DRIVER])
def test_a_command_that_execs_another(
    portwrap: Portwrap, world_dir: Path, name: str, forward: str
) -> None:
    with Told(portwrap, world_dir, shell=True, forward=forward) as session:
        session.wait_until_ready()
        kill(session.named(name))
        session.wait_until_alone()


# ---- the command ends ---------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV])
def test_the_command_is_killed(
    portwrap: Portwrap, world_dir: Path, end: signal.Signals, pidfd: bool, forward: str
) -> None:
    with Told(portwrap, world_dir, pidfd=pidfd, forward=forward) as session:
        session.wait_until_ready()
        os.kill(session.pid, end)
        session.wait_until_gone(session.limit)  # before its parent has looked: it is a zombie
        assert session.process.wait(timeout=20) == -end
        assert session.stderr() == ""


FIRST_THREAD_ENDS = """
import ctypes, os, sys, threading, time
exit_call = 60 if os.uname().machine == "x86_64" else 93
threading.Thread(target=sys.stdin.read, daemon=True).start()
ctypes.CDLL(None).syscall(exit_call, 0)
"""


def test_a_process_ends_with_its_last_thread(portwrap: Portwrap) -> None:
    """Its state is that of its first one, which may have ended before."""
    words = [portwrap.python, "-c", FIRST_THREAD_ENDS]
    process = as_user(OWNER, words, stdin=subprocess.PIPE)
    try:
        directory = os.open(f"/proc/{process.pid}", os.O_RDONLY)
        wait_until(lambda: state_of(process.pid) == "Z", what="the end of the first thread")
        assert not has_ended(directory)
        assert lives(process.pid)  # the tests' own look at it
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert has_ended(directory), "a zombie"
        process.wait()
        assert has_ended(directory)
        os.close(directory)
    finally:
        end(process)


@every_kernel
@pytest.mark.parametrize("modes", [("closes",), ("child",), ("daemon",)], ids="-".join)
def test_the_command_ends(
    portwrap: Portwrap, world_dir: Path, modes: tuple[str, ...], pidfd: bool, forward: str
) -> None:
    """A child may hold the lifeline on: it is not the command."""
    with Told(portwrap, world_dir, *modes, "ends", pidfd=pidfd, forward=forward) as session:
        assert session.process.wait(timeout=20) == 0
        wait_until(
            lambda: not {name_of(pid) for pid in session.alive()} & {KEEPER, DRIVER},
            session.limit,
            "keeper and network driver gone",
        )
        assert len(session.alive()) == (0 if modes == ("closes",) else 1)


@pytest.mark.parametrize("pidfd", [True, False], ids=["pidfd", "no-pidfd"])
def test_end_of_the_lifeline_is_not_the_end(
    portwrap: Portwrap, world_dir: Path, pidfd: bool
) -> None:
    """Some launchers close every descriptor that they do not know."""
    with Told(portwrap, world_dir, "closes", pidfd=pidfd) as session:
        session.wait_until_ready()
        for _ in range(3):  # the keeper has seen it by its second answer
            with pytest.raises(ConnectionResetError):
                session.client().recv(1)
        assert session.keeper and session.driver
        settle(session.keeper)
        assert_quiet(session.keeper, 0.5, most=1)
        assert session.log.read_text() == "R"


def test_the_command_ends_while_the_keeper_is_stopped(portwrap: Portwrap) -> None:
    with Session(portwrap, ["sleep", "60"]) as session:
        session.wait_until_up()
        keeper = session.keeper
        os.kill(keeper, signal.SIGSTOP)
        kill(session.pid)
        session.process.wait(timeout=20)
        os.kill(keeper, signal.SIGCONT)
        session.wait_until_gone(LIMIT)


def test_signals_to_every_process_of_the_job(
    portwrap: Portwrap, world_dir: Path, forward: str
) -> None:
    """Only the command acts on them; its others stay until it is gone."""
    with Told(portwrap, world_dir, forward=forward) as session:
        session.wait_until_ready()
        others = session.others()
        assert len(others) == 2
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            for pid in others:
                os.kill(pid, number)
        os.kill(session.pid, signal.SIGTERM)
        wait_until(lambda: session.log.read_text() == "RT", what="SIGTERM")
        assert session.others() == others
        for pid in others:
            pending = Path(f"/proc/{pid}/status").read_text()
            assert "ShdPnd:\t0000000000000000" not in pending, "held back, not handled"
        kill(session.pid)
        session.process.wait(timeout=20)
        session.wait_until_gone(LIMIT)


# ---- standard output ----------------------------------------------------------------------------


def test_standard_output_ends_with_the_command(portwrap: Portwrap, forward: str) -> None:
    """`batch job | tee log` waits for end of file, not for the command."""
    text = "read line; echo said"
    with Session(portwrap, ["sh", "-c", text], forward=forward, stdin=-1) as session:
        session.wait_until_up()
        others = sorted(session.others())
        assert len(others) == 2
        for pid in others:
            for number in (0, 1):
                assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null"
            os.kill(pid, signal.SIGSTOP)
        assert session.process.stdin and session.process.stdout
        session.process.stdin.write("go\n")
        session.process.stdin.flush()
        assert session.process.stdout.read() == "said\n"  # until end of file
        assert session.process.wait(timeout=20) == 0
        for pid in others:
            os.kill(pid, signal.SIGCONT)
        session.wait_until_gone(LIMIT)


# ---- the package goes away, the last words ------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_the_package_goes_away(python: str, world_dir: Path, replaced: bool, forward: str) -> None:
    """On a site's share it may be replaced at any time."""
    portwrap = Portwrap(python, world_dir / "copy")
    with Inside(portwrap, forward=forward) as session:
        session.wait_until_up()
        shutil.rmtree(portwrap.folder / "portwrap")
        if replaced:
            (portwrap.folder / "portwrap").mkdir()
            (portwrap.folder / "portwrap" / "__init__.py").write_text("raise SystemExit\n")
        with session.serve() as listener:
            client, server = session.pair(listener)
            client.sendall(b"still")
            assert server.recv(9) == b"still"
        session.channel.close()  # the command ends at that
        assert session.process.wait(timeout=20) == 0
        session.wait_until_gone(LIMIT)
        assert session.stderr() == ""


@pytest.mark.parametrize("size", [1, 100_000, 8_000_000])
def test_the_last_words_of_the_command_arrive(portwrap: Portwrap, size: int, forward: str) -> None:
    words = portwrap.program("speak_and_end.py", "8888", str(size))
    with Session(portwrap, words, forward=forward) as session:
        assert session.process.stdout is not None
        assert session.process.stdout.readline() == "ready\n"
        client = session.client()
        client.sendall(b"x")
        sent = int(session.process.stdout.readline())
        got = last_words(session, client)
        want = (bytes(range(256)) * (size // 256 + 1))[:sent]
        assert len(got) == len(want), (len(got), len(want))
        assert got == want
        session.wait_until_gone(LIMIT)


@pytest.mark.parametrize(
    ("host", "server", "client"),
    [("::", "127.0.0.1", "::1"), ("127.0.0.1", "::1", "127.0.0.1")],
    ids=["of the other family", "of a relayed server"],
)
def test_the_last_words_over_a_socket_that_the_keeper_serves(
    portwrap: Portwrap, host: str, server: str, client: str
) -> None:
    """At the end it looks for no server any more; its relay has the host's socket until then."""
    size = 100_000
    words = portwrap.program("speak_and_end.py", "8888", str(size), server)
    with Session(portwrap, words, forward="native", outward="helper", host=host) as session:
        assert session.process.stdout is not None
        assert session.process.stdout.readline() == "ready\n"
        reader = session.client(client)
        reader.sendall(b"x")
        sent = int(session.process.stdout.readline())
        assert last_words(session, reader) == (bytes(range(256)) * (size // 256 + 1))[:sent]
        session.wait_until_gone(LIMIT)
        assert session.stderr() == ""


def test_a_client_that_does_not_listen_keeps_nobody(portwrap: Portwrap) -> None:
    words = portwrap.program("speak_and_end.py", "8888", "100000000")
    with Session(portwrap, words) as session:
        assert session.process.stdout is not None
        session.process.stdout.readline()
        session.client().sendall(b"x")
        assert session.process.wait(timeout=20) == 0
        session.wait_until_gone(LIMIT)


# ---- at random moments --------------------------------------------------------------------------

SEED = int(os.environ.get("PORTWRAP_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
START_UP = 0.15
"""Seconds in which a start may be interrupted, and somewhat more."""


def a_keeper(session: Session) -> int:
    """A process that is, or becomes, the keeper."""
    others = sorted(session.others())
    keepers = [pid for pid in others if name_of(pid) not in (DRIVER, "")]
    # a child of the command's is there only to fork the keeper, one of the keeper's to compile, and
    # each may be past that
    apart = {0, session.pid, *others}
    return next((pid for pid in keepers if parent_of(pid) not in apart), 0)


def kill_when_there(find: Callable[[], int]) -> None:
    """Kill a process as soon as there is one."""

    def try_to() -> bool:
        victim = find()
        try:
            if victim:
                os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return bool(victim)

    wait_until(try_to, what="whom to kill")


def judge(session: Told) -> None:
    """After the keeper or the network driver has been killed."""
    wait_until(lambda: not session.others(), session.limit, "only the command left")
    ended = {125, -signal.SIGTERM}  # still setting up; or not ready to handle it
    wait_until(
        lambda: session.process.poll() in ended or "T" in session.log.read_text(),
        session.limit,
        f"an end, or SIGTERM ({session.process.poll()}, {session.log.read_text()!r})",
    )
    status = session.process.poll()
    session.end_processes()
    told, said = session.log.read_text(), session.stderr()
    if status is None:
        assert told == "RT"
        assert said.count("\n") == (1 if "slirp4netns" in said else 0), said
    elif status == 125:
        assert told == ""
        # The keeper has a word of its own where the network driver ended just before exec.
        assert said.startswith("portwrap: ") and said.count("\n") in (2, 3), said
    else:
        assert "T" not in told
    assert "Traceback" not in said


def one_random_run(portwrap: Portwrap, folder: Path, seed: str, pidfd: bool) -> None:
    dice = random.Random(seed)
    kind = dice.choice(["command ends", "command killed", "keeper killed", "driver killed"])
    forward = dice.choice(FORWARDS)
    delay = dice.uniform(0, START_UP)
    modes = ["ends"] if kind == "command ends" else []
    with Told(portwrap, folder, *modes, pidfd=pidfd, forward=forward) as session:
        if kind == "command ends":
            assert session.process.wait(timeout=20) == 0
        elif kind == "command killed":
            time.sleep(delay)
            kill(session.pid)
            session.process.wait(timeout=20)
        elif kind == "keeper killed":
            time.sleep(delay)
            kill_when_there(lambda: a_keeper(session))
            judge(session)
        else:
            wait_until(lambda: session.driver, what="a network driver")
            time.sleep(delay / 5)
            kill_when_there(lambda: session.driver)
            judge(session)
        session.wait_until_gone(session.limit)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("pidfd", "runs", "at_once"),
    [
        pytest.param(True, 200, 3, marks=pytest.mark.matrix),
        (True, 60, 3),
        (False, 30, 5),
    ],
)
def test_at_random_moments(
    portwrap: Portwrap, world_dir: Path, pidfd: bool, runs: int, at_once: int
) -> None:
    print(f"PORTWRAP_TEST_SEED={SEED}")
    mounts = set(Path("/proc/self/mounts").read_text().splitlines())
    faults = []
    end = time.monotonic() + 60  # on a busy machine each takes a while

    def run(number: int) -> None:
        if time.monotonic() > end:
            return
        seed = f"{SEED}-{pidfd}-{number}"
        try:
            one_random_run(portwrap, world_dir, seed, pidfd)
        except BaseException as fault:
            faults.append(f"run {seed}: {fault!r}")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, range(runs)))
    assert not faults, "\n".join(faults)
    assert set(Path("/proc/self/mounts").read_text().splitlines()) <= mounts
