"""docs/frameworks.md: each of its recipes is run on two nodes, as it stands there, by sessions and
by programs without one; its table lists them."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import pytest
from e2e.slurm import Cluster, Host, home_of

from conftest import TEST_ROOT
from helpers import OWNER, PROJECT, SYSTEM_PATH, cannot, end, needs, wait_until
from sessions import kill

pytestmark = [pytest.mark.e2e, pytest.mark.apps, pytest.mark.timeout(400)]

PAGE = PROJECT / "docs" / "frameworks.md"
PROGRAMS = TEST_ROOT / "versions" / "frameworks" / "bin"
SECONDS = 240
PORT = "60999"  # the host port: none of those that recipes publish
NEEDS = re.compile(r"^Needs (nothing|`(--publish[ 0-9a-z,-]+)`)\.", re.M)
IN_SESSION, ELSEWHERE, IN_ANOTHER = PLACES = (
    "In the session",
    "On another node",
    "In a session on another node",
)
BLOCK = re.compile(rf"^({'|'.join(PLACES)}):\n\n```(bash|python)\n(.*?)```", re.M | re.S)
PRINTS = re.compile(r"  # prints (.*)$", re.M)

RAY = {
    "RAY_TMPDIR": "/dev/shm",  # each node's own, as /tmp is on real ones
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "100000000",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The other resolver asks a name server, too, even for names of /etc/hosts: there is none.
    "GRPC_DNS_RESOLVER": "native",
}


class Block(NamedTuple):
    where: str
    language: str
    text: str


class Recipe(NamedTuple):
    """What a section of the page tells to do."""

    title: str
    options: str
    blocks: list[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower())

    @property
    def row(self) -> str:
        """Its row of the page's table."""
        need = f"`{self.options}`" if self.options else "nothing"
        return f"| [{self.title}](#{self.anchor}) | {need} |"

    @property
    def result(self) -> str:
        """What the last block prints."""
        return "".join(PRINTS.findall(" ".join(block.text for block in self.blocks)))


def recipes() -> list[Recipe]:
    found = []
    for section in PAGE.read_text().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        need = NEEDS.search(text)
        if need:
            blocks = [Block(*block) for block in BLOCK.findall(text)]
            found.append(Recipe(title, need[2] or "", blocks))
    return found


RECIPES = recipes()


def test_the_table_lists_all_recipes() -> None:
    lines = PAGE.read_text().splitlines()
    begin = lines.index("|---|---|") + 1
    assert lines[begin : lines.index("", begin)] == [recipe.row for recipe in RECIPES]


class Stage:
    """Runs the blocks of a recipe, those in the session in one session."""

    def __init__(self, cluster: Cluster, pyz: Path, recipe: Recipe, stack: ExitStack) -> None:
        self.cluster = cluster
        self.pyz = pyz
        self.recipe = recipe
        self.stack = stack
        self.folder = Path(home_of(OWNER))
        self.main = next(block for block in recipe.blocks if PRINTS.search(block.text))
        for number, block in enumerate(recipe.blocks):
            path = cluster.home() / f"block{number}.{block.language}"
            path.write_text(block.text)
            shutil.chown(path, OWNER, OWNER)

    def run(self) -> str:
        """What the recipe's result is printed by writes."""
        session, other = self.cluster.nodes
        command: list[str | Path] = [self.pyz, "--port", PORT, *self.recipe.options.split()]
        command += ["env", "GUEST={guest-port}"]
        everywhere = {block.where for block in self.recipe.blocks}
        there = IN_ANOTHER if IN_ANOTHER in everywhere else ELSEWHERE
        programs: dict[Host, list[str | Path]] = {
            session: [*command, "bash", "-c", self.script(IN_SESSION)],
            other: [*(command if there == IN_ANOTHER else []), "bash", "-c", self.script(there)],
        }
        main = session if self.main.where == IN_SESSION else other
        for host, words in programs.items():
            if host is not main:
                self.start(host, words)
        process = self.start(main, programs[main])
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SECONDS)
        return (self.cluster.run / "log" / f"recipe-{main.name}.out").read_text()

    def start(self, host: Host, words: Sequence[str | Path]) -> subprocess.Popen[Any]:
        environ = {
            "HOME": home_of(OWNER),
            "USER": OWNER,
            "PATH": f"{PROGRAMS}:{SYSTEM_PATH}",
            "LC_ALL": "C.UTF-8",
            "TMPDIR": home_of(OWNER),
            "DASK_TEMPORARY_DIRECTORY": home_of(OWNER),
            # Else a machine that is killed leaves a file in /tmp.
            "JDK_JAVA_OPTIONS": f"-XX:-UsePerfData -Djava.io.tmpdir={home_of(OWNER)}",
            "SPARK_LOCAL_DIRS": home_of(OWNER),
            "SPARK_WORKER_DIR": home_of(OWNER),
            **RAY,
        }
        place = self.cluster.run / "log" / f"recipe-{host.name}"
        with open(f"{place}.out", "w") as output, open(f"{place}.err", "w") as log:
            process = host.popen(
                ["env", f"--chdir={self.folder}", *words],
                account=OWNER,
                env=environ,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )
        self.stack.callback(end, process)
        return process

    def script(self, where: str) -> str:
        """What runs there: all in the background but what prints the result, which is waited
        for."""
        lines = []
        for number, block in enumerate(self.recipe.blocks):
            if block.where == where:
                program = "python" if block.language == "python" else "bash"
                line = f"{program} {self.folder}/block{number}.{block.language}"
                lines.append(line if block is self.main else f"{line} >&2 &")
        return "\n".join([*lines, "" if self.main.where == where else "wait"])

    def logs(self) -> str:
        paths = sorted((self.cluster.run / "log").glob("recipe-*"))
        return "\n".join(f"---- {path.name}\n{path.read_text()[-3000:]}" for path in paths)


def clean(cluster: Cluster) -> None:
    """End whatever the owner runs on the nodes; daemons among it have left their parents."""
    cluster.hub.do("scancel", f"--user={OWNER}", "--signal=KILL")

    def kill_all() -> bool:
        found = [pid for node in cluster.nodes for pid in node.processes(OWNER)]
        for pid in found:
            kill(pid)
        return not found

    wait_until(kill_all, what="an end of what the recipe has started")
    for node in cluster.nodes:
        node.do("rm", "-rf", f"{RAY['RAY_TMPDIR']}/ray")


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.anchor for recipe in RECIPES])
def test_a_recipe(cluster: Cluster, pyz: Path, recipe: Recipe) -> None:
    if not (PROGRAMS / "mpirun").exists():
        cannot(f"not installed: {PROGRAMS}; tests/setup.sh matrix installs it")
    needs("java")
    with ExitStack() as stack:
        stack.callback(clean, cluster)
        stage = Stage(cluster, pyz, recipe, stack)
        output = stage.run()
        assert recipe.result in output.splitlines(), f"{output}\n{stage.logs()}"
