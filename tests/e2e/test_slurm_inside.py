"""Slurm's commands, typed into a session's terminal on a real cluster: with ports that Slurm may
call back, and without."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any, Iterator

import pytest
from e2e.slurm import home_of
from e2e.slurm_hub import Session, SlurmHub

from helpers import OWNER, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ANSWER_SECONDS = 40
RANGES = {"native": (61000, 61011), "relay": (61020, 61031)}
"""Ports for Slurm to call back: srun takes three or more, salloc one. Sessions of one node need a
range each."""
NETWORK_DRIVERS = {"native": "slirp4netns", "relay": "pasta"}

# What a job inherits makes srun part of that job.
OF_NO_JOB = 'for name in ${!SLURM_@}; do [ "$name" = SLURM_CONF ] || unset "$name"; done\n'


class Terminal:
    """A terminal of the session's, as JupyterLab opens one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.count = 0
        self.home = session.hub.cluster.home()
        answer = session.client.api("POST", session.path("api/terminals"))
        assert answer.status == 200, answer.text
        name = answer.json()["name"]
        self.socket = session.client.websocket(session.path(f"terminals/websocket/{name}"))

    def close(self) -> None:
        self.socket.close()

    def type(self, line: str) -> None:
        self.socket.send(json.dumps(["stdin", f"{line}\r"]))

    def start(self, script: str) -> None:
        """Have bash run this script; what it writes goes to a file."""
        name = f"{self.session.name}.sh"
        (self.home / name).write_text(script)
        place = f"{home_of(OWNER)}/{name}"
        self.count += 1
        # what is typed is shown, too
        self.type(f"bash {place} >{place}.out 2>&1; echo done-$(({self.count} * 1))-done")

    def run(self, script: str) -> str:
        """What this script writes."""
        self.start(script)
        self.socket.settimeout(ANSWER_SECONDS)
        shown = ""
        while f"done-{self.count}-done" not in shown:
            kind, *rest = json.loads(self.socket.recv())
            shown += rest[0] if kind == "stdout" else ""
        return (self.home / f"{self.session.name}.sh.out").read_text()


def environment_of(kind: str) -> dict[str, Any]:
    """Settings of a session that Slurm can call back."""
    first, last = RANGES[kind]
    return {
        "environment": {
            "PORTWRAP_FORWARD": kind,
            "PORTWRAP_NETWORK": NETWORK_DRIVERS[kind],
            "PORTWRAP_PUBLISH": f"{first}-{last}",
        },
        # only inside: the job's own srun would take ports of that range on the node
        "inside": [f"SLURM_CONF=/etc/slurm/{kind}.conf"],
    }


@pytest.fixture(scope="module")
def terminals(slurm_hub: SlurmHub) -> Iterator[dict[str, Terminal]]:
    """Terminals of sessions on one node: with published ports, and one without any."""
    for kind, (first, last) in RANGES.items():
        text = f"Include /etc/slurm/slurm.conf\nSrunPortRange={first}-{last}\n"
        (slurm_hub.run / "slurm" / f"{kind}.conf").write_text(text)
    sessions = {kind: slurm_hub.session(kind, **environment_of(kind)) for kind in RANGES}
    sessions["nothing published"] = slurm_hub.session("native")
    with ExitStack() as stack:
        stack.callback(slurm_hub.cluster.assert_clean)
        stack.callback(slurm_hub.stop_sessions)
        for session in sessions.values():
            session.begin()
            stack.callback(session.ask_to_stop)
        made = {name: Terminal(session.wait_ready()) for name, session in sessions.items()}
        for terminal in made.values():
            stack.callback(terminal.close)
        assert {each.session.job().node.name for each in made.values()} == {"node1"}
        yield made


ASKS = {  # what: script, what it must write; these need nobody to call back
    "squeue": ("squeue --me --noheader --states=RUNNING --format=%u | sort -u", f"{OWNER}\n"),
    "sinfo": ("sinfo --noheader --Node --format=%N", "node1\nnode2\n"),
    "sbatch": (
        "rm -f batch; sbatch --quiet --nodelist=node2 --output=/dev/null --wrap='hostname >new;"
        " mv new batch'; until [ -e batch ]; do sleep 0.05; done; cat batch",
        "node2\n",
    ),
    "scancel": (
        "number=$(sbatch --parsable --hold --wrap=true); scancel $number;"
        " scontrol --oneliner show job $number | grep -o 'JobState=[A-Z]*'",
        "JobState=CANCELLED\n",
    ),
}


@pytest.mark.parametrize("kind", [*RANGES, "nothing published"])
@pytest.mark.parametrize("what", ASKS)
def test_what_slurm_only_answers(terminals: dict[str, Terminal], kind: str, what: str) -> None:
    script, answer = ASKS[what]
    assert terminals[kind].run(OF_NO_JOB + script) == answer


CALLED_BACK = {  # Slurm's daemons connect to these
    "srun in the session's own job": ("srun --overlap hostname", "node1\n"),
    "srun on the same node": (f"{OF_NO_JOB} srun --quiet -w node1 hostname", "node1\n"),
    "srun on another node": (f"{OF_NO_JOB} srun --quiet -w node2 hostname", "node2\n"),
    "srun on two nodes": (
        f"{OF_NO_JOB} srun --quiet -N2 -n4 hostname | sort -u",
        "node1\nnode2\n",
    ),
    "its input, output and status": (
        f"{OF_NO_JOB} seq 50000 | srun --quiet -w node2 sh -c 'cat; exit 7' | tail -n1;"
        " echo ${PIPESTATUS[1]}",
        "srun: error: node2: task 0: Exited with exit code 7\n50000\n7\n",
    ),
    "a terminal": (
        f"{OF_NO_JOB} srun --quiet -w node2 --pty sh -c 'tty >name' >/dev/tty; cut -c1-9 name",
        "/dev/pts/\n",
    ),
    "salloc": (
        f"{OF_NO_JOB} salloc --quiet -N2 srun hostname | sort",
        "node1\nnode2\n",
    ),
}


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("what", CALLED_BACK)
def test_what_slurm_calls_back(terminals: dict[str, Terminal], kind: str, what: str) -> None:
    script, answer = CALLED_BACK[what]
    assert terminals[kind].run(script) == answer


def test_srun_without_a_published_range(terminals: dict[str, Terminal]) -> None:
    """The node that runs the task finds nobody at srun's port, and srun waits."""
    terminal = terminals["nothing published"]
    cluster = terminal.session.hub.cluster
    log = cluster.run / "log" / "slurmd-node2.log"
    assert "connect io: Connection refused" not in log.read_text()
    terminal.start(f"{OF_NO_JOB} echo $$ >waits; exec srun --quiet -w node2 hostname")
    wait_until(lambda: "connect io: Connection refused" in log.read_text(), 30, "a refused call")
    pid = (terminal.home / "waits").read_text().strip()
    assert cluster.node.do("cat", f"/proc/{pid}/comm") == "srun\n"
    cluster.node.do("kill", "-9", pid)  # it would wait for a minute, even told to end
    assert "node2" not in (terminal.home / f"{terminal.session.name}.sh.out").read_text()
