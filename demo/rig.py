"""A hub, a node and two people on this machine, and nothing of them left afterwards.

`Rig` is the whole set-up as a context manager. As a program (`python3 -m demo.rig --help`) it
prints what it set up as one line of JSON, and takes it down at the end of its standard input or
at SIGTERM, whichever comes first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Callable, Iterator, Sequence

from demo import batch

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
SHIPPED = ("batch.py", "notes_app.py", "stranger.py")
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
GECOS = "batchspawner-portwrap demonstration"
PR_SET_CHILD_SUBREAPER = 36
HUB_START_SECONDS = 60.0
HUB_STOP_SECONDS = 30.0
PORT_TRIES = 20


class RigError(Exception):
    """The set-up failed for a reason that the user can do something about."""


@dataclass(frozen=True)
class Facts:
    """What is where, once the hub answers."""

    url: str  # the hub's public side
    hub_url: str  # the hub's own side, for the sessions
    node: str  # the address of the node that runs the sessions
    owner: str  # the account that may log in
    stranger: str  # another account on the node; empty where we cannot be one (not root)
    password: str
    run: str  # the directory with everything below: bin, etc, home, hub, jobs
    root: str  # where demo/install.sh put the hub


@dataclass(frozen=True)
class Plan:
    """What is asked for. `name` keeps two set-ups at once apart (interface, lock)."""

    root: Path
    archive: Path
    name: str = "demo"
    owner: str = "portwrap-alice"
    stranger: str = "portwrap-bob"
    http_timeout: int = 30  # seconds that the hub waits for a started session to answer
    config: Path = HERE / "jupyterhub_config.py"


class Rig:
    """Interface, accounts, files and hub; leaving the context takes all of it down again."""

    facts: Facts

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda words: None) -> None:
        self.plan = plan
        self.say = say
        self.root_account = os.geteuid() == 0
        self.hub: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Rig:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        enter = self._stack.enter_context
        # Only one of a name: it owns the interface and the accounts.
        if not claim(self._stack, f"{self.plan.name}-{os.geteuid()}"):
            raise RigError("another demonstration is running on this machine")
        become_subreaper()
        node = enter(own_address(self.plan.name)) if self.root_account else machine_address()
        run = enter(run_directory(self.root_account))
        owner, stranger = own_account(), ""
        if self.root_account:
            owner = enter(account(self.plan.owner, run))
            stranger = enter(account(self.plan.stranger, run))
        self._stack.callback(end_all_children)
        self.facts = Facts(
            url=f"http://127.0.0.1:{own_port(self._stack, '127.0.0.1', 8000)}",
            hub_url=f"http://{node}:{own_port(self._stack, node, 8081)}",
            node=node,
            owner=owner,
            stranger=stranger,
            password=secrets.token_urlsafe(9),
            run=str(run),
            root=str(self.plan.root),
        )
        self._furnish(run)
        self._start_hub()

    # -- files ------------------------------------------------------------------------------

    def _furnish(self, run: Path) -> None:
        for name, mode in (("bin", 0o755), ("jobs", 0o1777), ("home", 0o755), ("hub", 0o700)):
            (run / name).mkdir()
            (run / name).chmod(mode)
        # The project may lie where other accounts cannot read it.
        for source in [HERE / name for name in SHIPPED] + [self.plan.archive]:
            copy = run / "bin" / source.name
            shutil.copyfile(source, copy)
            copy.chmod(0o755)
        self._furnish_home(run / "home" / self.facts.owner)
        self._write_server_config(run / "etc" / "jupyter")
        self._write_settings(run / "hub" / "settings.json")

    def _furnish_home(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        notes = home / "notes.txt"
        notes.write_text(f"my secret is {secrets.token_hex(8)}\n")
        notes.chmod(0o600)
        if self.root_account:
            entry = pwd.getpwnam(self.facts.owner)
            for path in (home, notes):
                os.chown(path, entry.pw_uid, entry.pw_gid)

    def _write_server_config(self, directory: Path) -> None:
        command = ["/usr/bin/python3", f"{self.facts.run}/bin/notes_app.py", "{port}"]
        notes = f"{self.facts.run}/home/{self.facts.owner}/notes.txt"
        server = {
            "command": [*command, notes],
            "launcher_entry": {"title": "My notes"},
            "timeout": 60,  # seconds until it answers: by default five
        }
        directory.mkdir(parents=True)
        config = {"ServerProxy": {"servers": {"notes": server}}}
        (directory / "jupyter_server_config.json").write_text(json.dumps(config, indent=2))

    def _write_settings(self, path: Path) -> None:
        has_lab = (self.plan.root / "hub-venv" / "bin" / "jupyter-lab").exists()
        settings = {
            **asdict(self.facts),
            "users": [self.facts.owner],
            "proxy_api_url": f"http://127.0.0.1:{own_port(self._stack, '127.0.0.1')}",
            "archive": f"{self.facts.run}/bin/{self.plan.archive.name}",
            "default_url": "/lab" if has_lab else "",
            "http_timeout": self.plan.http_timeout,
        }
        path.write_text(json.dumps(settings, indent=2))

    # -- the hub ----------------------------------------------------------------------------

    def _start_hub(self) -> None:
        run, root = Path(self.facts.run), self.plan.root
        # Nothing of the caller's environment: the sessions are made of the hub's.
        environment = {
            "PATH": f"{root}/hub-venv/bin:{root}/chp/bin:{SYSTEM_PATH}",
            "HOME": f"{run}/hub",
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(PROJECT),
            "PORTWRAP_DEMO_SETTINGS": f"{run}/hub/settings.json",
        }
        with open(run / "hub" / "hub.log", "wb") as log:
            self.hub = subprocess.Popen(
                [f"{root}/hub-venv/bin/jupyterhub", "--config", str(self.plan.config)],
                cwd=run / "hub",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours: the hub is taken down in order
            )
        self._stack.callback(self._stop_hub)
        with interruptible():
            self._wait_for_hub()

    def _wait_for_hub(self) -> None:
        assert self.hub is not None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + HUB_START_SECONDS
        while True:
            if self.hub.poll() is not None:
                raise RigError(f"the hub ended at its start\n{tail(self.hub_log)}")
            try:
                with opener.open(f"{self.facts.url}/hub/health", timeout=5):
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise RigError(f"the hub does not answer\n{tail(self.hub_log)}")
            time.sleep(0.1)

    def _stop_hub(self) -> None:
        """The hub stops the sessions and the proxy itself when it is told to end."""
        assert self.hub is not None
        self.hub.terminate()
        try:
            self.hub.wait(HUB_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.hub.kill()
            self.hub.wait()

    # -- for those who use it ---------------------------------------------------------------

    @property
    def hub_log(self) -> Path:
        return Path(self.facts.run) / "hub" / "hub.log"

    def last_job_log(self) -> Path | None:
        """The newest job's standard output and error."""
        jobs = (Path(self.facts.run) / "jobs").iterdir()
        newest = max(jobs, key=lambda job: int(job.name), default=None)
        return None if newest is None else newest / batch.LOG

    def still_up(self) -> bool:
        """Whether the hub runs; reaps what the sessions left to us, too."""
        assert self.hub is not None
        batch.reap_orphans(but=self.hub.pid)
        return self.hub.poll() is None


# ---- the parts, each with its own way back ---------------------------------------------------


def claim(stack: contextlib.ExitStack, what: str) -> bool:
    """Whether this is ours alone among all set-ups of this machine, from now until the stack ends.

    An abstract socket (unix(7)) is there as long as its process, and leaves no file.
    """
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0batchspawner-portwrap-{what}")
    except OSError:
        holder.close()
        return False
    stack.enter_context(holder)
    return True


def become_subreaper() -> None:
    """Every process that is started from here on stays below us, daemons too (prctl(2))."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise RigError("the kernel refused PR_SET_CHILD_SUBREAPER")


def end_all_children() -> None:
    """End whatever is left below us: with SIGTERM, after a few seconds with SIGKILL."""
    for pid, _ in batch.descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while batch.descendants(os.getpid()) and time.monotonic() < deadline:
        batch.reap_orphans()
        time.sleep(0.05)
    while left := batch.descendants(os.getpid()):
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        batch.reap_orphans()
    batch.reap_orphans()


@contextlib.contextmanager
def own_address(name: str) -> Iterator[str]:
    """An interface of its own with one address of 198.18.0.0/15 (RFC 2544), for hub and node.

    The sessions cannot reach a hub on 127.0.0.1: inside it is another one, and slirp4netns
    is told not to hand on the machine's. No other machine can reach this address.
    """
    link = f"pw-{name}"
    subprocess.run(["ip", "link", "delete", link], stderr=subprocess.DEVNULL, check=False)
    with contextlib.ExitStack() as claims:
        candidates = (f"198.18.{n}.1" for n in range(1, 255))
        # Another set-up may be about to add the one that it has chosen.
        address = next(one for one in candidates if claim(claims, one) and not is_here(one))
        with link_with(link, address):
            yield address


def is_here(address: str) -> bool:
    """Whether an interface has it."""
    return f" {address}/" in run_quietly("ip", "-o", "address", "show")


@contextlib.contextmanager
def link_with(link: str, address: str) -> Iterator[None]:
    """An interface with this one address."""
    try:
        run_quietly("ip", "link", "add", link, "type", "veth", "peer", "name", f"{link}-far")
        try:
            run_quietly("ip", "address", "add", f"{address}/32", "dev", link)
            run_quietly("ip", "link", "set", link, "up")
            yield
        finally:
            subprocess.run(["ip", "link", "delete", link], check=False)
    except subprocess.CalledProcessError as error:
        raise RigError(f"no interface of its own: {error.stderr.strip()}") from None


def machine_address() -> str:
    """The machine's first address that is not loopback."""
    for line in run_quietly("ip", "-o", "-4", "address", "show", "scope", "global").splitlines():
        return line.split()[3].partition("/")[0]
    raise RigError("this machine has no address but loopback; run this as root: it makes one")


def own_account() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


@contextlib.contextmanager
def run_directory(for_others: bool) -> Iterator[Path]:
    """A new directory for everything that the set-up writes."""
    path = Path(tempfile.mkdtemp(prefix="portwrap-demo-", dir="/tmp" if for_others else None))
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def account(name: str, run: Path) -> Iterator[str]:
    """A Unix account; one that was there before stays, with its home directory."""
    try:
        ours = pwd.getpwnam(name).pw_gecos == GECOS  # left by one of us that was killed
    except KeyError:
        ours = True
        words = ["useradd", "--no-create-home", "--home-dir", f"{run}/home/{name}"]
        words += ["--shell", "/bin/sh", "--user-group", "--comment", GECOS, name]
        try:
            run_quietly(*words)
        except subprocess.CalledProcessError as error:
            raise RigError(f"no account {name}: {error.stderr.strip()}") from None
    try:
        yield name
    finally:
        if ours:
            subprocess.run(["userdel", name], check=False)


def own_port(stack: contextlib.ExitStack, host: str, wanted: int = 0) -> int:
    """The wanted TCP port, or another one, that nobody holds and no other set-up has chosen: it
    takes seconds until the hub and its proxy hold theirs."""
    for asked in (wanted, *PORT_TRIES * (0,)):
        port = free_port(host, asked)
        if claim(stack, f"{host}-{port}"):
            return port
    raise RigError(f"no port on {host} that is not another one's")


def free_port(host: str, wanted: int = 0) -> int:
    """The wanted TCP port of this address if nobody holds it, else any other."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    raise RigError(f"no free port on {host}")


def run_quietly(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)


# ---- signals ---------------------------------------------------------------------------------


class Ended(BaseException):
    """We were told to end; unwinds every context on the way."""


class _Told:
    """Whether a signal came, and whether it may raise `Ended` where we are."""

    to_end = False
    may_raise = False


def end_in_order() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP raise `Ended`, but inside `interruptible` only.

    Anywhere else an exception could come between making something and noting that it is ours.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        _Told.to_end = True
        if _Told.may_raise:
            _Told.may_raise = False
            raise Ended(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A place where we may be told to end, or hear that we were told before."""
    _Told.may_raise = True
    try:
        if _Told.to_end:
            raise Ended
        yield
    finally:
        _Told.may_raise = False


def main(argv: Sequence[str] | None = None) -> int:
    """Set up, print the facts, wait for the end of standard input, take down."""
    parser = argparse.ArgumentParser(prog="demo.rig", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="ROOT_DIR of demo/install.sh")
    parser.add_argument("--archive", type=Path, required=True, help="batchspawner-portwrap.pyz")
    parser.add_argument("--name", default=Plan.name)
    parser.add_argument("--owner", default=Plan.owner)
    parser.add_argument("--stranger", default=Plan.stranger)
    parser.add_argument("--http-timeout", type=int, default=Plan.http_timeout)
    parser.add_argument("--config", type=Path, default=Plan.config)
    plan = Plan(**vars(parser.parse_args(argv)))
    end_in_order()
    try:
        with Rig(plan) as rig:
            print(json.dumps(asdict(rig.facts)), flush=True)
            with interruptible():
                sys.stdin.read()
    except Ended:
        pass
    except RigError as error:
        print(f"demo.rig: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
