#!/usr/bin/env python3
"""A batch system in one file: submit, query and cancel, each a plain process.

    batch.py --jobs DIRECTORY submit --home HOME --export NAMES
                                         the script is on standard input; prints the job's ID
    batch.py --jobs DIRECTORY query ID   prints the job's state, and the node's address
    batch.py --jobs DIRECTORY cancel ID

There is no server and no queue. `submit` leaves one process per job behind, the step daemon, which
does what Slurm's does as far as a job can tell: it is the parent of the job's process, a
cancellation is SIGCONT and SIGTERM to that one process, then SIGKILL to all that is left of the
job after a while, and the job's standard output and error go to a file (`DIRECTORY/ID/log`).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, Sequence

KILL_WAIT = 10.0  # seconds between SIGTERM and SIGKILL; Slurm's own default is 30
LEFTOVER_WAIT = 3.0  # seconds that a job's other processes have to end after its main process
PR_SET_CHILD_SUBREAPER = 36
LOG, STATE, SCRIPT, DAEMON = "log", "state", "script", "daemon"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three commands; the status is 0, or 1 with one line on standard error."""
    parser = argparse.ArgumentParser(description="a batch system in one file")
    parser.add_argument("--jobs", type=Path, required=True, help="where the jobs' directories are")
    parser.add_argument("--node", default="127.0.0.1", help="the address of this node")
    commands = parser.add_subparsers(dest="command", required=True)
    submit_ = commands.add_parser("submit")
    submit_.add_argument("--home", type=Path, required=True, help="the job's HOME, where it starts")
    submit_.add_argument("--export", default="", help="names of the variables that the job gets")
    for name in ("query", "cancel"):
        commands.add_parser(name).add_argument("id")
    options = parser.parse_args(argv)
    if options.command == "submit":
        environment = {"PATH": os.defpath}
        names = options.export.split(",")
        environment.update((name, os.environ[name]) for name in names if name in os.environ)
        environment["HOME"] = str(options.home)
        print(submit(options.jobs, sys.stdin.read(), environment))
        return 0
    directory = options.jobs / options.id
    if not (directory / STATE).exists():
        print(f"batch: no job {options.id}", file=sys.stderr)
        return 1
    if options.command == "cancel":
        cancel(directory)
    else:
        print(query(directory), options.node)
    return 0


def submit(jobs: Path, script: str, environment: dict[str, str]) -> str:
    """Start the script as a job, in its HOME; returns the job's ID."""
    directory = new_directory(jobs)
    path = directory / SCRIPT
    path.write_text(script)
    path.chmod(0o700)
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        os.setsid()
        if os.fork() == 0:
            step_daemon(directory, environment, write_end)
        os._exit(0)
    os.close(write_end)
    os.wait()
    with open(read_end, "rb") as started:
        if not started.read():
            raise SystemExit(f"batch: the job did not start: {(directory / LOG).read_text()}")
    return directory.name


def new_directory(jobs: Path) -> Path:
    """A directory that nobody else has made: its name is the job's ID."""
    number = 1
    while True:
        with contextlib.suppress(FileExistsError):
            (jobs / str(number)).mkdir(mode=0o700)
            return jobs / str(number)
        number += 1


def query(directory: Path) -> str:
    """RUNNING, or the last state and the exit status and signal: `FAILED 3:0`."""
    state = (directory / STATE).read_text().strip()
    if state == "RUNNING" and not alive(directory):
        return "NODE_FAIL 0:0"
    return state


def cancel(directory: Path) -> None:
    """Tell the step daemon to end the job; returns at once."""
    if alive(directory):
        os.kill(int((directory / DAEMON).read_text().split()[0]), signal.SIGTERM)


def alive(directory: Path) -> bool:
    """Whether the step daemon of the job runs: its number and start time are those written down."""
    words = (directory / DAEMON).read_text().split()
    return start_time(int(words[0])) == words[1]


def start_time(pid: int) -> str | None:
    """When the process started, in clock ticks since boot (proc(5), field 22); None if it is gone.

    A process number can be used again, the pair of number and start time is not.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


# ---- the step daemon ------------------------------------------------------------------------


def step_daemon(directory: Path, environment: dict[str, str], started: int) -> None:
    """Run the job's script to its end. Never returns."""
    status = 1
    try:
        log = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Whatever the job daemonizes becomes our child: nothing of it can escape.
        if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError("PR_SET_CHILD_SUBREAPER was refused")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
        job = start_job(directory, environment)
        (directory / DAEMON).write_text(f"{os.getpid()} {start_time(os.getpid())}\n")
        write_state(directory, "RUNNING")
        os.write(started, b"1")
        os.close(started)
        cancelled = wait_for(job)
        end_leftovers()
        write_state(directory, final_state(job.returncode, cancelled))
        status = 0
    except Exception as error:
        os.write(2, f"batch: {error}\n".encode())
    finally:
        os._exit(status)


def start_job(directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [directory / SCRIPT],
        env=environment,
        cwd=environment["HOME"],
        start_new_session=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),
    )


def wait_for(job: subprocess.Popen[bytes]) -> bool:
    """Wait for the job's main process, cancelling it when told to; returns whether we were told."""
    kill_at = None
    while job.poll() is None:
        left = None if kill_at is None else kill_at - time.monotonic()
        if left is not None and left <= 0:
            kill_descendants()
            job.wait()
            break
        signals = {signal.SIGCHLD, signal.SIGTERM}
        received = (
            signal.sigwaitinfo(signals) if left is None else signal.sigtimedwait(signals, left)
        )
        reap_orphans(job.pid)
        if received and received.si_signo == signal.SIGTERM and kill_at is None:
            say(f"cancelling the job: SIGTERM to {job.pid}")
            kill_at = time.monotonic() + KILL_WAIT
            job.send_signal(signal.SIGCONT)
            job.send_signal(signal.SIGTERM)
    return kill_at is not None


def end_leftovers() -> None:
    """Give the job's other processes a moment to end by themselves, then end them."""
    deadline = time.monotonic() + LEFTOVER_WAIT
    while descendants(os.getpid()) and time.monotonic() < deadline:
        signal.sigtimedwait({signal.SIGCHLD}, 0.1)
        reap_orphans()
    kill_descendants()


def kill_descendants() -> None:
    """SIGKILL to everything below us, until nothing is left (a fork can win the first rounds)."""
    while True:
        left = descendants(os.getpid())
        if not left:
            return
        for pid, name in left:
            say(f"killing what is left of the job: {pid} ({name})")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, 0.1)
        reap_orphans()


def reap_orphans(but: int = 0) -> None:
    """Reap the dead children that the job left to us; `but` is for its own `Popen` to reap."""
    for pid, state in children(os.getpid()):
        if state == "Z" and pid != but:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def descendants(pid: int) -> list[tuple[int, str]]:
    """Numbers and names of the living processes below this one, children before their children."""
    found = []
    for child, state in children(pid):
        if state != "Z":
            with contextlib.suppress(OSError):
                found.append((child, Path(f"/proc/{child}/comm").read_text().strip()))
        found += descendants(child)
    return found


def children(pid: int) -> Iterator[tuple[int, str]]:
    """The number and the state letter of each child (proc(5), /proc/PID/stat)."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    yield int(entry), fields[0]


def final_state(returncode: int, cancelled: bool) -> str:
    """As Slurm's accounting writes it: `STATE EXIT:SIGNAL`."""
    code = f"{max(returncode, 0)}:{max(-returncode, 0)}"
    if cancelled:
        return f"CANCELLED {code}"
    return f"COMPLETED {code}" if returncode == 0 else f"FAILED {code}"


def write_state(directory: Path, state: str) -> None:
    new = directory / f"{STATE}.new"
    new.write_text(f"{state}\n")
    new.replace(directory / STATE)


def say(words: str) -> None:
    os.write(2, f"batch: {words}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
