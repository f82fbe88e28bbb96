"""Coverage of the programs that the tests start: `tests/run.sh coverage`.

They exec, fork, leave without Python's farewell, and the keeper runs from text in an interpreter
without site-packages. So the tests' own copy of the package begins to measure by itself, and saves
before each exec and exit. The product knows nothing of it. Who is killed by SIGKILL saves nothing.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

FOLDER = os.environ.get("PORTWRAP_TEST_COVERAGE", "")
"""Where the data goes, which every account can write to; "": nothing is measured."""

FLOOR = 90.0
"""The percentage of lines below which `tests/run.sh coverage` fails."""

HOOK = """
import sys
sys.path.append({site!r})
import atexit, coverage, os, posix
measured = coverage.Coverage({folder!r} + "/data", data_suffix=True, config_file={config!r})
measured.start()

def save():
    measured.stop()
    measured.save()
    measured.get_data().close()

def saving(function):
    def save_first(*words):
        save()
        try:
            return function(*words)
        finally:
            measured.start()  # it has failed
    return save_first

atexit.register(save)
for module in (os, posix):
    for name in ("_exit", "execv", "execve"):
        setattr(module, name, saving(getattr(posix, name)))
"""


def hook() -> str:
    """What begins to measure the process that runs it."""
    return HOOK.format(
        site=sysconfig.get_path("platlib"), folder=FOLDER, config=str(PROJECT / "pyproject.toml")
    )


def begin() -> None:
    """Measure this process, which is that of the tests."""
    if FOLDER:
        exec(hook(), {})


def prepare(package: Path) -> None:
    """Have this copy of the package measure itself, where that is asked for."""
    if not FOLDER:
        return
    code = hook()
    start = package / "__init__.py"
    # exec, so that the lines keep their numbers
    first = "from __future__ import annotations"
    start.write_text(start.read_text().replace(first, f"{first}; exec({code!r}, {{}})"))


# ---- the table -------------------------------------------------------------------------------


def original(path: str) -> str:
    """The file of the project that this one is a copy of, wherever the copy was."""
    _, _, name = path.rpartition("/portwrap/")
    inside = name != path
    return str(PROJECT / "portwrap" / name if inside else PROJECT / Path(path).name)


def report() -> float:
    """Print the table of all that was measured. Returns the percentage."""
    from coverage import Coverage, CoverageData
    from coverage.exceptions import CoverageException

    together = CoverageData(f"{FOLDER}/together")
    for path in Path(FOLDER).glob("data.*"):
        part = CoverageData(str(path))
        try:
            part.read()
        except CoverageException:
            continue  # it was killed while it saved
        together.update(part, map_path=original)
    together.write()
    whole = Coverage(f"{FOLDER}/together", config_file=str(PROJECT / "pyproject.toml"))
    whole.load()
    return whole.report()


if __name__ == "__main__":
    if not FOLDER:
        sys.exit("measure.py: tests/run.sh coverage runs it")
    sys.exit(report() < FLOOR)
