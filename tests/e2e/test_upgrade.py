"""The archive on the site's share is replaced while sessions run, with care (`mv`) or not (`cp`).

A running session goes on with what it has, and a new one gets the new file. The server begins to
listen only after the upgrade: what serves it then must have been in memory.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import zipfile
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, Sequence

import pytest

import pack
from helpers import OWNER, as_user, end, environment, run_as, wait_until
from sessions import DRIVER, MARK, bearers_of, holders_of, kill, name_of, unused_port

pytestmark = [pytest.mark.e2e, pytest.mark.namespaces]

NEW = "99.0"
WAITING_SERVER = 'read -r _; exec python3 -m http.server --bind 127.0.0.1 "${1#--port=}"'


@pytest.fixture(params=["pyz", "fast_pyz"], ids=["sources", "byte-code"])
def built(request: pytest.FixtureRequest, pyz: Path, fast_pyz: Path) -> Path:
    """The archive, without byte code and with it."""
    return {"pyz": pyz, "fast_pyz": fast_pyz}[request.param]


@pytest.fixture
def newer(built: Path, world_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another version of the archive, in which everything stands in another place."""
    with zipfile.ZipFile(built) as old:
        # Without byte code, which would have the old version.
        kept = [name for name in old.namelist() if not name.endswith((".pyc", ".bin"))]
        members = {name: old.read(name) for name in kept}
    members["__init__.py"] = 12345 * b"#"  # comes first
    members["site-packages/portwrap/__init__.py"] += f'__version__ = "{NEW}"\n'.encode()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = world_dir / "newer.pyz"
    path.write_bytes(pack.archive(members))
    path.chmod(0o755)
    return path


@pytest.fixture
def share(built: Path, world_dir: Path) -> Path:
    """The archive as it stands on the site's share."""
    place = world_dir / "share"
    place.mkdir(mode=0o755)
    return Path(shutil.copy2(built, place / "batchspawner-portwrap.pyz"))


def rename_over(new: Path, archive: Path) -> None:
    subprocess.run(["mv", new, archive], check=True)


def write_over(new: Path, archive: Path) -> None:
    before = archive.stat().st_ino
    subprocess.run(["cp", new, archive], check=True)
    assert archive.stat().st_ino == before


def remove(_: Path, archive: Path) -> None:
    archive.unlink()


class Session:
    """A server that begins to listen when it is told to."""

    def __init__(self, archive: Path, *options: str, before: Sequence[str] = ()) -> None:
        """`before` are words that start the archive."""
        self.port = unused_port()
        self.mark = f"upgrade-{self.port}"
        words = [*before, str(archive), "--port", str(self.port), *options]
        self.process = as_user(
            OWNER,
            [*words, "sh", "-c", WAITING_SERVER, "sh"],
            env=environment(OWNER, {"PORTWRAP_QUIET": "0", MARK: self.mark}),
            stdin=subprocess.PIPE,
        )
        assert self.process.stderr
        self.first_line = self.process.stderr.readline()

    def serve(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def end(self) -> None:
        for pid in bearers_of(self.mark, self.process.pid):
            kill(pid)
        end(self.process)


@pytest.fixture
def start() -> Iterator[Callable[[Path, str], Session]]:
    """Starts sessions; they are ended after the test."""
    sessions: list[Session] = []

    def start_one(archive: Path, forward: str) -> Session:
        sessions.append(Session(archive, "--forward", forward))
        return sessions[-1]

    yield start_one
    for session in sessions:
        session.end()


@pytest.mark.parametrize("forward", ["native", "relay"])
@pytest.mark.parametrize("replace", [rename_over, write_over, remove])
def test_a_running_session_goes_on_and_a_new_one_gets_the_new_file(
    start: Callable[[Path, str], Session],
    share: Path,
    newer: Path,
    replace: Callable[[Path, Path], None],
    forward: str,
) -> None:
    old = start(share, forward)
    assert f" ({forward}), " in old.first_line, old.first_line
    replace(newer, share)
    old.serve()
    wait_until(old.answers, 20, "the old session's server answers")
    if share.exists():
        new = start(share, forward)
        assert f" (version {NEW})" in new.first_line
        new.serve()
        wait_until(new.answers, 20, "the new session's server answers")
    # And it ends as it should: the helper's death is told, and the server ends.
    helper = next(pid for pid in bearers_of(old.mark, old.process.pid) if name_of(pid) == DRIVER)
    os.kill(helper, 9)
    assert old.process.wait(10) == -15
    wait_until(lambda: not bearers_of(old.mark, old.process.pid), 10, "the end of every process")
    wait_until(lambda: not holders_of(old.port), 10, "the port free")
    assert old.process.stderr
    told = old.process.stderr.read()
    assert f"{DRIVER} ended by signal 9; ending the command (SIGTERM)" in told
    assert "Traceback" not in told


# The keeper imports some of its modules when the command has begun.
WRITTEN_OVER = """
import os, sys
_, archive = sys.argv
sys.path.insert(0, archive + "/site-packages")
from portwrap.launch import keeper_process
place, descriptor = keeper_process.open_modules()
with open(archive, "r+b") as file:
    before = file.read()
    file.seek(0)
    file.write(bytes(len(before)))
assert place == f"/proc/self/fd/{descriptor}/site-packages", place
assert os.pread(descriptor, len(before) + 1, 0) == before
"""


def test_what_the_keeper_imports_from_cannot_be_written_over(share: Path, python: str) -> None:
    result = subprocess.run(
        [python, "-c", WRITTEN_OVER, share], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


# ---- a start in the very moment of a careless `cp` ----------------------------------------------

# Stops before the import of one module, until it hears a line.
PAUSED_START = """
import runpy, sys
_, archive, pause, port = sys.argv
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == pause:
            print("paused", flush=True)
            sys.stdin.readline()
sys.meta_path.insert(0, Finder())
sys.argv = [archive, "--port", port, "echo", "it ran"]
runpy.run_path(archive, run_name="__main__")
"""


PAUSES = ("batchspawner_portwrap", "portwrap.launch.services")


def start_while(
    replaced: Callable[[], None], python: str, share: Path, pause: str
) -> tuple[int, str, str]:
    """A start that is paused there while this happens: its status, output and errors."""
    argv = [python, "-c", PAUSED_START, str(share), pause, str(unused_port())]
    process = as_user(OWNER, argv, stdin=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == "paused\n"
        replaced()
        stdout, stderr = process.communicate("go\n", timeout=20)
    finally:
        end(process)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("built", ["pyz"], indirect=True, ids=["sources"])
@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("replace", [rename_over, write_over, remove])
def test_a_start_that_reads_two_versions_says_so_and_runs_nothing(
    share: Path, newer: Path, python: str, pause: str, replace: Callable[[Path, Path], None]
) -> None:
    """It knows where things stood in the old file. Bytes of the new one there make no module."""
    replaced = partial(replace, newer, share)
    status, stdout, stderr = start_while(replaced, python, share, pause)
    assert status == 125, stderr
    assert stdout == ""
    first, second = stderr.splitlines()
    assert first.startswith(f"batchspawner-portwrap: {share} was replaced while it started: ")
    assert second == "  Start it again."


@pytest.mark.namespaces
@pytest.mark.parametrize("built", ["fast_pyz"], indirect=True, ids=["byte-code"])
@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("replace", [rename_over, write_over, remove])
def test_a_start_from_byte_code_has_all_of_it_from_the_beginning(
    share: Path, newer: Path, python: str, pause: str, replace: Callable[[Path, Path], None]
) -> None:
    replaced = partial(replace, newer, share)
    status, stdout, stderr = start_while(replaced, python, share, pause)
    assert (status, stdout) == (0, "it ran --port=8888\n"), stderr
    assert NEW not in stderr


def test_an_import_that_fails_is_no_upgrade(share: Path, python: str) -> None:
    """The control of the test above: the same failure in a file that nobody has touched."""
    broken = PAUSED_START.replace("sys.stdin.readline()", "raise OSError('of the test')")
    argv = [python, "-c", broken, str(share), "portwrap.launch.services", str(unused_port())]
    result = run_as(OWNER, argv)
    assert result.returncode == 125
    first, _ = result.stderr.splitlines()
    assert first.endswith(f"{share} cannot be loaded: OSError: of the test")
