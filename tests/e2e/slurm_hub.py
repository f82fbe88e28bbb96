"""The cluster's JupyterHub, with SlurmSpawner, and its people's sessions."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Mapping, Sequence

import websocket
from e2e.examples import adapted
from e2e.hub import CELL_SECONDS, Kernel
from e2e.slurm import Cluster, Host, Job

from demo.client import Answer, HubClient, HubError

from conftest import TEST_ROOT
from helpers import NEIGHBOUR, OWNER, PROJECT, SYSTEM_PATH, children_of, wait_until

PUBLIC_PORT = 8000
START_SECONDS = 90
STOP_SECONDS = 60
PROGRAMS = ("demo/notes_app.py",)

KINDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"plain": True},
    "native": {"environment": {"PORTWRAP_FORWARD": "native"}},
    "relay": {"environment": {"PORTWRAP_FORWARD": "relay"}},
}
"""Without the sandbox, and with it in its two ways to lead the host port inside."""


class Client(HubClient):
    """A browser on the hub's host."""

    def __init__(self, host: Host, url: str, seconds: float = 120) -> None:
        super().__init__(url, seconds)
        self.host = host

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        with self.host.entered():
            return super()._open(method, path, body, headers)

    def websocket(self, path: str) -> websocket.WebSocket:
        """A WebSocket of this user's."""
        with self.host.entered():
            return websocket.create_connection(
                self.url.replace("http", "ws", 1) + path,
                cookie=self.cookie_header(path),
                timeout=CELL_SECONDS,
            )


class SlurmHub:
    """A JupyterHub with its proxy on the cluster's first host; its people are logged in."""

    def __init__(self, cluster: Cluster, archive: Path) -> None:
        self.cluster = cluster
        self.run = cluster.run
        self.process: subprocess.Popen[Any] | None = None
        self.password = secrets.token_urlsafe(9)
        self.url = f"http://127.0.0.1:{PUBLIC_PORT}"
        self.archive = self.run / "bin" / archive.name
        self.numbers = itertools.count(1)
        self.sessions: list[Session] = []
        self.furnish(archive)
        self.start()
        self.clients = {name: self.log_in(name) for name in (OWNER, NEIGHBOUR)}

    # -- files ------------------------------------------------------------------------------

    def furnish(self, archive: Path) -> None:
        for source in [PROJECT / name for name in PROGRAMS] + [archive]:
            copy = self.run / "bin" / source.name
            copy.write_bytes(source.read_bytes())
            copy.chmod(0o755)
        (self.run / "hub").mkdir(mode=0o700)
        config = self.run / "etc" / "jupyter"
        config.mkdir(parents=True)
        notes = ["/usr/bin/python3", str(self.run / "bin" / "notes_app.py"), "{port}"]
        for account in (OWNER, NEIGHBOUR):
            path = self.cluster.home(account) / "notes.txt"
            path.write_text(f"the secret of {account} is {secrets.token_hex(8)}\n")
            path.chmod(0o600)
            shutil.chown(path, account, path.parent.group())
        servers = {"notes": {"command": [*notes, "notes.txt"], "timeout": 60}}
        # Where JupyterLab is installed, too, nobody here looks at it.
        extensions = dict.fromkeys(("jupyterlab", "jupyter_lsp", "notebook_shim"), False)
        text = json.dumps(
            {"ServerProxy": {"servers": servers}, "ServerApp": {"jpserver_extensions": extensions}}
        )
        (config / "jupyter_server_config.json").write_text(text)
        settings = {
            "url": self.url,
            "password": self.password,
            "users": [OWNER, NEIGHBOUR],
            "example": str(self.adapt_example()),
            "server_config": str(config),
        }
        (self.run / "hub" / "settings.json").write_text(json.dumps(settings))

    def adapt_example(self) -> Path:
        """The site's own words in examples/slurm_config.py."""
        words = {
            "ARCHIVE": str(self.archive),
            "PROGRAMS": f"{TEST_ROOT}/hub-venv/bin",
            "HUB": self.cluster.hub.name,
            "PARTITION": "all",
        }
        return adapted("slurm_config.py", words, self.run / "hub")

    def variables(self) -> dict[str, str]:
        """What the batch system's programs must be told."""
        return {}

    def secret(self, account: str = OWNER) -> str:
        """What stands in the notes that the account's application shows."""
        return (self.cluster.home(account) / "notes.txt").read_text().splitlines()[0]

    # -- the hub's own process --------------------------------------------------------------

    def start(self) -> None:
        """Start the hub, or start it again."""
        environment = {
            "PATH": f"{TEST_ROOT}/hub-venv/bin:{TEST_ROOT}/chp/bin:{SYSTEM_PATH}",
            "HOME": str(self.run / "hub"),
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "SLURM_HUB_SETTINGS": str(self.run / "hub" / "settings.json"),
            **self.variables(),
        }
        config = Path(__file__).with_name("slurm_hub_config.py")
        self.process = self.cluster.hub.daemon(
            f"{TEST_ROOT}/hub-venv/bin/jupyterhub",
            "--config",
            config,
            env=environment,
            folder=self.run / "hub",
        )
        browser = Client(self.cluster.hub, self.url, 5)

        def is_up() -> bool:
            assert self.process and self.process.poll() is None, self.log()[-4000:]
            try:
                return browser.get("/hub/health").status == 200
            except OSError:
                return False

        wait_until(is_up, START_SECONDS, f"the hub: {self.log()[-4000:]}")

    def stop(self) -> None:
        """End the hub and its proxy; the servers go on."""
        process = self.process
        assert process is not None
        (hub,) = children_of(process.pid)  # nsenter's child, in the host's PID namespace
        os.kill(hub, signal.SIGTERM)
        try:
            wait_until(lambda: process.poll() is not None, STOP_SECONDS, "the end of the hub")
        except AssertionError as error:
            error.args = (f"{error}: {self.log()[-4000:]}",)
            raise

    def log(self) -> str:
        """What the hub has said, since its first start."""
        return (self.run / "log" / "hub-jupyterhub.out").read_text(errors="replace")

    def log_in(self, account: str) -> Client:
        client = Client(self.cluster.hub, self.url)
        client.login(account, self.password)
        return client

    def session(
        self, kind: str = "native", account: str = OWNER, srun: bool = True, **options: Any
    ) -> Session:
        """A new session of one of `KINDS`, with more options of the start; not yet started."""
        words = {**KINDS[kind], "srun": "srun" if srun else "", **options}
        session = Session(self, f"s{next(self.numbers)}", kind, account, words)
        self.sessions.append(session)
        return session

    def stop_sessions(self) -> None:
        """Stop whatever a test has left running."""
        for session in self.sessions:
            session.close()
        for session in self.sessions:
            session.wait_forgotten()
        self.sessions.clear()


def start_all(sessions: list[Session]) -> list[Session]:
    """Start them, all at the same time, and wait until all are ready."""
    for session in sessions:
        session.begin()
    for session in sessions:
        session.wait_ready()
    return sessions


def stop_all(sessions: Sequence[Session]) -> list[str]:
    """Have the hub stop them, all at the same time; returns the states of their jobs."""
    for session in sessions:
        session.ask_to_stop()
    return [session.wait_forgotten().wait_over().state for session in sessions]


class Session:
    """A named server of a person's: started over the hub, seen as a job of Slurm."""

    def __init__(
        self, hub: SlurmHub, name: str, kind: str, account: str, options: dict[str, Any]
    ) -> None:
        self.hub = hub
        self.name = name
        self.kind = kind
        self.account = account
        self.options = {**options, "options": f"--comment={name}"}
        self.client = hub.clients[account]
        self.api = f"/hub/api/users/{account}/servers/{name}"
        self.kernels: list[SlurmKernel] = []
        self.starts = 0
        self.number = 0
        """Of the job of its newest start, as soon as that is known."""

    @property
    def sandboxed(self) -> bool:
        return self.kind != "plain"

    # -- its life ---------------------------------------------------------------------------

    def begin(self) -> Session:
        """Ask the hub to start it; do not wait."""
        answer = self.client.api("POST", self.api, self.options)
        assert answer.status == 202, answer.text
        self.starts += 1
        self.number = 0
        return self

    def wait_ready(self) -> Session:
        """Wait until the hub calls it ready."""
        try:
            for event in self.events():
                if event.get("failed"):
                    raise HubError(str(event.get("message")))
                if event.get("ready"):
                    # The first page exchanges the hub's cookie for one of the server's own.
                    assert self.get("files/").status < 500
                    return self
            raise HubError("the hub stopped reporting before the server was ready")
        except HubError as error:
            error.args = (f"{error}\n{self.log()}\n{self.hub.log()[-4000:]}",)
            raise

    def events(self) -> Any:
        with self.client._open("GET", f"{self.api}/progress") as stream:
            for line in stream:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

    def start(self) -> Session:
        return self.begin().wait_ready()

    def ask_to_stop(self) -> None:
        """Have the hub stop it; do not wait."""
        self.drop_kernels()
        answer = self.client.api("DELETE", self.api, {"remove": False})
        assert answer.status in (202, 204, 400, 404), answer.text

    def is_known(self) -> bool:
        """Whether the hub thinks that it starts, runs or stops."""
        user = self.client.get(f"/hub/api/users/{self.account}").json()
        server = user["servers"].get(self.name)
        return bool(server and (server["ready"] or server["pending"]))

    def wait_over(self, seconds: float = 60) -> Job:
        """Wait for the end of the job; returns what Slurm knows of it then."""
        wait_until(lambda: self.job().is_over, seconds, f"the end of job {self.name}")
        return self.job()

    def wait_forgotten(self) -> Session:
        """Wait until the hub knows that it has ended."""
        wait_until(lambda: not self.is_known(), 60, f"the hub's end of {self.name}")
        return self

    def stop(self) -> Job:
        """Have the hub stop it, and wait for the end of the job."""
        self.ask_to_stop()
        self.wait_forgotten()
        return self.wait_over()

    def close(self) -> None:
        """Have the hub stop it if it runs."""
        self.drop_kernels()
        if self.is_known():
            self.ask_to_stop()

    def drop_kernels(self) -> None:
        for kernel in self.kernels:
            kernel.socket.close()
        self.kernels.clear()

    # -- its job ----------------------------------------------------------------------------

    def job(self) -> Job:
        """The job of its newest start as Slurm knows it now."""
        if not self.number:
            found = [job.number for job in self.hub.cluster.jobs() if job.comment == self.name]
            assert len(found) == self.starts, f"{found} of {self.name}: {self.hub.log()[-4000:]}"
            self.number = found[-1]
        return self.hub.cluster.job(self.number)

    def log(self) -> str:
        """What the job has written."""
        path = self.hub.cluster.home(self.account)
        try:
            number = self.job().number
            return (path / f"jupyterhub_slurmspawner_{number}.log").read_text(errors="replace")
        except (OSError, AssertionError) as error:
            return f"(no log: {error})"

    def processes(self) -> dict[int, list[str]]:
        """The processes of its job on the node, with their command lines."""
        mark = f"SLURM_JOB_ID={self.job().number}".encode()
        found = {}
        for pid in self.job().node.processes(self.account):
            try:
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    found[pid] = [word.decode() for word in words]
            except OSError:
                continue  # it has ended
        return found

    def server_pid(self) -> int:
        """The process of the server itself."""
        (pid,) = (
            pid
            for pid, words in self.processes().items()
            if "python" in words[0] and any("singleuser" in word for word in words[1:2])
        )
        return pid

    def host_port(self) -> int:
        """The port of the node that batchspawner-singleuser has told the hub."""
        found = re.findall(rf"job {self.job().number} started at \S+:(\d+)", self.hub.log())
        return int(found[-1])

    # -- what its owner does ----------------------------------------------------------------

    def path(self, path: str) -> str:
        return f"/user/{self.account}/{self.name}/{path}"

    def get(self, path: str) -> Answer:
        return self.client.get(self.path(path))

    def start_kernel(self) -> SlurmKernel:
        self.kernels.append(SlurmKernel(self))
        return self.kernels[-1]


class SlurmKernel(Kernel):
    """A notebook kernel of a session's, used over the hub's proxy as a notebook uses it."""

    def __init__(self, session: Session) -> None:
        answer = session.client.api("POST", session.path("api/kernels"), {"name": "python3"})
        assert answer.status == 201, answer.text
        self.id = answer.json()["id"]
        self.session = session
        self.connect()

    def connect(self) -> None:
        path = self.session.path(f"api/kernels/{self.id}/channels")
        self.socket = self.session.client.websocket(path)

    def reconnect(self) -> None:
        """Use the same kernel over a new WebSocket, as a page that is loaded again."""
        self.socket.close()
        self.connect()
