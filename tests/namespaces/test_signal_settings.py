"""Ignored and blocked signals are as the caller had them for a native exec."""

from __future__ import annotations

import signal
from typing import Callable

import pytest
from launches import in_sandbox, run_in_sandbox

from helpers import OWNER, run_as
from sessions import Portwrap

pytestmark = pytest.mark.namespaces

SIG = signal.Signals
SHOW = ("grep", "-E", "^Sig(Ign|Blk|Cgt)|^ShdPnd|^SigPnd", "/proc/self/status")
ALL = set(signal.valid_signals())


def settings(ignored: set[int], blocked: set[int]) -> Callable[[], None]:
    def prepare() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

    return prepare


@pytest.mark.every_python
@pytest.mark.parametrize(
    ("ignored", "blocked"),
    [
        pytest.param(set(), set(), id="none"),
        pytest.param({SIG.SIGINT}, {SIG.SIGTERM}, id="INT ignored, TERM blocked"),
        pytest.param({SIG.SIGHUP}, set(), id="nohup"),
        pytest.param({SIG.SIGINT, SIG.SIGQUIT}, set(), id="a shell's background job"),
        pytest.param({SIG.SIGCHLD}, set(), id="CHLD ignored"),
        pytest.param(set(), {SIG.SIGCHLD}, id="CHLD blocked"),
        pytest.param({SIG.SIGTERM}, {SIG.SIGINT}, id="TERM ignored, INT blocked"),
        pytest.param({SIG.SIGTTOU, SIG.SIGTTIN}, {SIG.SIGTTIN, SIG.SIGUSR1}, id="terminal"),
        pytest.param({SIG.SIGALRM, SIG.SIGUSR2, SIG.SIGIO}, {SIG.SIGPIPE}, id="others"),
        pytest.param({int(SIG.SIGRTMIN) + 3}, {int(SIG.SIGRTMAX)}, id="real-time"),
        pytest.param(
            ALL - {SIG.SIGKILL, SIG.SIGSTOP, SIG.SIGPIPE, SIG.SIGXFSZ}, set(), id="all ignored"
        ),
        pytest.param(set(), ALL, id="all blocked"),
    ],
)
def test_as_for_a_native_exec(portwrap: Portwrap, ignored: set[int], blocked: set[int]) -> None:
    prepare = settings(ignored, blocked)
    native = run_as(OWNER, SHOW, preexec_fn=prepare)
    assert native.returncode == 0
    result = run_in_sandbox(portwrap, *SHOW, preexec_fn=prepare)
    assert result.returncode == 0, result
    assert result.stdout == native.stdout


def test_sigpipe_ends_who_writes_to_nobody(portwrap: Portwrap) -> None:
    """Python ignores SIGPIPE, and that survives exec: `yes` would complain and end with 1."""
    script = "yes | head -n 1; echo ${PIPESTATUS[0]}"
    result = run_in_sandbox(portwrap, "bash", "-c", script)
    assert (result.stdout, result.stderr) == (f"y\n{128 + SIG.SIGPIPE}\n", "")


def test_a_caller_that_ignores_sigpipe_is_no_obstacle(portwrap: Portwrap) -> None:
    words = in_sandbox(portwrap, *SHOW)
    result = run_as(OWNER, words, restore_signals=False)
    assert "SigIgn:\t0000000000000000\n" in result.stdout, result
