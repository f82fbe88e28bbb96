"""Started within another program's interpreter, as batchspawner-singleuser does, and otherwise."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from launches import (
    assert_ps_shows_a_title,
    at_url,
    batchspawner_portwrap,
    descriptors_of,
    keeper_among,
    one_forward,
    ours_alive,
    status_of,
    wait_until_asleep,
)

from helpers import OWNER, as_user, end, environment, needs, run_as
from sessions import Portwrap, Session, unused_port

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.every_python,
    pytest.mark.usefixtures("each_forward"),
]

MEMORY_LIMIT = 20_000
"""kB that a keeper may have resident; the interpreter of the test holds 100 MB."""


def in_process(
    portwrap: Portwrap, pyz: Path, settings: str, *command: str, before: tuple[str, ...] = ()
) -> list[str]:
    script = portwrap.folder / "programs" / "in_process.py"
    return [*before, portwrap.python, str(script), settings, str(pyz), *command]


@pytest.mark.parametrize(
    "settings",
    ["", "threads", "memory", "threads,memory", "nameless", "threads,nameless", "undumpable"],
)
def test_run_path(portwrap: Portwrap, pyz: Path, settings: str) -> None:
    before, environ = ours_alive(), at_url(unused_port())
    process = as_user(OWNER, in_process(portwrap, pyz, settings, "sleep", "600"), env=environ)
    try:
        wait_until_asleep(process.pid)
        assert set(descriptors_of(process.pid)) & {0, 1, 2} == {0, 1, 2}
        assert len(descriptors_of(process.pid)) == 4
        assert children_of(process.pid) == []
        keeper = keeper_among(ours_alive() - before)
        assert_ps_shows_a_title(keeper, process.pid)
        for pid in ours_alive() - before:
            assert int(status_of(pid)["VmRSS"].split()[0]) < MEMORY_LIMIT
        assert int(status_of(keeper)["VmHWM"].split()[0]) < MEMORY_LIMIT
    finally:
        end(process)


def test_whose_standard_error(portwrap: Portwrap, pyz: Path) -> None:
    """A file that no command inherits is not the job's."""
    before, environ = ours_alive(), at_url(unused_port())
    process = as_user(OWNER, in_process(portwrap, pyz, "no errors", "sleep", "600"), env=environ)
    try:
        wait_until_asleep(process.pid)
        assert 2 not in descriptors_of(process.pid)
        assert descriptors_of(keeper_among(ours_alive() - before))[2] == os.devnull
    finally:
        end(process)


def test_the_archive_as_a_program(portwrap: Portwrap, pyz: Path) -> None:
    before, words = ours_alive(), [portwrap.python, str(pyz), "sleep", "600"]
    process = as_user(OWNER, words, env=at_url(unused_port()))
    try:
        wait_until_asleep(process.pid)
        assert_ps_shows_a_title(keeper_among(ours_alive() - before), process.pid)
    finally:
        end(process)


def children_of(pid: int) -> list[int]:
    """Ended ones that nobody has waited for, too."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_another_portwrap_gets_no_child_that_it_does_not_know(
    portwrap: Portwrap, pyz: Path, world_dir: Path
) -> None:
    """The keeper has begun before the options are read."""
    other = world_dir / "other"
    other.write_text('#!/bin/sh\nread -r line </proc/$$/task/$$/children\necho "[$line]"\n')
    other.chmod(0o755)
    words = ["--portwrap-path", str(other), "true"]
    result = run_as(OWNER, [portwrap.python, str(pyz), *words], env=at_url(unused_port()))
    assert (result.returncode, result.stdout) == (0, "[]\n"), result


def test_a_beginning_that_fails_half_way_leaves_no_child(portwrap: Portwrap, pyz: Path) -> None:
    needs("strace")
    once = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=sendto:error=EIO:when=1"]
    look = ["sh", "-c", "read -r line </proc/$$/task/$$/children; echo [$line]"]
    words = [*once, portwrap.python, str(pyz), *look]
    result = run_as(OWNER, words, env=at_url(unused_port()))
    assert (result.returncode, result.stdout) == (0, "[]\n"), result


@pytest.mark.parametrize("most", [16, *range(5, 11)])
def test_hardly_any_descriptor(portwrap: Portwrap, pyz: Path, most: int) -> None:
    words = ["prlimit", f"--nofile={most}", portwrap.python, str(pyz), "true"]
    result = run_as(OWNER, words, env=at_url(unused_port()))
    if result.returncode:
        assert result.returncode == 125, result
        assert len(result.stderr.splitlines()) <= 2
        assert "Too many open files" in result.stderr


def test_memory_of_the_caller_would_be_seen(portwrap: Portwrap, world_dir: Path) -> None:
    """The limit above is one that the test's own program breaks."""
    script = world_dir / "look.py"
    script.write_text("print(open('/proc/self/status').read())")
    result = run_as(OWNER, in_process(portwrap, script, "threads,memory"))
    values = dict(line.split(":", 1) for line in result.stdout.splitlines() if ":" in line)
    assert int(values["VmRSS"].split()[0]) > MEMORY_LIMIT
    assert int(values["Threads"]) == 2


@pytest.mark.parametrize(("settings", "execs"), [("", 2), ("threads", 3)])
def test_a_fresh_interpreter_is_started_once_and_only_beside_threads(
    portwrap: Portwrap, pyz: Path, settings: str, execs: int
) -> None:
    needs("strace")
    watch = ("strace", "-qq", "-e", "trace=execve", "-e", "signal=none")
    words = in_process(portwrap, pyz, settings, "true", before=watch)
    result = run_as(OWNER, words, env=at_url(unused_port()))
    assert result.returncode == 0, result
    succeeded = [line for line in result.stderr.splitlines() if line.endswith(" = 0")]
    assert len(succeeded) == execs, result.stderr
    assert '"/usr/bin/true", ["true"]' in succeeded[-1]


@pytest.mark.parametrize("settings", ["", "threads"])
def test_words_environment_and_status_come_through(
    portwrap: Portwrap, pyz: Path, settings: str
) -> None:
    environ = {**at_url(unused_port()), "A": "b c", "PYTHONPATH": "/x", "PYTHONSTARTUP": "/y"}
    script = 'printf "%s|" "$@"; echo $JUPYTERHUB_SERVICE_URL,$A,$PYTHONPATH,$PYTHONSTARTUP; exit 9'
    command = ["sh", "-c", script, "-", "--", "-c", "", "-P", "é"]
    result = run_as(OWNER, in_process(portwrap, pyz, settings, "-P", "80", *command), env=environ)
    assert result.stdout == "--|-c||-P|é|http://127.0.0.1:80/u/,b c,/x,/y\n", result
    assert result.returncode == 9


@pytest.mark.parametrize("settings", ["talks", "talks,threads"])
def test_what_was_printed_before_comes_first(portwrap: Portwrap, pyz: Path, settings: str) -> None:
    words = in_process(portwrap, pyz, settings, "sh", "-c", "echo inside")
    result = run_as(OWNER, words, env=at_url(unused_port()))
    assert (result.returncode, result.stdout) == (0, "before\ninside\n"), result


@pytest.mark.parametrize("settings", ["", "threads"])
@pytest.mark.parametrize(("command", "status"), [("/no/such", 127), ("/", 126)])
def test_failures_are_as_ever(
    portwrap: Portwrap, pyz: Path, settings: str, command: str, status: int
) -> None:
    words = in_process(portwrap, pyz, settings, command)
    result = run_as(OWNER, words, env=at_url(unused_port()))
    assert result.returncode == status, result
    assert result.stdout == "" and len(result.stderr.splitlines()) == 2
    assert result.stderr.startswith("batchspawner-portwrap: ")


def test_the_other_program_beside_threads(portwrap: Portwrap) -> None:
    """The kernel lets no process with threads enter a user namespace: it is exec'ed once more."""
    words = list(portwrap.words)
    place = words.index("-c") + 1
    threads = "import threading; threading.Thread(target=threading.Event().wait, daemon=True)"
    words[place] = f"{threads}.start(); {words[place]}"
    words += ["-p", str(unused_port()), "sh", "-c", "exit 4"]
    result = run_as(OWNER, words)
    assert (result.returncode, result.stderr) == (4, ""), result
    control = [portwrap.python, "-c", f"{threads}.start(); import os; {UNSHARE}"]
    assert "Invalid argument" in run_as(OWNER, control, cwd=portwrap.folder).stderr


UNSHARE = "from portwrap.launch.namespaces import unshare; unshare(0x10000000)"  # CLONE_NEWUSER


# ---- every other way to start ----------------------------------------------------------------


def console_script(folder: Path, python: str, module: str) -> list[str]:
    """What pip makes of an entry of [project.scripts]."""
    path = folder / "bin" / module.partition(".")[0].replace("_", "-")
    path.parent.mkdir()
    lines = [f"#!{python}", "import sys", f"from {module} import main", "sys.exit(main())"]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return [str(path)]


def module_by_name(folder: Path, python: str, module: str) -> list[str]:
    return [python, "-m", module.partition(".")[0]]


@pytest.fixture
def checkout(portwrap: Portwrap, world_dir: Path) -> Path:
    """A copy of both modules as pip would install them."""
    shutil.copytree(portwrap.folder / "portwrap", world_dir / "portwrap")
    shutil.copy(batchspawner_portwrap(portwrap), world_dir)
    return world_dir


@pytest.mark.parametrize("way", [console_script, module_by_name])
@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("batchspawner_portwrap", ["--port", "{port}"]),
        ("portwrap.__main__", ["-p", "{port}"]),
    ],
)
def test_ways_to_start(  # type: ignore[no-untyped-def]
    portwrap: Portwrap, checkout: Path, way, module: str, options: list[str]
) -> None:
    words = way(checkout, portwrap.python, module)
    options = [word.format(port=unused_port()) for word in options]
    environ = environment(OWNER, {"PYTHONPATH": str(checkout)})
    result = run_as(
        OWNER, [*words, *options, "sh", "-c", "echo $0; exit 5", "{guest-port}"], env=environ
    )
    assert (result.returncode, result.stdout, result.stderr) == (5, "8888\n", ""), result
    shown = run_as(OWNER, [*words, "--help"], env=environ)
    name = "portwrap" if module.startswith("portwrap") else "batchspawner-portwrap"
    assert shown.returncode == 0 and shown.stdout.startswith(f"usage: {name} ")


def test_through_a_link_to_the_interpreter(portwrap: Portwrap, world_dir: Path) -> None:
    """A virtual environment's Python is a link; the keeper needs no more than what it leads to."""
    link = world_dir / "python with spaces"
    link.symlink_to(portwrap.python)
    words = [str(link), *portwrap.words[1:], "-p", str(unused_port()), "sh", "-c", "exit 4"]
    assert run_as(OWNER, words).returncode == 4


@pytest.mark.parametrize(
    "environ",
    [
        {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1"},
        {"PYTHONOPTIMIZE": "2", "PYTHONHASHSEED": "0"},
        {"PYTHONDEVMODE": "1", "PYTHONTRACEMALLOC": "1"},
        {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"},
        {"PYTHONSTARTUP": "/no/such", "PYTHONPATH": "/no/such"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_settings_of_python_do_not_matter(portwrap: Portwrap, environ: dict[str, str]) -> None:
    words = [*portwrap.words, "-p", str(unused_port()), "env"]
    result = run_as(OWNER, words, extra_env=environ)
    inside = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert result.returncode == 0 and result.stderr == "", result
    assert inside == environment(OWNER, environ)


def home_of(portwrap: Portwrap) -> str:
    """What PYTHONHOME is for this Python."""
    ask = [portwrap.python, "-c", "import sys; print(sys.base_prefix)"]
    return run_as(OWNER, ask).stdout.strip()


def test_an_interpreter_that_needs_to_be_told_its_home(portwrap: Portwrap) -> None:
    """Where PYTHONHOME is, the keeper's interpreter reads the environment: of Python's variables
    it has that one only."""
    home = home_of(portwrap)
    extra = {"PYTHONHOME": home, "PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1"}
    with Session(portwrap, ["sleep", "600"], extra_env=extra) as session:
        session.wait_until_up()
        items = Path(f"/proc/{session.keeper}/environ").read_bytes().split(b"\0")
        python = [item for item in items if item.startswith(b"PYTHON")]
        assert python == [f"PYTHONHOME={home}".encode()]


@pytest.mark.parametrize("settings", ["", "threads"])
def test_such_an_interpreter_reads_nothing_of_the_current_directory(
    portwrap: Portwrap, pyz: Path, world_dir: Path, settings: str
) -> None:
    """Which it does first of all without -I: it may be anybody's."""
    home = home_of(portwrap)
    for name in ("batchspawner_portwrap", "resource", "select", "json", "contextlib"):
        (world_dir / f"{name}.py").write_text(f"raise SystemExit('{name} of somebody')\n")
    words = in_process(portwrap, pyz, settings, "true")
    env = {**at_url(unused_port()), "PYTHONHOME": home}
    result = run_as(OWNER, words, env=env, cwd=world_dir)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result
    # The probe of --check is such an interpreter's program, too.
    words = in_process(portwrap, pyz, settings, "--check", "--json")
    result = run_as(OWNER, words, env=env, cwd=world_dir)
    assert '"would_start": true' in result.stdout, result


# ---- a kernel without pidfds -----------------------------------------------------------------


def test_program_that_takes_pidfds_away(portwrap: Portwrap) -> None:
    text = "import ctypes, os; os.write(1, b'%d' % ctypes.CDLL(None).syscall(434, os.getpid(), 0))"
    plain = run_as(OWNER, [portwrap.python, "-c", text])
    without = portwrap.program("without.py", "pidfds", portwrap.python, "-c", text)
    assert int(plain.stdout) > 2
    assert run_as(OWNER, without).stdout == "-1"


@one_forward
@pytest.mark.parametrize("script", ["exit 6", "kill -TERM $$"])
def test_without_pidfds(portwrap: Portwrap, script: str) -> None:
    words = [*portwrap.words, "-p", str(unused_port()), "sh", "-c", script]
    result = run_as(OWNER, portwrap.program("without.py", "pidfds", *words))
    assert (result.returncode, result.stderr) == ({"exit 6": 6}.get(script, -15), ""), result
