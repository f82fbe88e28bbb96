"""The hub of the demonstration as the tests use it, with the accounts pw-owner and pw-neighbour.

It runs as a process of its own: whatever becomes of the tests, it takes everything down when its
standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Iterator, Sequence

import websocket

from demo.client import HubClient
from demo.rig import Facts

from helpers import (
    NEIGHBOUR,
    OWNER,
    PROJECT,
    cannot,
    children_of,
    descendants,
    describe,
    end,
    lives,
    run_as,
    wait_until,
)

START_SECONDS = 90
CELL_SECONDS = 60
KINDS = ("sandboxed", "relay", "plain")
"""As a site configures it, with the relay in place of the hand-over, and without the sandbox."""


class Hub:
    """A running hub; its owner is logged in."""

    def __init__(self, process: subprocess.Popen[str], facts: Facts, archive: Path) -> None:
        self.process = process
        self.facts = facts
        self.archive = Path(facts.run) / "bin" / archive.name
        self.run = Path(facts.run)
        self.kernels: list[Kernel] = []
        self.client = HubClient(facts.url)
        self.client.login(facts.owner, facts.password)

    # -- the session ------------------------------------------------------------------------

    def user(self, path: str) -> str:
        """A path of the owner's server, for the client."""
        return f"/user/{OWNER}/{path}"

    def command(self, *words: str) -> list[str]:
        """A job's command line, with words of the test's behind the archive."""
        return ["batchspawner-singleuser", str(self.archive), *words]

    def spawn(self, kind: str) -> None:
        """Start the owner's server, one of `KINDS`, and wait until the hub calls it ready."""
        options: dict[str, Any] = {"sandbox": kind != "plain"}
        if kind == "relay":  # batchspawner lets the options of a start replace parts of its script
            options["cmd"] = shlex.join(self.command("--forward", "relay", "jupyterhub-singleuser"))
        try:
            self.client.spawn(options)
        except Exception as error:
            error.args = (f"{error}\n{self.log()}",)
            raise

    @contextlib.contextmanager
    def running(self, kind: str = "sandboxed") -> Iterator[None]:
        """The owner's server runs in this context; it may be stopped there, too."""
        try:
            self.spawn(kind)
            yield
        finally:
            self.stop()

    def begin_spawn(self, cmd: Sequence[str]) -> None:
        """Start the owner's server and do not wait for it."""
        before = len(self.jobs())
        options = {"sandbox": True, "cmd": shlex.join(cmd)}
        answer = self.client.api("POST", f"/hub/api/users/{OWNER}/server", options)
        assert answer.status == 202, answer.text
        wait_until(lambda: len(self.jobs()) > before, 60, "a new job")

    def stop(self) -> None:
        """Stop the owner's server, if there is one, ready or still starting."""
        for kernel in self.kernels:
            kernel.socket.close()
        self.kernels.clear()
        self.client.stop()
        wait_until(lambda: self.state() not in ("", "RUNNING"), 60, "the end of the job")

    # -- the job ----------------------------------------------------------------------------

    def jobs(self) -> list[Path]:
        return sorted((self.run / "jobs").iterdir(), key=lambda path: int(path.name))

    def log(self) -> str:
        """Standard output and error of the newest job."""
        return (self.jobs()[-1] / "log").read_text()

    def state(self) -> str:
        """The newest job's state as the batch system tells it: RUNNING, FAILED 127:0, …"""
        try:
            return (self.jobs()[-1] / "state").read_text().strip()
        except FileNotFoundError:
            return ""

    def job_pid(self) -> int:
        """The process of the newest job that the batch system started: the server itself."""
        daemon = int((self.jobs()[-1] / "daemon").read_text().split()[0])
        # Whatever the job has left to the daemon leads a session of its own or another's.
        (pid,) = (pid for pid in children_of(daemon) if os.getsid(pid) == pid)
        return pid

    def processes(self) -> list[str]:
        """Every live process of the owner's jobs. The hub's process adopts whatever leaves them."""
        uid = pwd.getpwnam(OWNER).pw_uid
        below = descendants(self.process.pid)
        return [describe(pid) for pid in below if user_of(pid) == uid and lives(pid)]

    def host_port(self) -> int:
        """The port of the node that batchspawner-singleuser chose for the newest job."""
        words = (self.run / "hub" / "hub.log").read_text().rpartition(" started at ")[2]
        return int(words.split()[0].rpartition(":")[2])

    # -- kernels ----------------------------------------------------------------------------

    def start_kernel(self) -> Kernel:
        """A new kernel of the running server; the server's end is its end."""
        self.kernels.append(Kernel(self))
        return self.kernels[-1]

    # -- the neighbour ----------------------------------------------------------------------

    def neighbour_asks(self, *addresses: str, path: str = "/") -> dict[str, dict[str, Any]]:
        """What pw-neighbour gets at each HOST:PORT of the node (see demo/stranger.py)."""
        program = self.run / "bin" / "stranger.py"
        result = run_as(NEIGHBOUR, ["/usr/bin/python3", program, path, *addresses], seconds=60)
        assert result.returncode == 0, result.stderr
        return dict(zip(addresses, json.loads(result.stdout)))


class Kernel:
    """A notebook kernel of the owner's, used over the hub's proxy as a notebook uses it."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        answer = hub.client.api("POST", hub.user("api/kernels"), {"name": "python3"})
        assert answer.status == 201, answer.text
        self.id = answer.json()["id"]
        path = hub.user(f"api/kernels/{self.id}/channels")
        self.socket = websocket.create_connection(
            hub.facts.url.replace("http", "ws", 1) + path,
            cookie=hub.client.cookie_header(path),
            timeout=CELL_SECONDS,
        )

    def cell(self, code: str) -> str:
        """Run a cell; returns what it printed. An exception in it fails the test."""
        request = uuid.uuid4().hex
        self.socket.send(json.dumps(execute_request(request, code)))
        printed = ""
        while True:
            message = json.loads(self.socket.recv())
            if message["parent_header"].get("msg_id") != request:
                continue
            content, kind = message["content"], message["msg_type"]
            if kind == "stream":
                printed += content["text"]
            elif kind == "error":
                raise AssertionError("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return printed


def execute_request(number: str, code: str) -> dict[str, Any]:
    """A message of the Jupyter protocol, version 5.3 ("Messaging in Jupyter")."""
    header = {
        "msg_id": number,
        "msg_type": "execute_request",
        "username": "",
        "session": uuid.uuid4().hex,
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    return {
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": content,
        "channel": "shell",
        "buffers": [],
    }


def user_of(pid: int) -> int | None:
    """Whose process it is, by its status (proc(5)): its directory in /proc can be root's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None  # it has ended
    return int(status.partition("\nUid:\t")[2].split()[0])


def needs_installed(place: Path) -> None:
    """Skip or fail (see `cannot`) unless setup.sh has made it."""
    if not place.with_name(f"{place.name}.complete").exists():
        cannot(f"no {place}; tests/setup.sh (matrix) installs it")


def start_hub(root: Path, archive: Path, *options: str | Path) -> Iterator[Hub]:
    """Start the hub of the demonstration (options: of `demo.rig`); take it down after the yield."""
    words = [sys.executable, "-B", "-m", "demo.rig", "--root", root, "--archive", archive]
    words += ["--name", "test", "--owner", OWNER, "--stranger", NEIGHBOUR]
    words += ["--http-timeout", str(START_SECONDS), *options]
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin and process.stdout
    try:
        line = process.stdout.readline()
        assert line, f"the hub did not start (status {process.wait()})"
        yield Hub(process, Facts(**json.loads(line)), archive)
        process.stdin.close()
        assert process.wait(START_SECONDS) == 0
    finally:
        end(process)
