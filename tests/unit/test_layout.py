"""Which module may import which: who runs where is seen from the folders."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Iterator

import pytest

from helpers import PROJECT

PROGRAMS = ("batchspawner_portwrap", "portwrap.__main__")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "portwrap.archive": (),
    "portwrap.bundle": (),
    "portwrap.early_refusal": (),
    "portwrap.kernel": ("portwrap.kernel",),
    "portwrap.protocol": ("portwrap.early_refusal", "portwrap.kernel"),
    # The table of remedies has rows of the network drivers; nothing of launch imports the table.
    "portwrap.diagnostics": ("portwrap.diagnostics", "portwrap.kernel", "portwrap.launch.drivers"),
    "portwrap.keeper": (
        "portwrap.keeper",
        "portwrap.kernel",
        "portwrap.protocol",
        "portwrap.diagnostics.errors",
    ),
    "portwrap.launch": (
        "portwrap.launch",
        "portwrap.kernel",
        "portwrap.early_refusal",
        "portwrap.protocol",
        "portwrap.diagnostics.errors",
        "portwrap.diagnostics.log",
        "portwrap.diagnostics.diagnostic",
    ),
    "portwrap.cli": (
        "portwrap.archive",
        "portwrap.cli",
        "portwrap.launch",
        "portwrap.kernel",
        "portwrap.diagnostics",
    ),
    "portwrap.check": ("portwrap.",),
    "portwrap.__main__": ("portwrap.",),
    "batchspawner_portwrap": ("portwrap.",),
}
"""What may be imported where; the package itself has the version only, and all may have it."""


def modules() -> dict[str, Path]:
    """Every module of the product by its name."""
    found = {"batchspawner_portwrap": PROJECT / "batchspawner_portwrap.py"}
    for path in (PROJECT / "portwrap").glob("**/*.py"):
        parts = path.relative_to(PROJECT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the product that this one imports, at its top or in a function."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, *filter(None, [node.module])]) if node.level else node.module
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in known or base in known:
                    yield full if full in known else str(base)


def bench_modules() -> dict[str, Path]:
    """Those of the measurements."""
    return {f"bench.{path.stem}": path for path in (PROJECT / "bench").glob("[!_]*.py")}


def graph() -> dict[str, set[str]]:
    return graph_of(modules())


def graph_of(known: dict[str, Path]) -> dict[str, set[str]]:
    return {name: set(imports_of(name, path, known)) for name, path in known.items()}


def test_the_graph_is_seen() -> None:
    found = graph()
    assert "portwrap.launch.lifeline" in found["portwrap.launch.story"]
    assert "portwrap.launch.ssh_config" in found["portwrap.launch.story"]  # in a function
    assert "portwrap.protocol" in found["portwrap.keeper.setup"]
    assert "portwrap.launch.sandbox" in found["portwrap.launch.startup_line"]  # for types only


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_stay_where_they_belong(place: str) -> None:
    wrong = [
        (name, imported)
        for name, all_imported in graph().items()
        if name == place or name.startswith(f"{place}.")
        for imported in all_imported
        if imported != "portwrap" and not imported.startswith(MAY_IMPORT[place])
    ]
    assert wrong == []


def test_only_remedies_know_who_starts_us() -> None:
    """JupyterHub's and batchspawner's words are in batchspawner_portwrap.py alone."""
    names = re.compile("jupyter|batchspawner(?!-portwrap)", re.IGNORECASE)
    found = {
        name: names.findall(path.read_text().partition("from __future__")[2])
        for name, path in modules().items()
        if name.startswith("portwrap") and not name.startswith("portwrap.diagnostics")
    }
    assert [name for name, words in found.items() if words] == []


def test_every_module_has_its_rule() -> None:
    free = [name for name in modules() if not name.startswith(tuple(MAY_IMPORT))]
    assert free == ["portwrap"]


def cycle_from(start: str, edges: dict[str, set[str]]) -> list[str]:
    """A way from this module back to itself."""
    ways = [[start]]
    seen = set()
    while ways:
        way = ways.pop()
        for following in edges.get(way[-1], ()):
            if following == start:
                return [*way, start]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def test_a_cycle_is_found() -> None:
    assert cycle_from("a", {"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle_from("a", {"a": {"b"}, "b": {"c"}, "c": {"b"}}) == []


def test_no_module_imports_itself_by_others() -> None:
    edges = {**graph(), **graph_of(bench_modules())}
    assert "bench.session" in edges["bench.rig"]
    assert [cycle for name in edges for cycle in [cycle_from(name, edges)] if cycle] == []
