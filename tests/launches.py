"""Short runs of our programs as another account, and a look at a process from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Sequence

import pytest

from helpers import (
    OWNER,
    PROJECT,
    descendants,
    environment,
    find_tool,
    lives,
    needs,
    run_as,
    wait_until,
)
from sessions import KEEPER, Portwrap, holders_of, name_of, serves, unused_port

one_forward = pytest.mark.parametrize("each_forward", ["auto"], indirect=True)
"""For tests that take long, where the way in makes no difference."""


def in_sandbox(portwrap: Portwrap, *command: str | Path, port: int = 0) -> list[str]:
    """Words that run a command in a sandbox, at an unused port of the host if none is given."""
    options = ["-p", str(port or unused_port()), "-P", "8888"]
    return [*portwrap.words, *options, *map(str, command)]


def run_in_sandbox(
    portwrap: Portwrap,
    *command: str | Path,
    port: int = 0,
    before: Sequence[str | Path] = (),
    account: str = OWNER,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a sandbox to its end; `before` are words that start ours."""
    port = port or unused_port()
    words = [*before, *in_sandbox(portwrap, *command, port=port)]
    return run_as(account, words, **options)


def batchspawner_portwrap(portwrap: Portwrap) -> Path:
    """A copy of batchspawner_portwrap.py next to the package."""
    return Path(shutil.copy(PROJECT / "batchspawner_portwrap.py", portwrap.folder))


def at_url(port: int, **more: str) -> dict[str, str]:
    """The environment in which batchspawner-singleuser starts us."""
    return environment(OWNER, {"JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{port}/u/", **more})


STARTS_A_THREAD = """
#include <pthread.h>
#include <unistd.h>
static void *wait_for_ever(void *unused) { for (;;) pause(); }
static void start(void) {
    pthread_t thread;
    pthread_create(&thread, 0, wait_for_ever, 0);
}
__attribute__((constructor)) static void begin(void) {
    start();
    pthread_atfork(0, 0, start);
}
"""


def make_library(folder: Path, text: str, name: str = "made.so") -> Path:
    """A shared library from this C, with its name as its soname."""
    needs("gcc")
    library = folder / name
    words = ["gcc", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{name}", "-x", "c", "-"]
    subprocess.run([*words, "-o", library], input=text, text=True, check=True)
    return library


def thread_library(folder: Path) -> Path:
    """A library that starts a thread wherever it is loaded, and in each process that is forked, as
    those of profilers and of BLAS."""
    return make_library(folder, STARTS_A_THREAD, "thread.so")


def interpreter_with(library: Path, python: str, folder: Path) -> Path:
    """A copy of this interpreter that loads the library at its start. It finds its own shared
    library and its modules in ../lib, wherever it was built for."""
    needs("patchelf")
    copy = folder / "bin" / "python3"
    copy.parent.mkdir()
    real = Path(os.path.realpath(python))
    (folder / "lib").symlink_to(real.parent.parent / "lib")
    shutil.copy(real, copy)
    subprocess.run([str(find_tool("patchelf")), "--add-needed", library, copy], check=True)
    return copy


def as_owner_in(*preparation: str) -> list[str]:
    """Words that, as root, make a mount namespace, prepare it by these lines of shell, and run
    what follows there as the owner."""
    become = f'exec setpriv --reuid={OWNER} --regid={OWNER} --init-groups -- "$@"'
    script = "\n".join(["set -e", *preparation, become])
    return ["unshare", "-m", "sh", "-c", script, "sh"]


def refusal_of(result: subprocess.CompletedProcess[str], status: int, *said: str) -> str:
    """Check that this run ended with the status, one line of what and one of what to do, with
    these texts in them. Returns both lines."""
    told = f"status {result.returncode}, stdout {result.stdout!r}, stderr:\n{result.stderr}"
    assert result.returncode == status, told
    assert result.stdout == "", told
    lines = result.stderr.splitlines()
    assert len(lines) == 2, told
    assert lines[0].split(": ")[0].endswith("portwrap"), told
    assert lines[1].startswith("  ") and lines[1].strip(), told
    assert [text for text in said if text not in result.stderr] == [], told
    return result.stderr


def ours_alive() -> set[int]:
    """Every live process that this test run has started."""
    return set(filter(lives, descendants(os.getpid())))


def wait_until_nothing_is_left(before: set[int], port: int, seconds: float = 5) -> None:
    """Fail unless every process that was not there before is gone, and the port is free."""
    wait_until(lambda: not ours_alive() - before, seconds, "the end of every process")
    wait_until(lambda: not holders_of(port), seconds, f"port {port} free")


def keeper_among(processes: set[int]) -> int:
    """The keeper, once it serves."""

    def serving() -> list[int]:
        return [pid for pid in processes if name_of(pid) == KEEPER and serves(pid)]

    return wait_until(serving, 10, "a keeper that serves")[0]


def assert_ps_shows_a_title(keeper: int, command: int) -> None:
    """Whoever looks at the processes of a node reads in one line what the keeper is, and whose."""
    *words, _ = Path(f"/proc/{keeper}/cmdline").read_text().split("\0")
    assert all(word.isprintable() for word in words), words
    title = f"portwrap: keeper of process {command}';"
    assert any(word.startswith("'") and title in word for word in words), words


# ---- a process, seen from outside ------------------------------------------------------------


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status as a dictionary."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def descriptors_of(pid: int) -> dict[int, str]:
    """The open descriptors of a process, and what each of them is."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            pass  # closed meanwhile
    return found


def namespaces_of(pid: int) -> dict[str, str]:
    """The namespaces of a process."""
    folder = Path(f"/proc/{pid}/ns")
    return {entry.name: os.readlink(entry) for entry in folder.iterdir()}


def portrait(pid: int) -> dict[str, Any]:
    """What a command inherits from whoever starts it, as proc(5) tells it."""
    status, place = status_of(pid), Path(f"/proc/{pid}")
    fields = place.joinpath("stat").read_text().rpartition(")")[2].split()
    names: tuple[str, ...] = ("Uid", "Gid", "Groups", "Umask", "SigBlk", "SigIgn", "SigCgt")
    names += ("CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "TracerPid", "Threads")
    return {
        **{name: status[name] for name in names},
        # proc_pid_stat(5), counted behind the name: parent, group, session, terminal, its group
        **dict(zip(("parent", "group", "session", "terminal", "foreground"), fields[1:6])),
        "nice": fields[16],
        "children": Path(f"/proc/{pid}/task/{pid}/children").read_text(),
        "limits": place.joinpath("limits").read_text(),
        "environment": place.joinpath("environ").read_bytes().split(b"\0"),
        "words": place.joinpath("cmdline").read_bytes().split(b"\0"),
        "directory": os.readlink(place / "cwd"),
        "root": os.readlink(place / "root"),
        "cgroup": place.joinpath("cgroup").read_text(),
        "oom": place.joinpath("oom_score_adj").read_text(),
        "personality": place.joinpath("personality").read_text(),
        "dumped": place.joinpath("coredump_filter").read_text(),
    }


def wait_until_asleep(pid: int) -> None:
    """Wait until the process has become `sleep` and is through with the start of that."""

    def sleeps() -> bool:
        if name_of(pid) != "sleep":
            return False
        return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()

    wait_until(sleeps, 15, f"process {pid} becomes sleep")
