"""Debian 13's Slurm in the virtual machine, with its plugins for cgroups of version 2, and jobs as
batchspawner's SlurmSpawner submits them."""

from __future__ import annotations

import functools
import json
import subprocess
from typing import Mapping, Sequence

from vm.conftest import ARCHIVE
from vm.machine import PATIENCE, Machine
from vm.units import NODE, Server

from conftest import TEST_ROOT
from helpers import OWNER, wait_until

HOME = f"/home/{OWNER}"
DEVICE = "/dev/full"
"""What jobs have to ask for, as for a GPU; nothing else uses it."""
FILES = {
    "slurm.conf": f"""
ClusterName=tests
SlurmctldHost=node01({NODE})
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=/var/lib/slurm/state
SlurmdSpoolDir=/var/lib/slurm/spool
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/cgroup
PrologFlags=Contain
JobContainerType=job_container/tmpfs
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
DefMemPerNode=200
ReturnToService=2
JobRequeue=0
MinJobAge=3600
MessageTimeout=100
TCPTimeout=60
BatchStartTimeout=600
GresTypes=gpu
NodeName=node01 NodeAddr={NODE} CPUs=64 RealMemory=100000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes=node01 Default=YES MaxTime=600 DefaultTime=30 State=UP
""",
    "cgroup.conf": """
CgroupPlugin=cgroup/v2
ConstrainDevices=yes
ConstrainRAMSpace=yes
SystemdTimeout=100000
""",
    "gres.conf": f"Name=gpu File={DEVICE}\n",
    "job_container.conf": "AutoBasePath=true\nBasePath=/var/lib/slurm/jobs\nDirs=/tmp,/dev/shm\n",
}
FROM_BATCHSPAWNER = """
import json, sys
from batchspawner import SlurmSpawner
from jinja2 import Template
print(Template(SlurmSpawner.batch_script.default_value).render(json.load(sys.stdin)))
"""
KEPT = "PATH HOME JUPYTERHUB_SERVICE_URL PORTWRAP_FORWARD PORTWRAP_NETWORK PORTWRAP_OUTWARD"
SERVER = "the server"  # stands in the script until one is known


class Slurm:
    """A controller and a node, services of the machine's."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.do("install", "-d", "-o", "slurm", "/var/lib/slurm/state")
        machine.do("install", "-d", "/var/lib/slurm/spool")
        self.start(FILES)

    def start(self, files: Mapping[str, str]) -> None:
        """Start it, or start it again with other files."""
        for name, text in files.items():
            self.machine.write(f"/etc/slurm/{name}", text)
        self.machine.do("systemctl", "restart", "munge", "slurmctld", "slurmd")
        wait_until(self.is_idle, PATIENCE, "an idle node")

    def is_idle(self) -> bool:
        return self.machine.run("sinfo", "-h", "-o", "%t").output == "idle\n"

    def stop(self) -> None:
        self.machine.do("systemctl", "stop", "slurmctld", "slurmd", "munge")

    def log(self) -> str:
        return self.machine.do("journalctl", "-o", "cat", "-n", "60", "-u", "slurm*")


class Job(Server):
    """A server that is a job: a step of it, by srun, or the child of its script."""

    def __init__(
        self,
        slurm: Slurm,
        environ: Mapping[str, str],
        srun: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(slurm.machine)
        program = (ARCHIVE,) if environ else ()
        settings = {**environ, "JUPYTERHUB_SERVICE_URL": self.url}
        path = f"/run/{self.name}.sh"
        self.machine.write(path, script(srun).replace(SERVER, " ".join(self.words(program))))
        words = ["sbatch", "--parsable", *options, path]
        submitted = self.machine.do(*words, account=OWNER, environ=settings)
        self.number = int(submitted)

    def facts(self) -> dict[str, str]:
        """What `scontrol show job` reports."""
        line = self.machine.do("scontrol", "--oneliner", "show", "job", str(self.number))
        return dict(word.partition("=")[::2] for word in line.split())

    def state(self) -> str:
        """State and exit code, as `CANCELLED 0:0`: the status, and the signal behind the colon."""
        facts = self.facts()
        return f"{facts['JobState']} {facts['ExitCode']}"

    def is_over(self) -> bool:
        return self.facts()["JobState"] not in (
            "PENDING",
            "CONFIGURING",
            "RUNNING",
            "COMPLETING",
        )

    def end(self) -> str:
        """Its state, when it is over."""
        wait_until(self.is_over, 3 * PATIENCE, f"the end of {self.name}")
        return self.state()

    def log(self) -> str:
        return self.machine.do("cat", f"{HOME}/jupyterhub_slurmspawner_{self.number}.log")


@functools.lru_cache(maxsize=None)
def script(srun: bool) -> str:
    """batchspawner's own script, for any server."""
    facts = {
        "homedir": HOME,
        "keepvars": ",".join(KEPT.split()),
        "srun": "srun" if srun else "",
        "cmd": SERVER,
    }
    result = subprocess.run(
        [TEST_ROOT / "hub-venv" / "bin" / "python", "-c", FROM_BATCHSPAWNER],
        input=json.dumps(facts),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return result.stdout
