"""The same hosts as in `slurm`, with a Grid Engine on them, and sessions that are its jobs.

Debian's packages would bring a mail server with them: tests/setup.sh lays their files below
PORTWRAP_TEST_ROOT, and a link where the programs look for their libraries.
"""

from __future__ import annotations

import re
from pathlib import Path

from e2e import slurm
from e2e.examples import adapted
from e2e.slurm import HUB, NODES, START_SECONDS, Cluster, Host
from e2e.slurm_hub import Session, SlurmHub

from conftest import TEST_ROOT
from helpers import OWNER, wait_until

PACKAGES = TEST_ROOT / "gridengine"
PROGRAMS = PACKAGES / "usr" / "lib" / "gridengine"
SHARE = PACKAGES / "usr" / "share" / "gridengine"
ARCHITECTURE = "lx-amd64"
QMASTER_PORT, EXECD_PORT = 6444, 6445

BOOTSTRAP = """
admin_user none
default_domain none
ignore_fqdn false
spooling_method classic
spooling_lib libspoolc
spooling_params {common};{spool}
binary_path {programs}
qmaster_spool_dir {spool}
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""


def why_no_gridengine() -> str | None:
    """Why there can be none here; None if there can."""
    if not (PACKAGES / ".complete").exists():
        return "no Grid Engine; tests/setup.sh matrix fetches Debian's"
    return None


def changed(text: str, **settings: str) -> str:
    """A configuration of Grid Engine's, lines of a name and a value, with other values."""
    for name, value in settings.items():
        text, count = re.subn(rf"^{name}\b.*$", f"{name} {value}", text, flags=re.MULTILINE)
        assert count == 1, f"{name} stands there {count} times"
    return text


class GridEngine(Cluster):
    """A qmaster on the hub's host, and nodes that run jobs."""

    def start(self) -> None:
        self.make_files()
        self.hub, *self.nodes = self.hosts = [self.add_host(*each) for each in (HUB, *NODES)]
        self.lay_cables()
        for host in self.hosts:
            host.do("mount", "--bind", PROGRAMS, "/usr/local/sbin")  # on PATH, on sudo's as well
        self.root = self.run / "sge"
        self.make_root()
        self.daemon(self.hub, "sge_qmaster")
        wait_until(lambda: self.told("qconf", "-sh"), START_SECONDS, "sge_qmaster")
        self.do("qconf", "-as", self.hub.name)
        self.change("-ssconf", "-Msconf", schedule_interval="0:0:1")
        for node in self.nodes:
            self.do("qconf", "-ah", node.name)
            self.daemon(node, "sge_execd")
        wait_until(lambda: self.executing() == {name for name, _ in NODES}, START_SECONDS, "execd")
        names = " ".join(sorted(self.executing()))
        self.change("-sq", "-Aq", qname="all.q", hostlist=names, slots="8", pe_list="NONE",
                    load_thresholds="NONE")  # fmt: skip
        wait_until(self.takes_jobs, START_SECONDS, "a queue that takes jobs")

    # -- files ------------------------------------------------------------------------------

    def make_root(self) -> None:
        """What the packages' installers make after some questions."""
        common, spool = self.root / "default" / "common", self.run / "qmaster"
        for folder in (common, spool, self.run / "execd"):
            folder.mkdir(parents=True)
        for name in ("bin", "lib", "utilbin"):
            (self.root / name).mkdir()
            (self.root / name / ARCHITECTURE).symlink_to(PROGRAMS)
        (self.root / "util").symlink_to(SHARE / "util")
        bootstrap = BOOTSTRAP.format(common=common, spool=spool, programs=PROGRAMS)
        (common / "bootstrap").write_text(bootstrap.lstrip())
        (common / "act_qmaster").write_text(f"{self.hub.name}\n")
        settings = changed(
            (SHARE / "default-configuration").read_text(),
            execd_spool_dir=str(self.run / "execd"),
            load_report_time="00:00:02",
            reporting_params="accounting=true reporting=false flush_time=00:00:01"
            " accounting_flush_time=00:00:00 joblog=false sharelog=00:00:00",
        )
        (self.run / "configuration").write_text(settings)
        self.do("spoolinit", "classic", "libspoolc", f"{common};{spool}", "init")
        self.do("spooldefaults", "configuration", str(self.run / "configuration"))
        resources = SHARE / "util" / "resources"
        self.do("spooldefaults", "complexes", str(resources / "centry"))
        self.do("spooldefaults", "usersets", str(resources / "usersets"))
        self.do("spooldefaults", "managers", "root")

    # -- its programs -----------------------------------------------------------------------

    def variables(self) -> dict[str, str]:
        """What every program of Grid Engine's must be told."""
        return {
            "SGE_ROOT": str(self.root),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(QMASTER_PORT),
            "SGE_EXECD_PORT": str(EXECD_PORT),
        }

    def daemon(self, host: Host, name: str) -> None:
        environment = {**slurm.environment("root"), **self.variables(), "SGE_ND": "1"}  # no daemon
        host.daemon(PROGRAMS / name, env=environment)

    def do(self, *argv: str, account: str = "root") -> str:
        words = [f"{name}={value}" for name, value in self.variables().items()]
        return self.hub.do("env", *words, *argv, account=account)

    def told(self, *argv: str) -> str:
        """What it says; nothing while there is nothing to say, which is an error of its own."""
        try:
            return self.do(*argv)
        except AssertionError:
            return ""

    def change(self, show: str, set_: str, **settings: str) -> None:
        """Change a configuration in the way that its own editor does."""
        path = self.run / "settings"
        path.write_text(changed(self.do("qconf", show), **settings))
        self.do("qconf", set_, str(path))

    def executing(self) -> set[str]:
        """The hosts whose sge_execd has made itself known."""
        return set(self.told("qconf", "-sel").split())

    def takes_jobs(self) -> bool:
        told = self.told("qstat", "-f")
        return told.count("all.q@") == len(self.nodes) and "-NA-" not in told

    # -- jobs -------------------------------------------------------------------------------

    def accounted(self, number: int) -> dict[str, str]:
        """What qacct knows of a job that is over; nothing before that."""
        lines = self.told("qacct", "-j", str(number)).splitlines()
        return dict(line.split(None, 1) for line in lines if len(line.split()) > 1)

    def assert_clean(self) -> None:
        wait_until(lambda: not self.account_processes(), 30, f"no {self.account_processes()}")
        for node in self.nodes:
            assert node.listening() == {EXECD_PORT}


class GridEngineHub(SlurmHub):
    """A JupyterHub with GridengineSpawner."""

    cluster: GridEngine

    def adapt_example(self) -> Path:
        words = {
            "ARCHIVE": str(self.archive),
            "PROGRAMS": f"{TEST_ROOT}/hub-venv/bin",
            "HUB": self.cluster.hub.name,
        }
        return adapted("gridengine_config.py", words, self.run / "hub")

    def variables(self) -> dict[str, str]:
        return self.cluster.variables()


class GridEngineSession(Session):
    """A person's server that is a job of Grid Engine; one at a time."""

    hub: GridEngineHub

    def __init__(self, hub: GridEngineHub, kind: str) -> None:
        super().__init__(hub, f"s{next(hub.numbers)}", kind, OWNER, {})
        self.options = {"plain": True} if kind == "plain" else {}
        if kind != "plain":
            self.options["environment"] = {"PORTWRAP_FORWARD": kind}
        hub.sessions.append(self)

    def grid_number(self) -> int:
        """The number of its job."""
        if not self.number:
            found = re.findall(r"Job submitted\. output: Your job (\d+) ", self.hub.log())
            self.number = int(found[-1])
        return self.number

    def wait_accounted(self) -> dict[str, str]:
        """Wait until the job is over; returns what qacct says of it."""
        number = self.grid_number()
        return wait_until(lambda: self.hub.cluster.accounted(number), 60, f"qacct of {number}")

    def stop_grid(self) -> dict[str, str]:
        """Have the hub stop it, and wait for the end of the job."""
        self.ask_to_stop()
        wait_until(lambda: not self.is_known(), 60, "the hub's end of it")
        return self.wait_accounted()

    def close(self) -> None:
        self.drop_kernels()
        if self.is_known():
            self.stop_grid()

    def node(self) -> Host:
        """Where it runs."""
        return next(node for node in self.hub.cluster.nodes if self.server_pid_on(node) is not None)

    def server_pid_on(self, node: Host) -> int | None:
        for pid in node.processes(OWNER):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"python" in words[0] and any(b"singleuser" in word for word in words[1:2]):
                return pid
        return None

    def log(self) -> str:
        try:
            return (self.hub.cluster.home() / ".jupyterhub.sge.out").read_text(errors="replace")
        except OSError as error:
            return f"(no log: {error})"
