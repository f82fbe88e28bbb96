"""What the tests share: other accounts, waiting for conditions, free ports."""

from __future__ import annotations

import grp
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Mapping, NoReturn, Sequence, TypeVar

import pytest

PROJECT = Path(__file__).resolve().parent.parent
OWNER = "pw-owner"
NEIGHBOUR = "pw-neighbour"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

PREFIX = f"portwrap-test-{os.getpid()}-"
"""How the names of these tests' files in /tmp begin; other runs of them have another one."""

# Nothing may be skipped: what this machine cannot test is then a failure.
MUST_WORK = os.environ.get("PORTWRAP_MUST_WORK", "") not in ("", "0")

T = TypeVar("T")


def identity(account: str) -> dict[str, Any]:
    """Arguments of `subprocess` that make the child the given account; none for one's own."""
    entry = pwd.getpwnam(account)
    if entry.pw_uid == os.geteuid():
        return {}
    groups = [group.gr_gid for group in grp.getgrall() if account in group.gr_mem]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


CHOSEN = ("PORTWRAP_FORWARD", "PORTWRAP_OUTWARD")
"""Settings that fixtures make for all that a test starts."""


def environment(account: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The small environment a login of the account starts with, with the way in that the tests
    are to take, and `extra` on top."""
    entry = pwd.getpwnam(account)
    return {
        "HOME": entry.pw_dir,
        "USER": account,
        "LOGNAME": account,
        "PATH": SYSTEM_PATH,
        "LC_ALL": "C.UTF-8",
        "PORTWRAP_QUIET": "1",  # no start-up line, but for the tests of it
        **{name: os.environ[name] for name in CHOSEN if name in os.environ},
        **(extra or {}),
    }


def as_user(account: str, argv: Sequence[str | Path], **kw: Any) -> subprocess.Popen[str]:
    """Start `argv` as the account, in a session of its own; output and input are text pipes.

    `env` replaces the account's environment, `extra_env` adds to it. Everything else is
    `subprocess.Popen`'s. The caller ends the process (see `end`).
    """
    extra_env = kw.pop("extra_env", None)
    kw.setdefault("env", environment(account, extra_env))
    kw.setdefault("cwd", "/")
    kw.setdefault("stdin", subprocess.DEVNULL)
    kw.setdefault("stdout", subprocess.PIPE)
    kw.setdefault("stderr", subprocess.PIPE)
    kw.setdefault("start_new_session", True)
    kw.setdefault("text", True)
    return subprocess.Popen([str(word) for word in argv], **identity(account), **kw)


def run_as(
    account: str, argv: Sequence[str | Path], *, seconds: float = 30, **kw: Any
) -> subprocess.CompletedProcess[str]:
    """Run `argv` as the account and return its status and output; the limit is in seconds."""
    process = as_user(account, argv, **kw)
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    finally:
        end(process)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_program(
    module: str,
    argv: Sequence[str | Path],
    extra_env: Mapping[str, str] | None = None,
    redirections: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run one of our programs in a process of its own, which it may replace by another one. The
    shell that starts it sets up its descriptors by these redirections."""
    start = [sys.executable, "-m", module, *map(str, argv)]
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *start],
        env={"PATH": os.defpath, "PYTHONPATH": str(PROJECT), **(extra_env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )


def end(process: subprocess.Popen[Any]) -> None:
    """Kill the process if it still lives, reap it and close our ends of its pipes."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


PAUSE = 0.01
MOST_PATIENCE = 10
"""How many times its limit a wait takes at most, on a machine that is busy with others."""


def wait_until(condition: Callable[[], T], seconds: float = 10, what: str = "") -> T:
    """Ask until the condition is true and return its value; fail after the limit in seconds.

    What counts is the time in which we sleep or run, and where less than one processor is idle,
    that share of it. On a busy machine we wait for the processor as well, and whoever is to keep
    the limit waits for it, and for the kernel's locks, even when we do not.
    """
    begun, idle = time.monotonic(), idle_time()
    counted = 0.0
    while True:
        begin = time.thread_time()
        value = condition()
        if value:
            return value
        past = time.monotonic() - begun
        if past > MOST_PATIENCE * seconds:
            break
        if counted > seconds and counted * (idle_time() - idle) / past > seconds:
            break
        time.sleep(PAUSE)
        counted += PAUSE + time.thread_time() - begin
    raise AssertionError(f"not within {seconds} s: {what or condition}")


def idle_time() -> float:
    """Seconds that the processors have been idle so far, all together (proc_uptime(5))."""
    return float(Path("/proc/uptime").read_text().split()[1])


PORTS = range(10240, 32000)
"""Below those that the kernel gives to clients by itself, which may have one at any moment."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody held a moment ago."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = random.choice(PORTS)
        with socket.socket(family) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        return port


def find_tool(name: str) -> str | None:
    """Path of a program of the system, or of the virtual environment that runs the tests."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}:{SYSTEM_PATH}")


def cannot(reason: str) -> NoReturn:
    """Skip the test on a newcomer's machine; fail it where everything must work."""
    if MUST_WORK:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def needs(*tools: str) -> None:
    """Skip or fail (see `cannot`) unless every one of these programs is installed."""
    missing = [name for name in tools if find_tool(name) is None]
    if missing:
        cannot(f"not installed: {' '.join(missing)}; tests/setup.sh says how")


def state_of(pid: int) -> str:
    """The state letter of a process, as in proc(5); "" if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def lives(pid: int) -> bool:
    """Whether a thread of this process is left: the first one may have ended before the others, and
    until the last one has, the files of all are open."""
    if state_of(pid) not in ("Z", "X", ""):
        return True
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """The children of a process, zombies among them."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        lists = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
    except OSError:
        return []
    return [int(word) for text in lists for word in text.split()]


def descendants(pid: int) -> set[int]:
    """All that a process has started, and what they have started."""
    # Twice: one whose parent ends meanwhile becomes the child of a process that was asked already.
    return _descendants(pid) | _descendants(pid)


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for child in children_of(pid):
        found |= {child, *_descendants(child)}
    return found


def describe(pid: int) -> str:
    """A process in one line: its number, its name and its command line."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return f"process {pid} (gone)"
    return f"process {pid} ({name}): {words.decode(errors='replace')[:300]}"
