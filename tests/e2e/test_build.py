"""The archive: built twice it is the same, holds only what it should, and starts everywhere."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Iterator, Sequence

import pytest

from helpers import OWNER, PROJECT, as_user, cannot, end, environment, free_port, needs, run_as

pytestmark = pytest.mark.e2e
built_by_builder = pytest.mark.usefixtures("built_by_builder")

MAX_SIZE = 1_000_000  # bytes
SOURCES = ("archive", "build.sh", "pyproject.toml", "batchspawner_portwrap.py", "portwrap", "share")
TEXTS = ("README.md", "LICENSE")
SHIV = {"__main__.py"}  # ours in its place
DIST_INFO = {"METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def project_version() -> str:
    text = (PROJECT / "portwrap" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert match
    return match[1]


def assert_starts(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"batchspawner-portwrap {project_version()}\n"
    assert result.stderr == ""


@pytest.fixture
def account() -> str:
    """The account that starts the archive: pw-owner, made by tests/setup.sh."""
    if os.geteuid() != 0:
        cannot("needs root, to act as another account")
    return OWNER


@pytest.fixture
def new_home(world_dir: Path, account: str) -> Path:
    """An empty home directory of the account."""
    path = world_dir / "new home"
    path.mkdir()
    shutil.chown(path, account)
    return path


# ---- the build --------------------------------------------------------------------------------


def copy_of_the_sources(target: Path) -> Path:
    """What the build reads, and nothing else: no git, no output of an earlier build."""
    target.mkdir()
    for name in SOURCES:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, target / name)  # with its __pycache__, if any
        else:
            shutil.copy2(source, target / name)
    for name in TEXTS:
        shutil.copyfile(PROJECT / name, target / name)
    return target


def another_python() -> str | None:
    """The oldest Python of another version than the one that `build.sh` takes by itself."""
    root = Path(os.environ.get("PORTWRAP_TEST_ROOT", "/opt/portwrap-tests"))
    found = [path for path in root.glob("venv-3.*/bin/python") if path.exists()]
    found.sort(key=lambda path: int(path.parts[-3].rpartition(".")[2]))
    return str(found[0].resolve()) if found else None


def build(project: Path, output: Path, **extra_env: str) -> str:
    """Run build.sh and return what it printed."""
    return subprocess.run(
        [project / "build.sh", output],
        env={**os.environ, **extra_env},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_builds_give_the_same_bytes(tmp_path: Path, pyz: Path) -> None:
    second = tmp_path / "second.pyz"
    # As different as two builds can be: other Python, time zone, umask, place, file times, no git.
    sources = copy_of_the_sources(tmp_path / "a copy")
    for path in sources.rglob("*"):
        path.chmod(path.stat().st_mode | 0o070)
        os.utime(path, (1e9, 1e9))
    other = another_python()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    different = {
        "TZ": "Asia/Tokyo",
        "TMPDIR": str(temporary),
        **({"PYTHON": other} if other else {}),
    }
    old_umask = os.umask(0o077)
    try:
        build(sources, second, **different)
    finally:
        os.umask(old_umask)
    assert list(temporary.iterdir()) == [], "the build left something behind"
    assert pyz.read_bytes() == second.read_bytes()
    assert second.stat().st_mode & 0o7777 == 0o755
    assert sorted(path.name for path in sources.iterdir()) == sorted([*SOURCES, *TEXTS])


@built_by_builder
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_changed_source_changes_the_bytes(tmp_path: Path, pyz: Path) -> None:
    """The control of the test above: a build that always gave the same file would be no build."""
    sources = copy_of_the_sources(tmp_path / "copy")
    with (sources / "portwrap" / "__init__.py").open("a") as file:
        file.write("# changed\n")
    build(sources, tmp_path / "changed.pyz")
    assert (tmp_path / "changed.pyz").read_bytes() != pyz.read_bytes()


def times_in(archive: Path) -> set[tuple[int, ...]]:
    """When the members of the archive were made, it says."""
    with zipfile.ZipFile(archive) as file:
        return {info.date_time for info in file.infolist()}


@built_by_builder
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_build_prints_path_size_and_sum_and_renames_into_place(tmp_path: Path) -> None:
    output = tmp_path / "out" / "here.pyz"
    output.parent.mkdir()
    output.write_text("the old one")
    with output.open() as running:
        printed = build(PROJECT, output, TMPDIR=str(tmp_path), SOURCE_DATE_EPOCH="1700000000")
        assert running.read() == "the old one"
    size = output.stat().st_size
    total = subprocess.check_output(["sha256sum", output], text=True).split()[0]
    assert printed == (
        f"{output}\n{size} bytes, sha256 {total}\n"
        "no byte code: each start compiles the sources; --for PYTHON adds it for that Python\n"
    )
    assert list(output.parent.iterdir()) == [output]
    assert list(tmp_path.iterdir()) == [output.parent], "the build left something behind"
    assert times_in(output) == {(2023, 11, 14, 22, 13, 20)}, "not SOURCE_DATE_EPOCH"


@built_by_builder
@pytest.mark.timeout(300)
def test_what_builds_it_is_pinned_by_its_hash(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path / "copy")
    pinned = sources / "archive" / "requirements.txt"
    text = pinned.read_text()
    for line in text.splitlines():
        assert re.search(r"^#|==.* --hash=sha256:[0-9a-f]{64}$", line), line
    hash_of_shiv = re.search(r"^shiv==.*sha256:(.*)$", text, re.MULTILINE)
    assert hash_of_shiv
    pinned.write_text(text.replace(hash_of_shiv[1], "0" * 64))
    result = subprocess.run(
        [sources / "build.sh", tmp_path / "none.pyz"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "DO NOT MATCH THE HASHES" in result.stderr
    assert not (tmp_path / "none.pyz").exists()


@built_by_builder
@pytest.mark.timeout(300)
def test_a_failed_build_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path / "copy")
    (sources / "portwrap" / "__init__.py").write_text("no version\n")
    output = tmp_path / "old.pyz"
    output.write_text("the old one")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    result = subprocess.run(
        [sources / "build.sh", output],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert "build.sh: failed: " in result.stderr
    assert output.read_text() == "the old one"
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "old.pyz", "tmp"]


# ---- what is in it ----------------------------------------------------------------------------


def our_files() -> set[str]:
    """What is installed: the modules, and what the package says of itself."""
    ours = {"batchspawner_portwrap.py"}
    ours |= {str(path.relative_to(PROJECT)) for path in (PROJECT / "portwrap").rglob("*.py")}
    dist_info = f"batchspawner_portwrap-{project_version()}.dist-info"
    return ours | {f"{dist_info}/{name}" for name in DIST_INFO}


def shared_files() -> set[str]:
    """What pip installs beside the commands: manual pages and completions."""
    names = ("batchspawner-portwrap", "portwrap")
    pages = {f"share/man/man1/{name}.1" for name in names}
    return pages | {f"share/bash-completion/completions/{name}" for name in names}


def expected_members() -> set[str]:
    return SHIV | {f"site-packages/{name}" for name in our_files()}


def test_the_archive_holds_only_ours_and_shivs(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        assert set(archive.namelist()) == expected_members()
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist() == sorted(archive.namelist())
        assert archive.read("__main__.py") == (PROJECT / "archive/__main__.py").read_bytes()
        for path in (PROJECT / "portwrap").rglob("*.py"):
            name = path.relative_to(PROJECT)
            assert archive.read(f"site-packages/{name}") == path.read_bytes()


def test_the_archive_is_small_and_an_executable_script(pyz: Path) -> None:
    content = pyz.read_bytes()
    assert len(content) < MAX_SIZE
    assert content.startswith(b"#!/usr/bin/env python3\n# crc32 ")
    built = PROJECT / "dist" / pyz.name
    assert built.stat().st_mode & 0o7777 == 0o755


def test_the_archive_is_as_old_as_every_other_build(pyz: Path) -> None:
    if "SOURCE_DATE_EPOCH" in os.environ:
        pytest.skip("SOURCE_DATE_EPOCH is set: the archive has that time")
    assert times_in(pyz) == {(2020, 1, 1, 0, 0, 0)}


# ---- wheel and sdist --------------------------------------------------------------------------


def make_venv(folder: Path, python: str = sys.executable) -> Path:
    """A new virtual environment; its Python."""
    # Python 3.8 leaves its pip's list of authorities there.
    env = {**os.environ, "TMPDIR": str(folder.parent)}
    subprocess.run([python, "-m", "venv", folder], check=True, env=env)
    return folder / "bin" / "python"


def pip_install(python: Path, *words: str | Path, home: Path) -> None:
    """Have pip install something there; `home` has its configuration, and git's."""
    quietly = ("--quiet", "--disable-pip-version-check")
    command = [str(word) for word in (python, "-m", "pip", "install", *quietly, *words)]
    env = {**os.environ, "HOME": str(home)}
    result = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, builder: Path) -> Path:
    """A folder with the wheel and the sdist of this checkout, made by what build.sh uses."""
    folder = tmp_path_factory.mktemp("packages")
    python = make_venv(folder / "venv", str(builder))
    pinned = PROJECT / "archive" / "requirements.txt"
    pip_install(python, "--no-deps", "--require-hashes", "-r", pinned, home=folder)
    command = [str(python), "-m", "hatchling", "build", "--directory", str(folder / "made")]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    return folder / "made"


@pytest.fixture
def sdist(packages: Path, tmp_path: Path) -> Path:
    """The sdist, unpacked."""
    name = f"batchspawner_portwrap-{project_version()}"
    subprocess.run(["tar", "-C", tmp_path, "-xzf", packages / f"{name}.tar.gz"], check=True)
    return tmp_path / name


def tracked_files() -> set[str]:
    """The files of this checkout that git knows."""
    command = ["git", "-c", f"safe.directory={PROJECT}", "-C", str(PROJECT), "ls-files", "-z"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        cannot(f"not a git checkout: {result.stderr.strip()}")
    return {name for name in result.stdout.split("\0") if name and (PROJECT / name).exists()}


@pytest.mark.timeout(120)
def test_the_wheel_holds_only_ours_and_needs_nothing(packages: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    assert wheel.name == f"batchspawner_portwrap-{project_version()}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        dist_info = f"batchspawner_portwrap-{project_version()}.dist-info"
        metadata = archive.read(f"{dist_info}/METADATA").decode()
        data = f"batchspawner_portwrap-{project_version()}.data/data"
        shared = {f"{data}/{name}" for name in shared_files()}
        assert set(archive.namelist()) == our_files() | shared | {f"{dist_info}/RECORD"}
    headers = metadata.partition("\n\n")[0]
    assert "Requires-Dist" not in headers
    assert "\nRequires-Python: >=3.8\n" in headers


@pytest.mark.timeout(120)
def test_the_sdist_holds_every_file_of_the_project(sdist: Path) -> None:
    found = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert found - {"PKG-INFO"} == tracked_files() - {"dist/.gitignore"}


@built_by_builder
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sdist_builds_the_same_archive(sdist: Path, pyz: Path) -> None:
    build(sdist, sdist / "dist" / "built.pyz")
    assert (sdist / "dist" / "built.pyz").read_bytes() == pyz.read_bytes()


@pytest.mark.slow
@pytest.mark.namespaces
@pytest.mark.timeout(300)
@pytest.mark.parametrize("source", ["checkout", "git"])
def test_pip_installs_both_commands(source: str, world_dir: Path, account: str) -> None:
    """From a directory, and from a git URL by the oldest Python that there is."""
    words, made_with = str(PROJECT), sys.executable
    if source == "git":
        tracked_files()  # or there is no git here
        words, made_with = f"git+file://{PROJECT}", another_python() or sys.executable
        # git's daemon, on the other side, refuses a checkout that belongs to somebody else.
        (world_dir / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    python = make_venv(world_dir / "venv", made_with)
    pip_install(python, words, home=world_dir)
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format=freeze"], text=True)
    names = {line.partition("==")[0] for line in listed.splitlines()}
    assert names - {"pip", "setuptools"} == {"batchspawner-portwrap"}
    for name in shared_files():
        assert (python.parent.parent / name).read_text() == (PROJECT / name).read_text()
    for name, option in (("batchspawner-portwrap", "--port"), ("portwrap", "-p")):
        program = python.parent / name
        version = run_as(account, [program, "--version"])
        assert version.stdout == f"{name} {project_version()}\n", version.stderr
        session = [str(program), option, str(free_port()), "sh", "-c", "exit 7"]
        assert run_as(account, session).returncode == 7
        # As batchspawner-singleuser does it.
        assert run_as(account, [python, "-c", RUN_PATH, *session]).returncode == 7


# ---- how it starts ----------------------------------------------------------------------------

RUN_PATH = """
import runpy, shutil, sys
sys.argv = sys.argv[1:]
runpy.run_path(shutil.which(sys.argv[0]), run_name="__main__")
"""


@pytest.fixture(params=["portwrap.pyz", "a path/with two  spaces.pyz"])
def placed(request: pytest.FixtureRequest, pyz: Path, world_dir: Path) -> Path:
    """A copy of the archive, once with spaces in its path."""
    target: Path = world_dir / request.param
    target.parent.mkdir(mode=0o755, exist_ok=True)
    shutil.copy2(pyz, target)
    return target


def test_it_starts_as_a_script(placed: Path, account: str) -> None:
    assert_starts(run_as(account, [placed, "--version"]))


def test_it_starts_by_its_bare_name(placed: Path, account: str) -> None:
    path = f"{placed.parent}:{environment(account)['PATH']}"
    assert_starts(run_as(account, ["env", placed.name, "--version"], extra_env={"PATH": path}))


def test_it_starts_from_a_relative_path(placed: Path, account: str) -> None:
    argv = ["./" + placed.name, "--version"]
    assert_starts(run_as(account, ["env", *argv], cwd=placed.parent))


def test_it_starts_with_a_named_python(placed: Path, account: str, python: str) -> None:
    assert_starts(run_as(account, [python, placed, "--version"]))
    assert_starts(
        run_as(account, [python, "-I", "-S", placed.name, "--version"], cwd=placed.parent)
    )


@pytest.mark.parametrize("by", ["absolute path", "bare name"])
def test_it_starts_in_a_running_python(placed: Path, account: str, python: str, by: str) -> None:
    """As batchspawner-singleuser does it: `runpy.run_path` of what it found on PATH."""
    word = str(placed) if by == "absolute path" else placed.name
    path = f"{placed.parent}:{environment(account)['PATH']}"
    result = run_as(account, [python, "-c", RUN_PATH, word, "--version"], extra_env={"PATH": path})
    assert_starts(result)


def test_ours_win_over_other_packages_of_the_same_name(
    pyz: Path, account: str, python: str, world_dir: Path
) -> None:
    (world_dir / "portwrap.py").write_text("raise SystemExit('the wrong portwrap')\n")
    (world_dir / "batchspawner_portwrap.py").write_text("raise SystemExit('the wrong one')\n")
    path = str(world_dir)
    # The control: that directory does come before the others.
    control = run_as(account, [python, "-c", "import portwrap"], extra_env={"PYTHONPATH": path})
    assert control.stderr == "the wrong portwrap\n"
    result = run_as(account, [pyz, "--version"], cwd=world_dir, extra_env={"PYTHONPATH": path})
    assert_starts(result)


@pytest.mark.timeout(120)
def test_fifty_first_starts_at_once(pyz: Path, account: str, new_home: Path) -> None:
    home = {"HOME": str(new_home)}
    processes = [as_user(account, [pyz, "--version"], extra_env=home) for _ in range(50)]
    try:
        for process in processes:
            stdout, stderr = process.communicate(timeout=60)
            assert_starts(
                subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
            )
    finally:
        for process in processes:
            end(process)
    assert list(new_home.iterdir()) == []


# ---- it writes nothing ------------------------------------------------------------------------

# What opens a file for writing, or changes a directory.
WRITES = re.compile(
    r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC"
    r"|\b(creat|mkdir|mkdirat|mknod|mknodat|rename|renameat2?|unlink|unlinkat|rmdir"
    r"|link|linkat|symlink|symlinkat|truncate|chmod|fchmodat2?|utimensat|setxattr)\("
)

KERNELS_FILE = re.compile(r'"(/proc|/dev)/')


def writes_of(account: str, argv: Sequence[str | Path], home: Path) -> list[str]:
    """System calls of the command and its children that write to the file system, per strace."""
    trace = home.parent / "trace"
    trace.touch()
    trace.chmod(0o666)
    strace = ["strace", "-f", "-qq", "-e", "trace=file", "-o", str(trace), "--"]
    assert_starts(run_as(account, [*strace, *argv], extra_env={"HOME": str(home)}))
    calls = trace.read_text().splitlines()
    assert any("batchspawner" in call for call in calls), "strace saw nothing"
    return [call for call in calls if WRITES.search(call) and "/dev/null" not in call]


def test_it_writes_no_file(pyz: Path, account: str, new_home: Path) -> None:
    needs("strace")
    assert writes_of(account, [pyz, "--version"], new_home) == []
    assert list(new_home.iterdir()) == []


@pytest.mark.namespaces
def test_a_session_writes_no_file(pyz: Path, account: str, new_home: Path) -> None:
    needs("strace")
    script = '"$0" --version; exec "$0" --port "$1" true'
    argv = ["sh", "-c", script, str(pyz), str(free_port())]
    # The id maps, /dev/net/tun and the like are files of the kernel's.
    calls = [call for call in writes_of(account, argv, new_home) if not KERNELS_FILE.search(call)]
    assert calls == []
    assert list(new_home.iterdir()) == []


def test_the_search_for_writes_finds_them(pyz: Path, account: str, new_home: Path) -> None:
    """The control of the test above."""
    needs("strace")
    script = f'{pyz} --version; mkdir "$HOME/x"; echo x > "$HOME/x/y"'
    assert len(writes_of(account, ["sh", "-c", script], new_home)) == 2


@pytest.fixture(params=["missing", "read-only", "full", "not ours"])
def home(request: pytest.FixtureRequest, world_dir: Path) -> Iterator[str]:
    """A home directory that nothing can be written to; each is shown to be so."""
    path = world_dir / "home"
    if request.param == "missing":
        yield str(path)
        return
    path.mkdir(mode=0o777 if request.param != "not ours" else 0o755)
    if request.param == "not ours":
        yield str(path)
        return
    path.chmod(0o777)
    # A file system of one page: used up, or made read-only.
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k,mode=777", "none", str(path)]
    if subprocess.run(mount, check=False).returncode != 0:
        cannot("this machine lets root mount nothing")
    try:
        if request.param == "full":
            (path / "filler").write_bytes(b"x" * 4096)
        else:
            subprocess.run(["mount", "-o", "remount,ro", path], check=True)
        yield str(path)
    finally:
        subprocess.run(["umount", path], check=True)


def test_it_starts_whatever_the_home_is(pyz: Path, account: str, home: str) -> None:
    control = run_as(account, ["sh", "-c", f"echo x > {home}/file"])
    assert control.returncode != 0, "this home can be written to: the test would show nothing"
    for extra in ({}, {"TMPDIR": home, "XDG_CACHE_HOME": home, "SHIV_ROOT": home}):
        assert_starts(run_as(account, [pyz, "--version"], extra_env={"HOME": home, **extra}))


@pytest.mark.namespaces
def test_a_session_runs_whatever_the_home_is(pyz: Path, account: str, home: str) -> None:
    argv = [str(pyz), "--port", str(free_port()), "sh", "-c", 'echo "$@"; exit 7', "sh"]
    result = run_as(account, argv, extra_env={"HOME": home, "TMPDIR": home})
    assert result.returncode == 7, result.stderr
    assert (result.stdout, result.stderr) == ("--port=8888\n", "")


def test_it_starts_without_a_home(pyz: Path, account: str) -> None:
    variables = environment(account)
    del variables["HOME"]
    assert_starts(run_as(account, [pyz, "--version"], env=variables))


EVENTS = """
import runpy, sys
events = []
def watch(event, arguments):
    if event == "compile" and sys.argv[0] in str(arguments[1]):
        events.append(arguments[1][len(sys.argv[0]) :])
    elif event == "os.posix_spawn":
        events.append("the keeper begins")
    elif event == "os.exec":
        print(*events, sep="\\n", flush=True)
sys.argv = sys.argv[1:]
sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.namespaces
def test_each_module_is_compiled_once_and_the_keeper_begins_meanwhile(
    pyz: Path, account: str, python: str
) -> None:
    words = [python, "-c", EVENTS, pyz, "--port", str(free_port()), "true"]
    result = run_as(account, list(map(str, words)))
    assert result.returncode == 0, result
    events = result.stdout.splitlines()
    modules = [event for event in events if event.startswith("/site-packages/")]
    assert len(modules) > 20
    # The two that come before those that have it so.
    twice = {module for module in modules if modules.count(module) > 1}
    assert twice <= {f"/site-packages/portwrap/{name}.py" for name in ("__init__", "archive")}
    before = events[: events.index("the keeper begins")]
    assert "/site-packages/portwrap/launch/keeper_process.py" in before
    assert "/site-packages/portwrap/launch/story.py" not in before


KEEPERS_IMPORTS = """
import sys
events = []
def watch(event, arguments):
    if event == "compile" and sys.argv[1] in str(arguments[1]):
        events.append(arguments[1][len(sys.argv[1]) :])
sys.addaudithook(watch)
tree = sys.argv[1] + "/site-packages"
sys.path[:0] = [tree]
from portwrap.launch import keeper_process
start = keeper_process.KEEPER.partition("{importing}")[2].partition(";")[0]
exec(keeper_process.COMPILE_ONCE.strip())
del events[:]
exec(start.strip())
print(*events, sep="\\n")
"""


def test_the_keeper_compiles_each_module_once(pyz: Path, python: str) -> None:
    words: list[str | Path] = [python, "-c", KEEPERS_IMPORTS, pyz]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    modules = result.stdout.splitlines()
    assert "/site-packages/portwrap/keeper/setup.py" in modules
    assert len(set(modules)) == len(modules), modules


ANOTHER_ARCHIVE = """
import py_compile, sys, zipfile
folder = sys.argv[2]
with open(folder + "/legacy.py", "w") as file:
    file.write("value = 7")
py_compile.compile(folder + "/legacy.py", folder + "/legacy.pyc")
with zipfile.ZipFile(folder + "/other.zip", "w") as archive:
    archive.write(folder + "/legacy.pyc", "legacy.pyc")
sys.path.insert(0, sys.argv[1] + "/site-packages")
from portwrap.archive import compile_once
compile_once()
sys.path.append(folder + "/other.zip")
import legacy, portwrap.kernel.libc
print(legacy.value, legacy.__file__, portwrap.kernel.libc.__file__, sep="\\n")
print(portwrap.kernel.libc.__doc__ is None or sys.version_info < (3, 10))
"""


def test_modules_of_other_archives_tell_their_own_file(
    pyz: Path, tmp_path: Path, python: str
) -> None:
    words: list[str | Path] = [python, "-c", ANOTHER_ARCHIVE, pyz, tmp_path]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    ours = f"{pyz}/site-packages/portwrap/kernel/libc.py"
    assert result.stdout.splitlines() == ["7", f"{tmp_path}/other.zip/legacy.pyc", ours, "True"]


# ---- a copy that is not whole -----------------------------------------------------------------

IT_RAN = "it ran"


def started(account: str, argv: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Start a session with a file; its command prints a line."""
    return run_as(account, [*argv, "--port", str(free_port()), "echo", IT_RAN])


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.namespaces
def test_a_file_with_a_flipped_bit_runs_nothing(
    pyz: Path, account: str, python: str, world_dir: Path
) -> None:
    """Wherever it is; in most places we report it, in the others Python reads no program."""
    content, copy = pyz.read_bytes(), world_dir / "copy.pyz"
    copy.write_bytes(content)
    assert IT_RAN in started(account, [python, copy]).stdout, "the control: a whole copy runs"
    begin = content.index(b"crc32 ") + len(b"crc32 ")
    places = [*range(begin, len(content), len(content) // 20), len(content) - 20, len(content) - 1]
    reported = 0
    for place in places:
        copy.write_bytes(flipped(content, place))
        result = started(account, [python, copy])
        assert IT_RAN not in result.stdout, place
        assert result.returncode != 0, place
        if result.returncode == 125:
            first, second = result.stderr.splitlines()
            assert first.startswith(f"batchspawner-portwrap: {copy} is damaged: its checksum is ")
            assert second == "  Copy it again and compare its sha256."
            reported += 1
    assert reported > 15


@pytest.mark.namespaces
def test_a_file_that_ends_early_runs_nothing(
    pyz: Path, account: str, python: str, world_dir: Path
) -> None:
    """Python finds no zip file in it, and takes it for a script."""
    content, copy = pyz.read_bytes(), world_dir / "copy.pyz"
    for length in (100, len(content) // 2, len(content) - 1):
        copy.write_bytes(content[:length])
        result = started(account, [python, copy])
        assert result.returncode == 1
        assert "this-copy-is-incomplete.copy-it-again" in result.stderr
        inside = started(account, [python, "-c", RUN_PATH, copy])
        assert inside.returncode == 1
        assert IT_RAN not in result.stdout + inside.stdout


@pytest.mark.namespaces
def test_an_empty_file_is_an_empty_program(
    pyz: Path, account: str, python: str, world_dir: Path
) -> None:
    """Nothing of ours runs there. The prologue in docs/install.md makes the job fail."""
    page = (PROJECT / "docs" / "install.md").read_text()
    match = re.search(r"req_prologue = '(test -s) .+?'", page)
    assert match
    empty = world_dir / "copy.pyz"
    empty.touch()
    result = started(account, [python, empty])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    for file, status in ((empty, 1), (pyz, 0)):
        job = f"set -euo pipefail\n{match[1]} {file}\n{python} {file} --version"
        result = run_as(account, ["bash", "-c", job])
        assert (result.returncode, bool(result.stdout)) == (status, status == 0)


# ---- Python too old, and Ctrl-C ---------------------------------------------------------------


def assert_refused(
    result: subprocess.CompletedProcess[str], pyz: Path, version: str, path: str
) -> None:
    assert result.returncode == 125
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    needed = "batchspawner-portwrap: Python 3.8 or newer is required"
    assert first == f"{needed}, this is {version} ({path})"
    assert second.startswith("  Run it with the Python of batchspawner-singleuser, ")
    assert str(pyz) in second


def test_an_old_python_gets_two_lines(pyz: Path) -> None:
    claim = (
        "import sys, runpy; sys.version_info = (3, 7, 9);"
        "runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", claim, pyz], capture_output=True, text=True, check=False
    )
    assert_refused(result, pyz, "3.7.9", sys.executable)


def old_pythons() -> list[Path]:
    versions = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv")) + "/versions"
    patterns = [f"{versions}/{number}/bin/python" for number in ("2.7*", "3.[4-7].*")]
    patterns += [f"/usr/bin/python{number}" for number in ("2.7", "3.[4-7]")]
    return [Path(path) for pattern in patterns for path in sorted(glob.glob(pattern))]


@pytest.mark.parametrize("old", old_pythons(), ids=str)
def test_a_real_old_python_gets_two_lines(pyz: Path, old: Path) -> None:
    """None installed: this one is empty, the one above still looks at the sentence."""
    asked = "import sys; print('.'.join(map(str, sys.version_info[:3]))); print(sys.executable)"
    version, path = subprocess.check_output([old, "-c", asked], text=True).split()
    result = subprocess.run([old, pyz], capture_output=True, text=True, check=False)
    assert_refused(result, pyz, version, path)


INTERRUPT_DURING_IMPORT = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "batchspawner_portwrap":
            print("importing", flush=True)
            signal.pause()
sys.meta_path.insert(0, Finder())
if sys.argv[2] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_ctrl_c_during_the_imports_ends_it_without_a_traceback(pyz: Path, python: str) -> None:
    argv = [python, "-c", INTERRUPT_DURING_IMPORT, str(pyz), "default"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"importing\n"
            process.send_signal(2)
            assert process.wait(10) == -2
            assert process.stderr and process.stderr.read() == b""
        finally:
            process.kill()


def test_an_inherited_ignored_ctrl_c_stays_ignored(pyz: Path, python: str) -> None:
    argv = [python, "-c", INTERRUPT_DURING_IMPORT, str(pyz), "ignored"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"importing\n"
            process.send_signal(2)
            process.send_signal(15)
            assert process.wait(10) == -15
        finally:
            process.kill()
