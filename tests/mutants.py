#!/usr/bin/env python3
"""Take out the guards of the product one at a time, and see whether a test misses each.

    tests/mutants.py [--jobs N] [WORD ...]    only those whose file or name has one of the words

A guard is a few words of the product without which everything still seems to work: they keep out
a neighbour, a leak, a race. `guards.py` lists them, with the tests that are nearest to each. In a
copy of the tree each is replaced by what would be there without it, and these tests must fail then;
the same tests must pass in the copy as it is. Ends with status 1 if a guard is missed by no test.

Takes most of an hour, and is no part of CI: run it after a change to what the list names.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

TESTS = Path(__file__).resolve().parent
PROJECT = TESTS.parent
sys.path.insert(0, str(TESTS))

from guards import GUARDS, Guard  # noqa: E402

PYTHON = os.environ.get("PORTWRAP_TEST_ROOT", "/opt/portwrap-tests") + "/venv/bin/python"
PYTEST = (PYTHON, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=line")
LIMIT = 900
"""Seconds after which a run is ended: to wait for ever is a failure, too."""
CAUGHT, SURVIVED, BROKEN = "caught", "SURVIVED", "BROKEN"
PASSED, FAILED = 0, 1
"""Exit statuses of pytest; others are about the selection, which is a fault of the list."""


class Copy:
    """A copy of the tree, in which guards are taken out."""

    def __init__(self, place: Path) -> None:
        self.place = place
        # Folders above it must be open to the accounts of the tests.
        shutil.copytree(PROJECT, place, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))

    def run(self, tests: str) -> int:
        """The exit status of pytest for these tests; FAILED if they come to no end."""
        words = [*PYTEST, *shlex.split(tests)]
        log = open(self.place.parent / f"{self.place.name}.log", "w")
        with log, subprocess.Popen(
            words,
            cwd=self.place / "tests",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process:
            try:
                return process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                return FAILED

    def without(self, guard: Guard) -> int:
        """The same for the tests of this guard, while it is out."""
        file = self.place / guard.file
        whole = file.read_text()
        file.write_text(guard.taken_out_of(whole))
        try:
            return self.run(guard.tests)
        finally:
            file.write_text(whole)


NOT_COPIED = (".git", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", "*.egg-info")


class Trial:
    """Tries guards in a number of copies at once."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.copies: Queue[Copy] = Queue()
        for number in range(jobs):
            self.copies.put(Copy(folder / f"copy{number}"))
        self.jobs = jobs
        self.controls: dict[str, int] = {}  # what became of tests in the tree as it is

    def outcome(self, guard: Guard) -> tuple[str, float]:
        """What became of it, and the seconds that it took."""
        copy = self.copies.get()
        began = time.monotonic()
        try:
            found = {FAILED: CAUGHT, PASSED: SURVIVED}.get(copy.without(guard), BROKEN)
            if found == CAUGHT and self.control(copy, guard.tests) != PASSED:
                found = BROKEN  # they fail anyway
        finally:
            self.copies.put(copy)
        return found, time.monotonic() - began

    def control(self, copy: Copy, tests: str) -> int:
        if tests not in self.controls:
            self.controls[tests] = copy.run(tests)
        return self.controls[tests]

    def of_all(self, guards: list[Guard]) -> list[Guard]:
        """Try these, print a line for each, and return those that are not caught."""
        left = []
        with ThreadPoolExecutor(self.jobs) as pool:
            for guard, (found, seconds) in zip(guards, pool.map(self.outcome, guards)):
                print(f"{found:<9} {seconds:5.0f} s  {guard}", flush=True)
                if found != CAUGHT:
                    left.append(guard)
        return left


def main() -> int:
    parser = argparse.ArgumentParser(
        description="take out guards one at a time, and run their tests"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (default 2)")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("words", nargs="*", help="only those whose file or name has one of these")
    options = parser.parse_args()
    chosen = [
        guard
        for guard in GUARDS
        if not options.words or any(word in str(guard) for word in options.words)
    ]
    if options.list:
        print(*chosen, sep="\n")
        return 0
    os.nice(10)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # a background job ignores them; the tests send them
    with tempfile.TemporaryDirectory(prefix="portwrap-mutants-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        left = Trial(Path(folder), options.jobs).of_all(chosen)
    print(f"{len(chosen)} guards, {len(chosen) - len(left)} of them caught")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
