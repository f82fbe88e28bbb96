"""`build.sh --for PYTHON`: byte code for some Pythons, and the sources for every other."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from e2e.test_build import EVENTS, MAX_SIZE, RUN_PATH, assert_starts, our_files
from e2e.test_upgrade import Session

from portwrap import bundle

import byte_code
import pack
from helpers import OWNER, PROJECT, free_port, needs, run_as, wait_until
from pythons import pythons
from sessions import unused_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FROM_BYTE_CODE = "modules from byte code\n"


def build_for(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run build.sh."""
    return subprocess.run(
        [PROJECT / "build.sh", *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def tag_of(python: str | Path) -> str:
    """What byte code of this Python is called."""
    asked = "import sys; print(sys.implementation.cache_tag)"
    return subprocess.check_output([python, "-c", asked], text=True).strip()


def version_of(python: str | Path, archive: Path) -> str:
    """What `--version -v` prints; the last line is where the modules came from."""
    words: list[str | Path] = [python, archive, "--version", "-v"]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout


@pytest.mark.usefixtures("built_by_builder")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_byte_code_is_the_same_in_each_build(tmp_path: Path) -> None:
    options: list[str | Path] = []
    for python in pythons().values():
        options += ["--for", python]
    first, second = tmp_path / "first.pyz", tmp_path / "second.pyz"
    result = build_for(*options, first, PYTHONHASHSEED="1")
    assert result.returncode == 0, result.stderr
    *_, line = result.stdout.splitlines()
    for python in pythons().values():
        assert f"{tag_of(python)} (compiled by Python 3." in line
    different = {"PYTHONHASHSEED": "2", "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONOPTIMIZE": "1"}
    build_for(*options, second, **different, PYTHONNODEBUGRANGES="", PYTHONUTF8="1")
    assert first.read_bytes() == second.read_bytes()
    for python in pythons().values():
        assert version_of(python, first).endswith(FROM_BYTE_CODE)


def test_the_archive_has_byte_code_of_what_a_start_loads(fast_pyz: Path, python: str) -> None:
    modules = {name for name in our_files() if name.endswith(".py")}
    left_out = {name for name in modules if byte_code.NOT_AT_A_START.match(name)}
    assert {"portwrap/check/main.py", "portwrap/diagnostics/remedies.py"} <= left_out
    with zipfile.ZipFile(fast_pyz) as archive:
        content = archive.read(byte_code.BYTE_CODE % tag_of(python))
        assert modules <= {name.partition("/")[2] for name in archive.namelist()}
    _, index = marshal.loads(content[bundle.HEAD :])
    names = [name.replace("/", ".")[: -len(".py")] for name in modules - left_out]
    assert set(index) == {name.replace(".__init__", "") for name in names}


def test_byte_code_of_one_python_leaves_it_small(fast_pyz: Path) -> None:
    assert fast_pyz.stat().st_size < MAX_SIZE


def test_its_python_runs_the_byte_code(fast_pyz: Path, python: str) -> None:
    assert version_of(python, fast_pyz).endswith(FROM_BYTE_CODE)
    assert_starts(run_as(OWNER, [python, fast_pyz, "--version"]))


def others(python: str) -> list[Path]:
    """Pythons whose byte code is another one."""
    return [path for path in pythons().values() if tag_of(path) != tag_of(python)]


def test_other_pythons_run_the_sources(fast_pyz: Path, python: str) -> None:
    assert others(python)
    for other in others(python):
        last = version_of(other, fast_pyz).splitlines()[-1]
        assert last.startswith(
            "modules compiled from the sources at each start; faster: ./build.sh"
        )


def test_byte_code_that_this_python_does_not_know_is_not_run(
    fast_pyz: Path, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tag with another magic number: a version before its release."""
    with zipfile.ZipFile(fast_pyz) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, content in members.items():
        if name.endswith((".pyc", ".bin")):
            members[name] = b"\0\0" + content[2:]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    changed = tmp_path / "changed.pyz"
    changed.write_bytes(pack.archive(members))
    assert "\nmodules compiled from the sources" in version_of(python, changed)


@pytest.mark.namespaces
@pytest.mark.parametrize("forward", ["native", "relay"])
def test_a_session_compiles_nothing(fast_pyz: Path, python: str, forward: str) -> None:
    options = ["--port", str(free_port()), "--forward", forward, "--host-service", "9"]
    result = run_as(OWNER, [python, "-c", EVENTS, fast_pyz, *options, "true"])
    assert result.returncode == 0, result.stderr
    ours = ("/site-", "/__main__")
    assert [event for event in result.stdout.splitlines() if event.startswith(ours)] == []


FROM_SOURCES = "a module is compiled from its source"


THREAD = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
STARTS = {
    "plain": [],
    "in a running Python": ["-c", RUN_PATH],
    "beside a thread": ["-c", THREAD + RUN_PATH],  # which execs that Python again
}


@pytest.fixture
def only_byte_code(fast_pyz: Path, world_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive with sources of which none can be run."""
    with zipfile.ZipFile(fast_pyz) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in members:
        if name.startswith("site-packages/") and name.endswith(".py"):
            members[name] = f"raise RuntimeError({FROM_SOURCES!r})\n".encode()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = world_dir / "only-byte-code.pyz"
    path.write_bytes(pack.archive(members))
    path.chmod(0o755)
    return path


def test_what_no_start_needs_is_run_from_its_source(only_byte_code: Path, python: str) -> None:
    """The control of the test below."""
    result = run_as(OWNER, [python, only_byte_code, "--check"])
    assert result.returncode != 0
    assert FROM_SOURCES in result.stderr


@pytest.mark.namespaces
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "options",
    [
        "--forward native",
        "--forward native --outward helper --publish {other}",
        "--forward relay",
        "--forward relay --outward helper --network none",
        "--forward relay --publish {other} --host-service 9",
        "--network pasta",
    ],
)
def test_a_session_runs_without_the_sources(
    only_byte_code: Path, python: str, options: str, start: str
) -> None:
    if "pasta" in options:
        needs("pasta")
    before = [python, *STARTS[start]]
    words = options.format(other=unused_port()).split()
    session = Session(only_byte_code, *words, before=before)
    try:
        assert "forwarding " in session.first_line
        session.serve()
        wait_until(session.answers, 20, "the server answers")
    finally:
        session.end()


@pytest.mark.namespaces
def test_a_session_starts_in_a_running_python(fast_pyz: Path, python: str) -> None:
    command = ["--port", str(free_port()), "sh", "-c", "exit 7"]
    result = run_as(OWNER, [python, "-c", RUN_PATH, fast_pyz, *command])
    assert (result.returncode, result.stderr) == (7, "")


@pytest.mark.namespaces
def test_the_check_of_byte_code(pyz: Path, fast_pyz: Path, python: str) -> None:
    found = {}
    for archive in (pyz, fast_pyz):
        result = run_as(OWNER, [python, archive, "--check", "--json"])
        checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
        found[archive] = checks["byte code"]
    assert found[fast_pyz]["status"] == "ok"
    assert found[pyz]["status"] == "warning"
    assert found[pyz]["fact"].endswith(": each start compiles the modules")
    assert found[pyz]["remedy"].endswith(f"Build the file with './build.sh --for {python}'.")


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--for"], 2, "--for needs a Python"),
        (["--for="], 2, "--for needs a Python"),
        (["--form", "python3"], 2, "unknown option: --form"),
        (["one.pyz", "two.pyz"], 2, "more than one OUTPUT: two.pyz"),
        (["--for", "/nowhere/python"], 1, "--for /nowhere/python: not a Python 3.8 or newer"),
        (["--for=true"], 1, "--for true: not a Python 3.8 or newer"),
    ],
)
def test_what_it_does_not_build(
    options: list[str], status: int, message: str, tmp_path: Path
) -> None:
    result = subprocess.run(
        [PROJECT / "build.sh", *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == status, result.stdout
    assert result.stderr.startswith(f"build.sh: {message}")
    assert list(tmp_path.iterdir()) == []
