"""What modules and profiles of a cluster put into a job's environment is for the command alone: it
changes neither the keeper nor the network driver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launches import (
    batchspawner_portwrap,
    in_sandbox,
    interpreter_with,
    make_library,
    one_forward,
    refusal_of,
    run_in_sandbox,
    thread_library,
)

from helpers import OWNER, SYSTEM_PATH, environment, find_tool, needs, run_as
from sessions import DRIVER, Inside, Portwrap, unused_port

pytestmark = [pytest.mark.namespaces, pytest.mark.usefixtures("each_forward"), one_forward]

SHOW = ["sh", "-c", 'echo "$LD_PRELOAD"; ls /proc/self/task | wc -l']


def variables_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    items = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(item.split("=", 1) for item in items if item)


def test_the_driver_gets_its_path_only(portwrap: Portwrap) -> None:
    odd = {"G_DEBUG": "fatal-warnings", "SLIRP_DEBUG": "all", "LD_LIBRARY_PATH": "/none"}
    with Inside(portwrap, extra_env=odd) as session:
        session.wait_until_up()
        assert variables_of(session.driver) == {"PATH": SYSTEM_PATH}
        assert odd.items() <= variables_of(session.pid).items()  # the control: the command has it


def test_another_version_of_the_drivers_library(portwrap: Portwrap, world_dir: Path) -> None:
    """As a module brings it. Here it is an empty file of the name."""
    (world_dir / "libglib-2.0.so.0").touch()
    job = {"LD_LIBRARY_PATH": str(world_dir)}
    control = run_as(OWNER, [DRIVER, "--version"], extra_env=job)
    assert control.returncode == 127 and "libglib-2.0.so.0" in control.stderr
    show = ["sh", "-c", "echo $LD_LIBRARY_PATH"]
    result = run_in_sandbox(portwrap, *show, extra_env={**job, "PORTWRAP_NETWORK": DRIVER})
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{world_dir}\n", "")
    words = [portwrap.python, str(batchspawner_portwrap(portwrap)), "--check"]
    check = run_as(OWNER, words, extra_env={**job, "PORTWRAP_NETWORK": DRIVER})
    assert (check.returncode, check.stderr) == (0, "")
    assert f"{DRIVER} version" in check.stdout


@pytest.fixture
def needy_driver(world_dir: Path) -> Path:
    """A slirp4netns with a library that only LD_LIBRARY_PATH finds, as in a tree of packages that
    is used by modules. Returns the folder of that library."""
    needs("patchelf", DRIVER)
    folder = world_dir / "lib"
    folder.mkdir()
    make_library(folder, "int needed;", "libneeded.so")
    driver = world_dir / DRIVER
    shutil.copy(str(find_tool(DRIVER)), driver)
    patch = [str(find_tool("patchelf")), "--add-needed", "libneeded.so", str(driver)]
    subprocess.run(patch, check=True)
    return folder


@pytest.mark.parametrize("forward", ["relay", "native"])
def test_a_driver_that_needs_the_linkers_variables(
    portwrap: Portwrap, needy_driver: Path, forward: str
) -> None:
    path = f"{needy_driver.parent}:{SYSTEM_PATH}"
    job = {"PATH": path, "LD_LIBRARY_PATH": str(needy_driver), "G_DEBUG": "x"}
    with Inside(portwrap, extra_env=job, network=DRIVER, forward=forward) as session:
        session.wait_until_up()
        driver = session.driver
        assert os.readlink(f"/proc/{driver}/exe") == str(needy_driver.parent / DRIVER)
        assert variables_of(driver) == {"PATH": path, "LD_LIBRARY_PATH": str(needy_driver)}


@pytest.mark.parametrize("job", [{}, {"LD_LIBRARY_PATH": "/none"}], ids=["unset", "elsewhere"])
def test_a_driver_without_its_libraries(
    portwrap: Portwrap, needy_driver: Path, job: dict[str, str]
) -> None:
    """The control: without them it does not run, and is not tried for ever."""
    extra = {"PATH": f"{needy_driver.parent}:{SYSTEM_PATH}", "PORTWRAP_NETWORK": DRIVER, **job}
    result = run_in_sandbox(portwrap, "true", extra_env=extra)
    refusal_of(result, 125, "slirp4netns ended before it was ready", "libneeded.so")


def test_a_library_that_starts_a_thread(portwrap: Portwrap, world_dir: Path) -> None:
    """It is loaded into the command only, which has it and its thread."""
    job = {"LD_PRELOAD": str(thread_library(world_dir))}
    bare = run_as(OWNER, SHOW, extra_env=job)
    assert bare.stdout == f"{job['LD_PRELOAD']}\n2\n"
    result = run_in_sandbox(portwrap, *SHOW, extra_env=job)
    assert (result.returncode, result.stdout, result.stderr) == (0, bare.stdout, "")


def test_a_name_that_is_no_text_comes_back_as_it_was(portwrap: Portwrap, world_dir: Path) -> None:
    library = thread_library(world_dir)
    odd = os.fsencode(world_dir) + b"/\xff'\"{}.so"
    os.rename(library, odd)
    words = in_sandbox(portwrap, "sh", "-c", 'printf %s "$LD_PRELOAD"')
    environ = {**environment(OWNER), "LD_PRELOAD": os.fsdecode(odd)}
    result: Any = run_as(OWNER, words, env=environ, text=False)
    assert (result.returncode, result.stdout) == (0, odd), result


def test_the_keeper_loads_no_library_of_others(portwrap: Portwrap, world_dir: Path) -> None:
    job = {"LD_PRELOAD": str(make_library(world_dir, "int unused;"))}
    job["LD_AUDIT"] = "/none"  # of which the linker complains
    with Inside(portwrap, extra_env=job) as session:
        session.wait_until_up()
        names = [variables_of(pid).keys() & job.keys() for pid in (session.pid, session.keeper)]
        assert names == [job.keys(), set()]


def start_and_check(python: Path | str, program: Path, job: dict[str, str]) -> tuple[int, int, str]:
    """The exit statuses of a start and of --check, and what the latter reports of its session, or
    of what forbids one."""
    words = [python, program, "--network", "none"]
    start = run_as(OWNER, [*words, "--port", str(unused_port()), "true"], extra_env=job)
    check = run_as(OWNER, [*words, "--check", "--json"], extra_env=job)
    told = [
        each["fact"]
        for each in json.loads(check.stdout)["checks"]
        if each["name"] == "session" or each["status"] == "failed"
    ]
    assert len(told) == 1, check
    return start.returncode, check.returncode, told[0]


def test_the_check_agrees_with_a_start(portwrap: Portwrap, world_dir: Path) -> None:
    """Where threads are in the way, and where they are not."""
    program = batchspawner_portwrap(portwrap)
    library = thread_library(world_dir)
    started = start_and_check(portwrap.python, program, {"LD_PRELOAD": str(library)})
    assert started[:2] == (0, 0) and started[2].startswith("started in "), started
    python = interpreter_with(library, portwrap.python, world_dir)
    refused = start_and_check(python, program, {})
    assert refused[:2] == (125, 125) and "with 2 threads" in refused[2], refused
