"""The command's exit status is ours; 126 and 127 are known before a sandbox is made."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launches import refusal_of, run_in_sandbox

from helpers import needs
from sessions import Portwrap, unused_port

pytestmark = pytest.mark.namespaces


def status_of_sh(portwrap: Portwrap, script: str) -> int:
    return run_in_sandbox(portwrap, "sh", "-c", script).returncode


@pytest.mark.parametrize("status", [0, 1, 2, 3, 64, 100, 125, 126, 127, 128, 130, 143, 254, 255])
def test_the_status_of_the_command_is_ours(portwrap: Portwrap, status: int) -> None:
    result = run_in_sandbox(portwrap, "sh", "-c", f"echo out; echo err >&2; exit {status}")
    assert (result.returncode, result.stdout, result.stderr) == (status, "out\n", "err\n")


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.timeout(240)
def test_every_status_there_is(portwrap: Portwrap) -> None:
    no_helper = {"PORTWRAP_NETWORK": "none"}

    def end_with(status: int) -> tuple[int, str]:
        words = ["sh", "-c", f"exit {status}"]
        result = run_in_sandbox(portwrap, *words, extra_env=no_helper, seconds=50)
        return result.returncode, result.stderr

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(end_with, range(256)))
    assert ended == [(status, "") for status in range(256)]


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "KILL", "SEGV", "ABRT", "USR1", "PIPE"])
def test_death_by_signal_is_seen_as_that_signal(portwrap: Portwrap, name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    assert status_of_sh(portwrap, f"ulimit -c 0; kill -{name} $$") == -number


# ---- commands that cannot run ----------------------------------------------------------------


@pytest.fixture
def bad_commands(world_dir: Path) -> dict[str, Path]:
    """Files that are no program, by what is wrong with them."""
    world_dir.joinpath("mode").write_text("#!/bin/sh\n")
    for name, content in (
        ("interpreter", "#!/no/such/interpreter\n"),
        ("carriage return", "#!/bin/sh\r\nexit 0\r\n"),
        ("format", "neither a script nor a program\n"),
        ("nothing", ""),
    ):
        world_dir.joinpath(name).write_text(content)
        world_dir.joinpath(name).chmod(0o755)
    world_dir.joinpath("directory").mkdir()
    return {entry.name: entry for entry in (*world_dir.iterdir(), world_dir / "missing")}


BEFORE_THE_SANDBOX = [
    ("missing", 127, "no such file"),
    ("directory", 126, "is a directory"),
    ("mode", 126, "permission denied"),
    ("interpreter", 126, "/no/such/interpreter does not exist"),
    ("carriage return", 126, "/bin/sh\\r does not exist"),
]


@pytest.mark.parametrize(("name", "status", "said"), BEFORE_THE_SANDBOX)
def test_a_command_that_cannot_run(
    portwrap: Portwrap, bad_commands: dict[str, Path], name: str, status: int, said: str
) -> None:
    refusal_of(run_in_sandbox(portwrap, bad_commands[name]), status, said, str(world(bad_commands)))


def world(bad_commands: dict[str, Path]) -> Path:
    return bad_commands["missing"].parent


@pytest.mark.parametrize("name", ["format", "nothing"])
def test_a_command_that_is_no_program(
    portwrap: Portwrap, bad_commands: dict[str, Path], name: str
) -> None:
    refusal_of(run_in_sandbox(portwrap, bad_commands[name]), 126, "Exec format error")


@pytest.mark.parametrize(("name", "status", "said"), BEFORE_THE_SANDBOX)
def test_that_is_told_before_the_port_is_asked_for(
    portwrap: Portwrap, bad_commands: dict[str, Path], name: str, status: int, said: str
) -> None:
    port = unused_port()
    with socket.create_server(("0.0.0.0", port)):
        refusal_of(run_in_sandbox(portwrap, bad_commands[name], port=port), status, said)


@pytest.mark.parametrize("name", ["true", *(row[0] for row in BEFORE_THE_SANDBOX)])
def test_that_is_told_before_a_namespace_is_made(
    portwrap: Portwrap, bad_commands: dict[str, Path], name: str
) -> None:
    needs("strace")
    watch = ["strace", "-f", "-e", "trace=unshare,bind,fork,vfork,clone,clone3"]
    result = run_in_sandbox(portwrap, bad_commands.get(name, name), before=watch)
    seen = [call for call in ("unshare(", "bind(", "clone") if call in result.stderr]
    # `true`, which can run, shows that strace would have seen them
    assert seen == (["unshare(", "bind(", "clone"] if name == "true" else []), result.stderr
