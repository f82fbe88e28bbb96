"""The pages list every option and every exit status; what is generated is up to date."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchspawner_portwrap import PARSER
from portwrap import __main__
from portwrap.cli import help
from portwrap.diagnostics import errors

from helpers import PROJECT

PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]
README_LINES, README_WORDS = 150, 1200


def configuration() -> str:
    return (PROJECT / "docs" / "configuration.md").read_text()


def test_the_readme_is_short() -> None:
    text = (PROJECT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    assert len(text.split()) <= README_WORDS


OPTIONS = sorted(
    {
        name
        for parser in (PARSER, __main__.PARSER)
        for option in parser.options
        for name in option.names
    }
)


@pytest.mark.parametrize("name", OPTIONS)
def test_option(name: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", configuration()), (
        f"{name} is missing"
    )


@pytest.mark.parametrize(
    "status",
    [errors.EXIT_USAGE, errors.EXIT_SANDBOX, errors.EXIT_NOT_EXECUTABLE, errors.EXIT_NOT_FOUND],
)
def test_exit_status_has_its_row(status: int) -> None:
    assert re.search(rf"^\|\s*`?{status}`?\s*\|", configuration(), re.MULTILINE), (
        f"no row for {status}"
    )


def test_the_written_parts_are_those_of_the_tables() -> None:
    """Options, exit statuses, troubleshooting and figures, the manual page, and the completions."""
    command = [sys.executable, str(PROJECT / "docs" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}run docs/generate.py"


def test_a_changed_table_is_seen(tmp_path: Path) -> None:
    """The control of the test above."""
    for name in ("README.md", "batchspawner_portwrap.py"):
        shutil.copy(PROJECT / name, tmp_path)
    for name in ("bench", "docs", "portwrap", "share"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    table = tmp_path / "portwrap" / "diagnostics" / "remedies.py"
    table.write_text(table.read_text().replace("The tun device is missing", "No tun device"))
    command = [sys.executable, str(tmp_path / "docs" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result
    assert sorted(line.split(":")[0] for line in result.stdout.splitlines()) == [
        "batchspawner-portwrap.1",
        "troubleshooting.md",
    ]


LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    words = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", word.lower()).replace(" ", "-") for word in words}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target, anchor in LINK.findall(page.read_text()):
        path = page.parent / target if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(f"{page.name}: {target}#{anchor}")
    return broken


def test_links_between_the_pages_lead_somewhere() -> None:
    assert sum(len(LINK.findall(page.read_text())) for page in PAGES) > 50
    assert [link for page in PAGES for link in broken_links(page)] == []


@pytest.mark.parametrize("link", ["no.md", "other.md#not-there", "#nor-here"])
def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path, link: str) -> None:
    """The control of the test above."""
    (tmp_path / "other.md").write_text("# Here: it is\n")
    page = tmp_path / "page.md"
    page.write_text("# Top\n[a](other.md#here-it-is) [b](#top)\n")
    assert broken_links(page) == []
    page.write_text(f"[c]({link})\n")
    assert len(broken_links(page)) == 1


# ---- options and variables ---------------------------------------------------------------------

OF_SCRIPTS = {
    "--for": "build.sh",
    "--once": "demo.sh",
    "--quick": "bench/run.sh",
    "--check": "docs/generate.py",
    "--no-setup": "tests/run.sh",
}
OF_OTHERS = {
    "dask": "--nanny-port --no-dashboard --worker-port",
    "spark": "--cores --memory --webui-port",
    "ipyparallel": "--cluster-id --file --ip --log-level --ports",
    "ray": "--address --block --generate --head --include-dashboard --max-worker-port"
    " --min-worker-port --node-ip-address --node-manager-port --num-cpus --object-manager-port"
    " --ray-client-server-port",
    "torchrun": "--master-addr --master-port --nnodes --node-rank --nproc-per-node --standalone",
    "mpirun": "--host --mca --prtemca",
    "apptainer": "--bind --contain --fakeroot --net --pid",
    "bwrap": "--bind --dev --dev-bind --die-with-parent --disable-userns --proc --ro-bind"
    " --unshare-net --unshare-pid",
    "charliecloud": "--home",
    "podman": "--device --network",
    "pip": "--no-deps",
    "journalctl": "--grep",
    "slurm": "--exclusive --full --gid --nodelist --nodes --ntasks --output --overlap --pty"
    " --signal",
    "rsync": "--no-group",
    "nsenter": "--preserve-credentials --target --user --net",
    "slirp4netns, pasta": "--configure --config-net",
    "jupyter standaloneproxy": "--absolute-url",
    "sha256sum": "--check",
    "python": "--version",
}
"""Options on the pages that are not ours, by program."""


def options_on(page: Path) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", page.read_text()))


def test_the_pages_name_no_option_that_help_does_not() -> None:
    known = {*OPTIONS, *OF_SCRIPTS, *" ".join(OF_OTHERS.values()).split()}
    unknown = {page.name: options_on(page) - known for page in PAGES}
    assert {name: found for name, found in unknown.items() if found} == {}
    for name, script in OF_SCRIPTS.items():
        assert name in (PROJECT / script).read_text()
    help_texts = help.text(PARSER) + help.text(__main__.PARSER)
    assert all(name in help_texts for name in OPTIONS)


def test_options_of_others_are_those_on_the_pages() -> None:
    """None is known that no page names any more, and would let a mistake pass."""
    named = set().union(*map(options_on, PAGES))
    others = {*OF_SCRIPTS, *" ".join(OF_OTHERS.values()).split()}
    assert others - named == set()


def test_the_pages_name_no_variable_that_does_not_exist() -> None:
    ours = {option.variable for parser in (PARSER, __main__.PARSER) for option in parser.settable}
    of_tests = set(re.findall(r"PORTWRAP_\w+", (PROJECT / "tests" / "run.sh").read_text()))
    of_tests |= set(re.findall(r"PORTWRAP_\w+", (PROJECT / ".ci" / "run").read_text()))
    for page in PAGES:
        known = ours if page.parent.name == "docs" else ours | of_tests
        assert set(re.findall(r"PORTWRAP_[A-Z_]*[A-Z]", page.read_text())) <= known, page.name


def test_the_map_of_the_code_shows_every_module() -> None:
    tour = (PROJECT / "CONTRIBUTING.md").read_text()
    modules = {path.name for path in (PROJECT / "portwrap").glob("**/[!_]*.py")}
    assert {name for name in modules if not re.search(rf"[`/]{name}`", tour)} == set()


def test_every_option_stands_under_a_heading() -> None:
    for parser in (PARSER, __main__.PARSER):
        shown = [option for _, options in help.topics(parser) for option in options]
        assert sorted(map(id, shown)) == sorted(map(id, parser.options))
