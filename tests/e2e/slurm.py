"""A cluster on this machine: a hub and two nodes, each a host of its own, with a real Slurm.

A host is a process in network, mount, PID, IPC and UTS namespaces of its own; veth pairs with
addresses of 198.18.0.0/15 (RFC 2544) are the cables between them. Whatever runs on a host ends
with the host, and a host ends with the tests, however they end. All files are in one directory,
which every host sees as its /home and /etc/slurm, so that nothing of the machine's is touched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Iterator, Sequence

from networks import entered

from helpers import (
    NEIGHBOUR,
    OWNER,
    PREFIX,
    SYSTEM_PATH,
    children_of,
    describe,
    end,
    find_tool,
    lives,
    wait_until,
)

HUB = ("hub", "198.18.0.1")
NODES = (("node1", "198.18.0.11"), ("node2", "198.18.0.12"))
NOWHERE = "198.18.0.254"
"""The nodes' default gateway: an address that nobody has."""
NAMESPACES = ("net", "uts", "mount", "ipc", "pid")
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sudo", "ip", "nsenter", "setpriv")
START_SECONDS = 30
STOP_SECONDS = 10
KILL_WAIT = 30  # seconds between a job's SIGTERM and its SIGKILL; this is Slurm's own default
TCP_LISTEN = "0A"  # proc(5), /proc/net/tcp

SLURM_CONF = """
ClusterName=portwrap-test
SlurmctldHost={hub[0]}({hub[1]})
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation={run}/state
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir={run}/spool-%n
SlurmctldLogFile={run}/log/slurmctld.log
SlurmdLogFile={run}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait={kill_wait}
JobRequeue=0
MinJobAge=3600
{nodes}
PartitionName=all Nodes=node[1-2] Default=YES MaxTime=600 DefaultTime=30 State=UP
"""


class Host:
    """A machine of the cluster. Its first process ends when our end of a pipe closes."""

    def __init__(self, name: str, address: str, run: Path) -> None:
        self.name = name
        self.address = address
        self.run = run
        self.daemons: list[subprocess.Popen[Any]] = []
        flags = [f"--{kind}" for kind in NAMESPACES]
        # bash reaps the orphans that the first process of a PID namespace gets.
        script = f"hostname {name} && echo up && read -r _"
        self.holder = subprocess.Popen(
            ["unshare", *flags, "--fork", "--kill-child", "--mount-proc", "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        try:
            assert self.holder.stdout and self.holder.stdout.readline() == "up\n"
            (self.init,) = children_of(self.holder.pid)
            self.namespace = os.open(f"/proc/{self.init}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            end(self.holder)
            raise

    def words(self, argv: Sequence[str | Path], account: str = "root") -> list[str]:
        """Words that start this command on the host, as this account."""
        become = ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups"]
        enter = ["nsenter", f"--target={self.init}", *(f"--{kind}" for kind in NAMESPACES)]
        return [*enter, *(become if account != "root" else []), *map(str, argv)]

    def popen(
        self, argv: Sequence[str | Path], account: str = "root", **kw: Any
    ) -> subprocess.Popen[Any]:
        """Start this command on the host."""
        kw.setdefault("env", environment(account))
        kw.setdefault("stdin", subprocess.DEVNULL)
        kw.setdefault("cwd", "/")
        return subprocess.Popen(self.words(argv, account), **kw)

    def do(self, *argv: str | Path, account: str = "root", seconds: float = 30) -> str:
        """Run this command on the host; returns its output. A failure of it fails the test."""
        result = subprocess.run(
            self.words(argv, account),
            cwd="/",
            env=environment(account),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert result.returncode == 0, f"{argv} on {self.name}: {result.stdout}{result.stderr}"
        return result.stdout

    def daemon(
        self, *argv: str | Path, folder: str | Path = "/", **kw: Any
    ) -> subprocess.Popen[Any]:
        """Start a daemon in this folder of the host; it ends with the host at the latest."""
        log = self.run / "log" / f"{self.name}-{Path(argv[0]).name}.out"
        words = ["env", f"--chdir={folder}", *argv]
        with open(log, "ab") as output:
            process = self.popen(words, stdout=output, stderr=output, start_new_session=True, **kw)
        self.daemons.append(process)
        return process

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Sockets that this thread makes meanwhile are sockets of this host."""
        return entered(self.namespace)

    def connect(self, address: str, port: int, seconds: float = 10) -> socket.socket:
        """A TCP connection from this host."""
        with self.entered():
            return socket.create_connection((address, port), timeout=seconds)

    def processes(self, account: str) -> set[int]:
        """The account's live processes on this host, by their numbers outside."""
        uid = pwd.getpwnam(account).pw_uid
        ours = os.stat(f"/proc/{self.init}/ns/pid").st_ino
        found = set()
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                if int(status.partition("\nUid:\t")[2].split()[0]) != uid:
                    continue
                if os.stat(f"/proc/{pid}/ns/pid").st_ino == ours and lives(pid):
                    found.add(pid)
            except OSError:
                continue  # it has ended
        return found

    def listening(self) -> set[int]:
        """The TCP ports that are listened on at this host."""
        found = set()
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.init}/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == TCP_LISTEN:
                    found.add(int(fields[1].rpartition(":")[2], 16))
        return found

    def mounts(self) -> list[str]:
        """What every process of the host sees mounted, but those with a view of their own."""
        return Path(f"/proc/{self.init}/mountinfo").read_text().splitlines()

    def close(self) -> None:
        """End the host and everything that runs on it."""
        os.close(self.namespace)
        assert self.holder.stdin
        self.holder.stdin.close()  # with the first process of a PID namespace all others end
        # Each is the parent of one of them, and has to reap it before the namespace can end.
        for process in [*self.daemons, self.holder]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            end(process)


class Cluster:
    """The hosts and their Slurm."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.homes = Path(home_of(OWNER)).parent
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def node(self) -> Host:
        """The node on which sessions run, unless the test says otherwise."""
        return self.nodes[0]

    def start(self) -> None:
        self.make_files()
        self.hub, *self.nodes = self.hosts = [self.add_host(*each) for each in (HUB, *NODES)]
        self.lay_cables()
        for host in self.hosts:
            self.start_munged(host)
        self.controller = self.hub.daemon(tool("slurmctld"), "-D", "-c")
        for host in self.nodes:
            host.daemon(tool("slurmd"), "-D", "-N", host.name)
        self.wait_idle()
        self.mounts = [host.mounts() for host in self.nodes]

    def add_host(self, name: str, address: str) -> Host:
        host = Host(name, address, self.run)
        self.stack.callback(host.close)
        host.do("mount", "--make-rprivate", "/")
        host.do("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
        host.do("mount", "-t", "tmpfs", "-o", "mode=1777", "shm", "/dev/shm")
        for source, target in (
            (self.run / "homes", self.homes),
            (self.run / "slurm", "/etc/slurm"),
            (self.run / "hosts", "/etc/hosts"),
            (self.run / "resolv.conf", os.path.realpath("/etc/resolv.conf")),
        ):
            host.do("mount", "--bind", source, target)
        return host

    # -- files ------------------------------------------------------------------------------

    def make_files(self) -> None:
        for name in ("homes", "slurm", "state", "log", "bin"):
            (self.run / name).mkdir()
        for account in (OWNER, NEIGHBOUR):
            home = self.run / "homes" / account
            home.mkdir(mode=0o700)
            shutil.chown(home, account, pwd.getpwnam(account).pw_gid)
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={address} CPUs=256 RealMemory=1000000 State=UNKNOWN"
            for name, address in NODES
        )
        conf = SLURM_CONF.format(run=self.run, hub=HUB, nodes=nodes, kill_wait=KILL_WAIT)
        (self.run / "slurm" / "slurm.conf").write_text(conf)
        # The other versions look for a cgroup of their own, which a namespace may not have.
        (self.run / "slurm" / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        lines = [f"{address} {name}" for name, address in (("localhost", "127.0.0.1"), HUB, *NODES)]
        (self.run / "hosts").write_text("\n".join(lines) + "\n")
        (self.run / "resolv.conf").write_text(f"nameserver {NOWHERE}\n")

    def home(self, account: str = OWNER) -> Path:
        """The account's home directory, as it is seen from outside of the cluster."""
        return self.run / "homes" / account

    # -- network ----------------------------------------------------------------------------

    def lay_cables(self) -> None:
        """The hub's host is the router, too: each node is connected with it only."""
        for host in self.hosts:
            host.do("ip", "link", "set", "lo", "up")
        hub = self.hub
        hub.do("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for node in self.nodes:
            enter = ["nsenter", f"--target={hub.init}", "--net"]  # the PID is one of out here
            peer = ["type", "veth", "peer", "name", "cable", "netns", str(node.init)]
            subprocess.run([*enter, "ip", "link", "add", node.name, *peer], check=True)
            hub.do("ip", "address", "add", f"{hub.address}/32", "dev", node.name)
            hub.do("ip", "link", "set", node.name, "up")
            hub.do("ip", "route", "add", node.address, "dev", node.name)
            node.do("ip", "address", "add", f"{node.address}/32", "dev", "cable")
            node.do("ip", "link", "set", "cable", "up")
            node.do("ip", "route", "add", hub.address, "dev", "cable")
            for other in self.nodes:
                if other is not node:
                    node.do("ip", "route", "add", other.address, "via", hub.address)
            node.do("ip", "route", "add", NOWHERE, "dev", "cable")
            node.do("ip", "route", "add", "default", "via", NOWHERE)

    # -- Slurm ------------------------------------------------------------------------------

    def start_munged(self, host: Host) -> None:
        """Each host has one, as in a cluster: a credential is good once per munged."""
        key = self.run / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o600)
        host.do("install", "-d", "-o", "munge", "-g", "munge", "-m", "755", "/run/munge")
        host.do("install", "-o", "munge", "-g", "munge", "-m", "400", key, "/run/munge/key")
        files = [f"--{name}-file=/run/munge/{name}" for name in ("key", "log", "pid", "seed")]
        host.daemon(tool("munged"), "--foreground", *files, account="munge")
        wait_until(lambda: answers(host, "munge", "-n"), START_SECONDS, "munged")

    def node_states(self) -> list[str]:
        """Name and state of every node; nothing while the controller is not up."""
        with contextlib.suppress(AssertionError):
            return self.hub.do("sinfo", "-h", "-N", "-o", "%N %t").splitlines()
        return []

    def wait_idle(self) -> None:
        """Wait until every node takes jobs."""
        idle = [f"{host.name} idle" for host in self.nodes]
        try:
            wait_until(lambda: self.node_states() == idle, START_SECONDS, "idle nodes")
        except AssertionError as error:
            error.args = (f"{error}: {self.node_states()}\n{self.logs()}",)
            raise

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        told = []
        for path in sorted((self.run / "log").iterdir()):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            told.append(f"---- {path.name}\n" + "\n".join(lines))
        return "\n".join(told)

    def jobs(self) -> list[Job]:
        """Every job that the controller knows, the newest last."""
        found = []
        for line in self.hub.do("scontrol", "--oneliner", "show", "jobs").splitlines():
            facts = dict(word.partition("=")[::2] for word in line.split())
            if "JobId" in facts:
                found.append(Job(self, facts))
        return sorted(found, key=lambda job: job.number)

    def submit(self, script: str, *options: str, account: str = OWNER) -> int:
        """Submit a script as a job; returns its number."""
        path = self.run / "bin" / "script.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        chdir = f"--chdir={home_of(account)}"
        words = ["sbatch", "--parsable", chdir, *options, str(path)]
        return int(self.hub.do(*words, account=account))

    def job(self, number: int) -> Job:
        """What is known of a job now."""
        (found,) = (job for job in self.jobs() if job.number == number)
        return found

    def account_processes(self) -> list[str]:
        """Every live process of the two accounts on the nodes."""
        return [
            f"{node.name}: {describe(pid)}"
            for node in self.nodes
            for account in (OWNER, NEIGHBOUR)
            for pid in sorted(node.processes(account))
        ]

    def assert_clean(self) -> None:
        """Nothing of the sessions is left on any node: no process, no port, no mount."""
        wait_until(
            lambda: not self.account_processes(),
            KILL_WAIT + 10,
            f"the end of {self.account_processes()}",
        )
        for node, mounts in zip(self.nodes, self.mounts):
            # slurmd's own port; daemons of root's, too, may end a moment after their job
            wait_until(lambda: node.listening() == {6818}, what=f"the ports of {node.name} free")  # noqa: B023
            wait_until(lambda: node.mounts() == mounts, what=f"the mounts of {node.name} as before")  # noqa: B023


class Job:
    """A job as `scontrol show job` told of it at one moment."""

    def __init__(self, cluster: Cluster, facts: dict[str, str]) -> None:
        self.cluster = cluster
        self.facts = facts
        self.number = int(facts["JobId"])

    @property
    def state(self) -> str:
        """State and exit code, as `CANCELLED 0:0`: the status, and the signal behind the colon."""
        return f"{self.facts['JobState']} {self.facts['ExitCode']}"

    @property
    def is_over(self) -> bool:
        return self.facts["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")

    @property
    def comment(self) -> str:
        return self.facts.get("Comment", "")

    @property
    def node(self) -> Host:
        """The node that it runs on, or ran."""
        return next(host for host in self.cluster.nodes if host.name == self.facts["NodeList"])


# ---- small things ----------------------------------------------------------------------------


def environment(account: str) -> dict[str, str]:
    """What a login of the account starts with, and nothing of the tests' own: jobs inherit it."""
    return {
        "HOME": home_of(account),
        "USER": account,
        "LOGNAME": account,
        "PATH": SYSTEM_PATH,
        "LC_ALL": "C.UTF-8",
    }


def home_of(account: str) -> str:
    return pwd.getpwnam(account).pw_dir


def tool(name: str) -> str:
    """The path of a program; daemons are started by it."""
    path = find_tool(name)
    assert path, name
    return path


def answers(host: Host, *argv: str) -> bool:
    with contextlib.suppress(AssertionError):
        host.do(*argv)
        return True
    return False


@functools.lru_cache(maxsize=None)
def why_no_slurm() -> str | None:
    """Why there can be no cluster here; None if there can."""
    missing = [name for name in TOOLS if find_tool(name) is None]
    if missing:
        return f"not installed: {' '.join(missing)}; tests/setup.sh installs Slurm on Debian"
    return None


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A directory for all of the cluster's files, which every account can enter."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
