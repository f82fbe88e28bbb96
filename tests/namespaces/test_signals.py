"""Signals reach the command as if nothing were around it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from typing import Iterator

import pytest
from launches import (
    in_sandbox,
    keeper_among,
    one_forward,
    ours_alive,
    status_of,
    wait_until_asleep,
    wait_until_nothing_is_left,
)

from helpers import OWNER, as_user, end, needs
from sessions import DRIVER, Portwrap, name_of, unused_port

pytestmark = [pytest.mark.namespaces, pytest.mark.usefixtures("each_forward")]

SIG = signal.Signals


@pytest.fixture
def port() -> int:
    return unused_port()


def said(process: subprocess.Popen[str]) -> str:
    """The next line of its output."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("number", [SIG.SIGTERM, SIG.SIGINT, SIG.SIGHUP, SIG.SIGUSR1, SIG.SIGWINCH])
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_comes_straight_from_its_sender(
    portwrap: Portwrap, port: int, number: signal.Signals, whole_group: bool
) -> None:
    before = ours_alive()
    words = in_sandbox(portwrap, *portwrap.program("wait_for_signal.py"), port=port)
    process = as_user(OWNER, words)
    try:
        assert said(process) == "ready"
        (os.killpg if whole_group else os.kill)(process.pid, number)
        assert said(process) == f"{int(number)} {os.getpid()}"
        assert process.wait(timeout=10) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    finally:
        end(process)
    wait_until_nothing_is_left(before, port)


@pytest.fixture
def before() -> set[int]:
    """What runs without the test: other tests' fixtures."""
    return ours_alive()


@pytest.fixture
def server(portwrap: Portwrap, port: int, before: set[int]) -> Iterator[subprocess.Popen[str]]:
    """A server that answers a request only when it has been told to end."""
    command = portwrap.program("last_request.py", "8888")
    process = as_user(OWNER, in_sandbox(portwrap, *command, port=port))
    try:
        assert said(process) == "ready"
        yield process
    finally:
        end(process)


@pytest.mark.parametrize("times", [1, 3])
def test_a_request_in_flight_is_answered_though_all_are_told_to_end(
    server: subprocess.Popen[str], port: int, before: set[int], times: int
) -> None:
    others = ours_alive() - before - {server.pid}
    keeper = keeper_among(others)
    (driver,) = [pid for pid in others if name_of(pid) == DRIVER]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert said(server) == "in flight"
        for pid in (keeper, driver) * times:
            os.kill(pid, SIG.SIGTERM)
        # They have got it: it stays pending because they block it.
        for pid in (keeper, driver):
            assert int(status_of(pid)["ShdPnd"], 16) >> SIG.SIGTERM - 1 & 1
        os.killpg(server.pid, SIG.SIGTERM)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert body == b"x" * 1_000_000
    assert said(server) == "clean"
    assert server.wait(timeout=10) == 0
    assert server.stderr is not None and server.stderr.read() == ""
    wait_until_nothing_is_left(before, port)


# ---- while the sandbox is being made ---------------------------------------------------------

MOMENTS = [
    ("socketpair", 1),
    ("bind", 1),
    ("listen", 1),
    ("unshare", 1),
    ("sendmsg", 1),
    ("?poll,?ppoll", 1),
    ("recvmsg", 1),
    ("prctl", 1),
    ("recvmsg", 2),
    ("wait4", 1),
]
"""System calls of the launching process, in their order, and which one of that name. Since Python
3.15 poll(2) is ppoll."""


@one_forward
@pytest.mark.every_python
@pytest.mark.parametrize("number", [SIG.SIGTERM, SIG.SIGINT, SIG.SIGHUP])
@pytest.mark.parametrize(
    ("call", "which"), MOMENTS, ids=[f"{name} {which}" for name, which in MOMENTS]
)
def test_a_signal_at_this_step_ends_us_natively(
    portwrap: Portwrap, port: int, call: str, which: int, number: signal.Signals
) -> None:
    needs("strace")
    before = ours_alive()
    # strace sends it when the call is entered, follows no child, and ends as its child does.
    inject = f"inject={call}:signal={number.name}:when={which}"
    watch = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=" + call, "-e", inject]
    process = as_user(OWNER, [*watch, *in_sandbox(portwrap, "sleep", "600", port=port)])
    try:
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (-number, "")
    finally:
        end(process)
    wait_until_nothing_is_left(before, port)


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_at_any_moment_ends_us_natively(
    portwrap: Portwrap, port: int, whole_group: bool
) -> None:
    words = in_sandbox(portwrap, "sleep", "600", port=port)
    before = ours_alive()
    begin = time.monotonic()
    process = as_user(OWNER, words)
    wait_until_asleep(process.pid)
    whole = time.monotonic() - begin
    end(process)
    wait_until_nothing_is_left(before, port)
    for step in range(30):
        process = as_user(OWNER, words)
        try:
            # The moment is the point here; SIGTERM keeps its default action from the first one on.
            time.sleep(whole * step / 25)
            (os.killpg if whole_group else os.kill)(process.pid, SIG.SIGTERM)
            _, errors = process.communicate(timeout=20)
            assert (process.returncode, errors) == (-SIG.SIGTERM, ""), f"step {step}"
        finally:
            end(process)
        wait_until_nothing_is_left(before, port)
