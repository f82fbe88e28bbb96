"""System calls of a start that fail, one at a time (strace(1), fault injection): the session starts
all the same, or there is a refusal in two lines. Never a traceback, never a hang, never a command
outside, nothing left."""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple

import pytest
from launches import at_url, ours_alive, wait_until_nothing_is_left

from fuzzing import LONGER, TIMES
from helpers import OWNER, as_user, end, needs, run_as, state_of, wait_until
from sessions import MARK, bearers_of, serves, unused_port

pytestmark = [pytest.mark.e2e, pytest.mark.namespaces, pytest.mark.fuzz, pytest.mark.slow]

ERRORS = ("EIO", "EPERM", "EINTR")
HARMLESS = {"brk", "exit_group", "exit", "rt_sigreturn"}
"""Calls that the kernel answers without an error: the C library may do anything at one."""
ALL_TIMES = 20
"""With PORTWRAP_TEST_FUZZ at this or more each call fails, with each error."""
COMMAND = ["readlink", "/proc/self/ns/net"]


class Call(NamedTuple):
    """A system call of a process: the name, and which one of this name it is."""

    name: str
    number: int


class Fault(NamedTuple):
    """A call that fails."""

    call: Call
    error: str

    @property
    def option(self) -> str:
        return f"inject={self.call.name}:error={self.error}:when={self.call.number}"


def calls_in(log: Path, begin: str, last: str) -> list[Call]:
    """The calls in what strace has written of one process, from the first line with `begin` up to
    the first one behind that with `last`."""
    counts: Counter[str] = Counter()
    calls = []
    begun = False
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\w+)\(", line)
        if match is None:
            continue  # a signal, or the end
        counts[match[1]] += 1
        begun = begun or begin in line
        if begun and match[1] not in HARMLESS:
            calls.append(Call(match[1], counts[match[1]]))
        if begun and last in line:
            return calls
    raise AssertionError(f"no {begin!r} with a {last!r} behind it in {log}")


def chosen(calls: Iterable[Call]) -> list[Fault]:
    """Faults to try: by default the first and the last call of each name, with one error each."""
    faults = [Fault(call, error) for call in calls for error in ERRORS]
    if TIMES >= ALL_TIMES:
        return faults
    generator = random.Random(1)
    extremes: dict[str, list[Call]] = {}
    for call in calls:
        extremes.setdefault(call.name, [call, call])[1] = call
    few = [call for pair in extremes.values() for call in dict.fromkeys(pair)]
    return [Fault(call, generator.choice(ERRORS)) for call in few]


def what_is_wrong(result: subprocess.CompletedProcess[str], late: bool = False) -> str:
    """What must not be, in a run of COMMAND with a fault; "" if all is well. With `late` the keeper
    may also have failed after it was ready: it reports that itself, and ends what there is."""
    lines = result.stderr.splitlines()
    inside = result.stdout.startswith("net:[") and result.stdout.strip() != os.readlink(COMMAND[1])
    if result.stdout and not inside:
        return "the command ran outside"
    if late and lines and lines[0].endswith("; ending the command (SIGTERM)"):
        reported = lines.pop(0).startswith("batchspawner-portwrap: ")
        if reported and not lines and result.returncode == -signal.SIGTERM:
            return ""
    said = [line for line in lines if line.startswith("batchspawner-portwrap: ")]
    if result.returncode == 0 and inside and lines == said and len(lines) <= 1:
        return ""
    told = lines[:1] == said and len(lines) == 2 and lines[1].startswith("  ")
    if result.returncode in (125, 126, 127) and result.stdout == "" and told:
        return ""
    return "neither a session nor a refusal"


def sweep(faults: Iterable[Fault], run: Callable[[Fault], str]) -> None:
    """Try each fault; fail with a list of those that something is wrong with."""
    with ThreadPoolExecutor(3) as pool:
        tried = list(zip(faults, pool.map(run, faults)))
    assert len(tried) > 10
    wrong = [f"{fault.option}: {text}" for fault, text in tried if text]
    assert not wrong, f"{len(wrong)} of {len(tried)} faults:\n" + "\n".join(wrong)


def told(problem: str, result: subprocess.CompletedProcess[str]) -> str:
    last = " | ".join(result.stderr.splitlines()[-3:])
    return f"{problem}: status {result.returncode}, {result.stdout!r}, {last}" if problem else ""


@pytest.fixture
def log(world_dir: Path) -> Path:
    needs("strace")
    world_dir.chmod(0o777)
    return world_dir / "log"


# ---- the launching process -------------------------------------------------------------------


def traced(pyz: Path, options: list[str]) -> subprocess.CompletedProcess[str]:
    """Start a session with strace at the launching process alone."""
    port = unused_port()
    words = ["env", "--default-signal=INT", "strace", "-qq", *options, str(pyz), "-q", *COMMAND]
    return run_as(OWNER, words, env=at_url(port), seconds=50)


@pytest.mark.timeout(120 * LONGER)
def test_a_call_of_the_launching_process_fails(pyz: Path, log: Path) -> None:
    before = ours_alive()
    result = traced(pyz, ["-o", str(log)])
    assert what_is_wrong(result) == "" and result.returncode == 0, result
    # what it does first: from there on an error is ours to report
    calls = calls_in(log, "rt_sigaction(SIGINT, {sa_handler=SIG_DFL", f'"{COMMAND[0]}", "/proc')

    def run(fault: Fault) -> str:
        trace = log.with_name(secrets.token_hex(8))
        result = traced(pyz, ["-o", str(trace), "-e", fault.option])
        return "" if is_the_commands(trace) else told(what_is_wrong(result), result)

    sweep(chosen(calls), run)
    wait_until_nothing_is_left(before, unused_port())


def is_the_commands(trace: Path) -> bool:
    """Whether the call that failed came behind the exec: two starts do not make exactly as many
    calls for memory."""
    before, injected, _ = trace.read_text(errors="replace").partition("(INJECTED)")
    return bool(injected and re.search(rf'^execve\("[^"]*/{COMMAND[0]}", .* = 0$', before, re.M))


# ---- the keeper ------------------------------------------------------------------------------

# It stops where it has been forked, and waits there for strace. From byte code: what reads sources,
# the other tests have.
KEEPER = """
import sys
from zipimport import zipimporter

begin = {{"__name__": "begin"}}
exec(zipimporter({archive!r}).get_code("__main__"), begin)
assert begin["use_byte_code"]({archive!r})
from portwrap.launch import keeper_process

keeper_process.KEEPER = (
    "import os, signal\\n"
    "def fork(original=os.fork):\\n"
    "    os.fork = original\\n"
    "    return original() or os.kill(os.getpid(), signal.SIGSTOP) or 0\\n"
    "os.fork = fork\\n"
) + keeper_process.KEEPER
from batchspawner_portwrap import main

sys.exit(main())
"""


def traced_keeper(
    python: str, archive: Path, forward: str, options: list[str]
) -> subprocess.CompletedProcess[str]:
    """Start a session with strace at the keeper alone, from its first call."""
    mark = secrets.token_hex(8)
    program = KEEPER.format(archive=str(archive))
    wait = " ".join(COMMAND) + "; read line; :"
    words = [python, "-c", program, "-q", "--forward", forward, "sh", "-c", wait]
    environ = at_url(unused_port(), **{MARK: mark})
    process = as_user(OWNER, words, env=environ, stdin=subprocess.PIPE)
    try:
        stopped = wait_until(lambda: [pid for pid in bearers_of(mark) if state_of(pid) == "T"])
        with tampered(stopped[0], options):
            os.kill(stopped[0], signal.SIGCONT)
            # the command ends when the keeper has come to serve it
            wait_until(lambda: serves(stopped[0]) or process.poll() is not None, 30)
            stdout, stderr = process.communicate(timeout=50)
            return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)
    finally:
        end(process)


@contextmanager
def tampered(pid: int, options: list[str]) -> Iterator[None]:
    """Within it strace is at this process; it ends when that does."""
    with subprocess.Popen(["strace", "-qq", *options, "-p", str(pid)]) as strace:
        try:
            status, attached = Path(f"/proc/{pid}/status"), f"TracerPid:\t{strace.pid}\n"
            wait_until(lambda: attached in status.read_text(), what="strace at work")
            yield
            strace.wait(20)
        finally:
            strace.kill()


def traced_interpreter(
    python: str, pyz: Path, folder: Path, options: list[str]
) -> subprocess.CompletedProcess[str]:
    """Start a session with strace at the keeper's interpreter, up to where it forks the keeper."""
    wrapper = folder / f"python-{secrets.token_hex(4)}"
    trace = " ".join(["strace", "-D", "-qq", *options])
    wrapper.write_text(f'#!/bin/sh\nexec {trace} {python} "$@"\n')
    wrapper.chmod(0o755)
    program = INTERPRETER.format(path=f"{pyz}/site-packages", wrapper=str(wrapper))
    words = [python, "-c", program, "-q", "--forward", "relay", *COMMAND]
    return run_as(OWNER, words, env=at_url(unused_port()), seconds=50)


INTERPRETER = """
import sys
sys.path.insert(0, {path!r})
from portwrap.launch import keeper_process

keeper_process.INTERPRETER = {wrapper!r}
from batchspawner_portwrap import main

sys.exit(main())
"""


@pytest.mark.timeout(120 * LONGER)
def test_a_call_of_the_interpreter_that_becomes_the_keeper_fails(
    python: str, pyz: Path, log: Path
) -> None:
    before = ours_alive()
    result = traced_interpreter(python, pyz, log.parent, ["-o", str(log)])
    assert what_is_wrong(result) == "" and result.returncode == 0, result
    # from where it looks for the first of our modules
    calls = calls_in(log, '"/proc/self/fd/', "exit_group(")

    def run(fault: Fault) -> str:
        options = ["-o", "/dev/null", "-e", fault.option]
        result = traced_interpreter(python, pyz, log.parent, options)
        return told(what_is_wrong(result), result)

    sweep(chosen(calls), run)
    wait_until_nothing_is_left(before, unused_port())


@pytest.mark.timeout(120 * LONGER)
@pytest.mark.parametrize("forward", ["auto", "relay"])
def test_a_call_of_the_keeper_fails(python: str, fast_pyz: Path, log: Path, forward: str) -> None:
    before = ours_alive()
    result = traced_keeper(python, fast_pyz, forward, ["-o", str(log)])
    assert what_is_wrong(result) == "" and result.returncode == 0, result
    calls = calls_in(log, "(", "exit_group(")

    def run(fault: Fault) -> str:
        options = ["-o", "/dev/null", "-e", fault.option]
        result = traced_keeper(python, fast_pyz, forward, options)
        return told(what_is_wrong(result, late=True), result)

    sweep(chosen(calls), run)
    wait_until_nothing_is_left(before, unused_port())
