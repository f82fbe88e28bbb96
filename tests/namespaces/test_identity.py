"""The command is the process that was started, in everything but its user and network namespace."""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import signal
import subprocess
import termios
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from launches import (
    assert_ps_shows_a_title,
    at_url,
    batchspawner_portwrap,
    descriptors_of,
    in_sandbox,
    keeper_among,
    namespaces_of,
    ours_alive,
    portrait,
    run_in_sandbox,
    status_of,
    wait_until_asleep,
)

from helpers import OWNER, as_user, end, environment, needs, run_as, wait_until
from sessions import Portwrap, unused_port

pytestmark = pytest.mark.namespaces

SLEEP = ("sleep", "600")
LIFELINE_FROM = 960


@pytest.fixture
def start(portwrap: Portwrap) -> Iterator[Callable[..., int]]:
    """Start `sleep` in a sandbox, or natively, and return its process number."""
    started: list[subprocess.Popen[str]] = []

    def start_one(
        sandboxed: bool, account: str = OWNER, before: tuple[str, ...] = (), **options: Any
    ) -> int:
        words = [*before, *(in_sandbox(portwrap, *SLEEP) if sandboxed else SLEEP)]
        process = as_user(account, words, **options)
        started.append(process)
        wait_until_asleep(process.pid)
        return process.pid

    yield start_one
    for process in started:
        end(process)


def unusual() -> None:
    """Settings of a process that nobody has by default."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1500, 3000))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 1 << 20))
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 22, 1 << 23))
    os.nice(3)


def grouped() -> None:
    """A process group of its own within the session."""
    os.setpgid(0, 0)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"umask": 0o027, "cwd": "/usr/share"}, id="umask and directory"),
        pytest.param({"preexec_fn": unusual}, id="limits and priority"),
        pytest.param({"start_new_session": False, "preexec_fn": grouped}, id="group"),
        pytest.param({"start_new_session": False}, id="our session and group"),
        pytest.param({"env": {}}, id="no environment"),
        pytest.param(
            {"env": {"PATH": "/usr/bin:/bin", "LANG": "C", "A B": "", "\udcff": "\udcfe\n"}},
            id="odd environment",
        ),
        pytest.param(
            {"env": {"PATH": "/bin", "LC_CTYPE": "C.UTF-8", "PYTHONHASHSEED": "7", "_": "x"}},
            id="environment of Python",
        ),
        pytest.param({"preexec_fn": lambda: signal.alarm(500)}, id="alarm"),
    ],
)
def test_inside_is_as_outside(start: Callable[..., int], options: dict[str, Any]) -> None:
    outside = portrait(start(False, **options))
    inside = portrait(start(True, **options))
    for one in (inside, outside):
        for name in ("group", "session"):
            one[name] = "its own" if one[name] != str(os.getpgid(0)) else one[name]
    assert inside == outside


def test_supplementary_groups_stay(start: Callable[..., int]) -> None:
    """Files of these groups stay open to the command, though inside they have no names."""
    before = ("setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--groups=4,20,27", "--")
    outside = portrait(start(False, account="root", before=before))
    inside = portrait(start(True, account="root", before=before))
    assert inside["Groups"] == outside["Groups"] == "4 20 27"


def test_inside_is_as_outside_for_root(start: Callable[..., int]) -> None:
    outside = portrait(start(False, account="root"))
    inside = portrait(start(True, account="root"))
    for name in ("CapPrm", "CapEff"):
        assert int(outside.pop(name), 16) != 0
        assert int(inside.pop(name), 16) == 0
    inside.pop("group"), outside.pop("group"), inside.pop("session"), outside.pop("session")
    assert inside == outside


@pytest.mark.parametrize("account", [OWNER, "root"])
def test_only_user_and_network_namespace_are_its_own(
    start: Callable[..., int], account: str
) -> None:
    host, inside = namespaces_of(os.getpid()), namespaces_of(start(True, account=account))
    differing = {kind for kind in host if inside[kind] != host[kind]}
    assert differing == {"user", "net"}


@pytest.mark.parametrize("account", [OWNER, "root"])
def test_no_capability_is_left(portwrap: Portwrap, account: str) -> None:
    result = run_in_sandbox(portwrap, "grep", "^Cap", "/proc/self/status", account=account)
    sets = dict(line.split(":\t") for line in result.stdout.splitlines())
    assert {name: int(sets[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapAmb": 0,
    }


@pytest.mark.parametrize("account", [OWNER, "root"])
def test_the_kernel_gives_the_command_no_right_over_its_network(
    portwrap: Portwrap, account: str
) -> None:
    result = run_in_sandbox(portwrap, "ip", "link", "set", "lo", "down", account=account)
    assert result.returncode != 0 and "not permitted" in result.stderr, result


def test_the_command_sees_its_own_account(portwrap: Portwrap) -> None:
    native = as_user(OWNER, ["id"]).communicate()[0]
    assert run_in_sandbox(portwrap, "id").stdout == native


TELL_SIGNAL = (
    "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
)
"""Print the signal that comes when the parent ends (PR_GET_PDEATHSIG, prctl(2))."""


def test_the_signal_of_the_parents_death_stays(portwrap: Portwrap) -> None:
    needs("setpriv")
    before = ["setpriv", "--pdeathsig", "USR1"]
    words = [portwrap.python, "-c", TELL_SIGNAL]
    native = run_as(OWNER, [*before, *words]).stdout
    assert int(native) == signal.SIGUSR1
    assert run_in_sandbox(portwrap, *words, before=before).stdout == native


# ---- descriptors -----------------------------------------------------------------------------


def test_only_the_standard_three_and_the_lifeline_are_inherited(start: Callable[..., int]) -> None:
    with open("/etc/passwd") as one, open("/etc/group") as two:
        high = fcntl.fcntl(two, fcntl.F_DUPFD, 970)
        try:
            left_open = (one.fileno(), high)
            outside = descriptors_of(start(False, pass_fds=left_open, stdout=subprocess.DEVNULL))
            inside = descriptors_of(start(True, pass_fds=left_open, stdout=subprocess.DEVNULL))
        finally:
            os.close(high)
    assert set(outside) == {0, 1, 2, *left_open}
    (lifeline,) = set(inside) - {0, 1, 2}
    assert lifeline >= LIFELINE_FROM
    assert inside[lifeline].startswith("socket:")
    assert (inside[0], inside[1]) == (outside[0], outside[1]) == ("/dev/null", "/dev/null")


@pytest.mark.parametrize("soft", [256, 64, 24])
def test_a_low_limit_of_descriptors_is_enough(start: Callable[..., int], soft: int) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 4096))

    pid = start(True, preexec_fn=lower)
    (lifeline,) = set(descriptors_of(pid)) - {0, 1, 2}
    assert 3 <= lifeline < soft


@pytest.mark.every_python
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_what_was_closed_stays_closed(start: Callable[..., int], closed: tuple[int, ...]) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    before = ours_alive()
    pid = start(True, preexec_fn=close)
    inside = descriptors_of(pid)
    assert set(inside) & {0, 1, 2} == {0, 1, 2} - set(closed)
    assert len(set(inside) - {0, 1, 2}) == 1
    # and no socket of the keeper got that number: it writes its messages to 2
    keeper = descriptors_of(keeper_among(ours_alive() - before))
    assert {keeper[0], keeper[1]} == {"/dev/null"}
    assert keeper[2].startswith(("/dev/null", "pipe:"))


def test_keeper_and_helper_leave_the_output_of_the_command_alone(portwrap: Portwrap) -> None:
    """Whoever reads the output of a job to its end must not wait for them."""
    before = ours_alive()
    with in_pipes(portwrap) as process:
        assert process.stdout is not None and process.stdin is not None
        wait_until_asleep(process.pid)
        keeper_among(ours_alive() - before)
        others = ours_alive() - before - {process.pid}
        ends = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 1)}
        held = {text for pid in others for text in descriptors_of(pid).values()}
        assert ends & held == set()


class in_pipes:
    """`sleep` in a sandbox, with pipes for its input and output."""

    def __init__(self, portwrap: Portwrap) -> None:
        words = in_sandbox(portwrap, *SLEEP)
        self.process = as_user(OWNER, words, stdin=subprocess.PIPE)

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *error: object) -> None:
        end(self.process)


# ---- a terminal ------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: its master and its slave."""
    master, slave = pty.openpty()
    yield master, slave
    for descriptor in (master, slave):
        try:
            os.close(descriptor)
        except OSError:
            pass


def on_terminal(start: Callable[..., int], slave: int, sandboxed: bool) -> int:
    def take_it() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    where = {"stdin": slave, "stdout": slave, "stderr": slave}
    return start(sandboxed, preexec_fn=take_it, **where)


def test_the_terminal_is_the_commands(start: Callable[..., int], terminal: tuple[int, int]) -> None:
    _, slave = terminal
    pid = on_terminal(start, slave, True)
    inside = portrait(pid)
    assert inside["foreground"] == inside["group"] == inside["session"] == str(pid)
    device = os.fstat(slave).st_rdev
    assert int(inside["terminal"]) == os.minor(device) & 0xFF | os.major(device) << 8
    names = descriptors_of(pid)
    assert {names[0], names[1], names[2]} == {os.ttyname(slave)}


@pytest.mark.parametrize(
    ("how", "number"),
    [
        (b"\x03", signal.SIGINT),
        (b"\x1c", signal.SIGQUIT),
        (b"", signal.SIGHUP),
    ],
)
def test_keys_and_hang_up_reach_the_command(
    start: Callable[..., int], terminal: tuple[int, int], how: bytes, number: signal.Signals
) -> None:
    def take_it() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    master, slave = terminal
    pid = start(True, preexec_fn=take_it, stdin=slave, stdout=slave, stderr=slave)
    if how:
        os.write(master, how)
    else:
        os.close(slave)
        os.close(master)
    wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT), 10)
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_status == number


# ---- the contract, for real ------------------------------------------------------------------


def test_only_the_port_changes_in_the_environment(portwrap: Portwrap) -> None:
    program = batchspawner_portwrap(portwrap)
    port = unused_port()
    environ = at_url(port, X="y")
    process = as_user(OWNER, [portwrap.python, program, "-P", "8889", "env"], env=environ)
    output, errors = process.communicate(timeout=20)
    assert errors == ""
    inside = dict(line.split("=", 1) for line in output.splitlines())
    assert inside == {**environ, "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:8889/u/"}


def test_the_words_of_the_command_arrive(portwrap: Portwrap) -> None:
    program = batchspawner_portwrap(portwrap)
    words = ["printf", "%s|", "-P", "--", "a b", "{guest-port}", "", "--port=7"]
    line = [portwrap.python, str(program), "--port", str(unused_port()), *words]
    process = as_user(OWNER, line, env=environment(OWNER))
    assert process.communicate(timeout=20) == ("-P|--|a b|8888||--port=8888|", "")


def test_it_can_be_nested(portwrap: Portwrap) -> None:
    inner = in_sandbox(portwrap, "sh", "-c", "echo $$; exit 7")
    result = run_in_sandbox(portwrap, *inner)
    assert result.returncode == 7, result


def test_started_in_a_directory_that_is_gone(portwrap: Portwrap, world_dir: Path) -> None:
    place = world_dir / "gone"
    place.mkdir()
    words = ["sh", "-c", f'cd {place} && rmdir {place} && exec "$@"', "sh"]
    world_dir.chmod(0o777)
    place.chmod(0o777)
    # -I: Python 3.13.0 itself cannot import socket there if the directory is on its path.
    python, *rest = in_sandbox(portwrap, "/bin/echo", "here")
    result = run_as(OWNER, [*words, python, "-I", *rest])
    assert (result.returncode, result.stdout) == (0, "here\n"), result


def test_status_of_the_keeper_names_it(start: Callable[..., int]) -> None:
    before = ours_alive()
    pid = start(True)
    keeper = keeper_among(ours_alive() - before)
    assert_ps_shows_a_title(keeper, pid)
    assert status_of(keeper)["Threads"] == "1"


def test_the_helpers_keep_no_directory_busy(start: Callable[..., int]) -> None:
    """A file system that the job began in can be unmounted when the command has left it."""
    before = ours_alive()
    pid = start(True, cwd="/usr/share")
    keeper_among(ours_alive() - before)
    helpers = ours_alive() - before - {pid}
    assert len(helpers) == 2
    assert {os.readlink(f"/proc/{helper}/cwd") for helper in helpers} == {"/"}
