"""Expected failures: one line of what happened, one of what to do, and the published status."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import batchspawner_portwrap
import portwrap
from portwrap import PortwrapError, __main__, errors, launching, namespaces, network

from helpers import PROJECT

SOURCES = sorted([PROJECT / "batchspawner_portwrap.py", *(PROJECT / "portwrap").glob("*.py")])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.name))
def test_every_failure_of_the_source_has_a_hint(source: Path) -> None:
    calls = [
        node
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == PortwrapError.__name__
    ]
    assert [f"line {call.lineno}" for call in calls if len(call.args) < 2] == []


def test_lines() -> None:
    assert PortwrapError("a: b", "Do c.", 126).lines("p") == "p: a: b\n  Do c.\n"
    assert PortwrapError("a").exit_code == errors.OURS == 125
    assert (errors.USAGE, errors.CANNOT_RUN, errors.NOT_FOUND) == (2, 126, 127)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028"])
def test_a_line_end_in_a_name_does_not_make_a_second_line(end: str) -> None:
    text = PortwrapError(f"a{end}b: not found", f"c{end}d").lines("p")
    assert len(text.splitlines()) == 2
    assert text.startswith("p: a\\")


# ---- the command -----------------------------------------------------------------------------


def make(path: Path, content: str, mode: int = 0o755) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def why_not(name: str | Path, path: str = "/usr/bin:/bin") -> PortwrapError:
    with pytest.raises(PortwrapError) as caught:
        launching.find_command(str(name), {"PATH": path})
    assert caught.value.hint
    assert len(caught.value.lines("p").splitlines()) == 2
    return caught.value


def test_command_that_is_missing(tmp_path: Path) -> None:
    error = why_not(tmp_path / "missing")
    assert (error.exit_code, error.message) == (127, f"{tmp_path}/missing: no such file")
    error = why_not("missing", str(tmp_path))
    assert (error.exit_code, error.message) == (127, "missing: not found on PATH")
    assert str(tmp_path) in error.hint
    assert why_not("").exit_code == 127
    assert why_not("two\nlines").exit_code == 127


def test_command_that_is_a_directory(tmp_path: Path) -> None:
    error = why_not(tmp_path)
    assert (error.exit_code, error.message) == (126, f"{tmp_path}: is a directory")
    (tmp_path / "bin").mkdir()
    assert why_not("bin", str(tmp_path)).exit_code == 126


def test_command_without_the_right_to_execute(tmp_path: Path) -> None:
    script = make(tmp_path / "script", "#!/bin/sh\n", 0o644)
    error = why_not(script)
    assert (error.exit_code, error.message) == (126, f"{script}: permission denied")
    assert "chmod +x" in error.hint


@pytest.mark.parametrize(
    ("first", "named"),
    [
        ("#!/no/such/interpreter -x", "/no/such/interpreter"),
        ("#! \t/no/such/interpreter", "/no/such/interpreter"),
        ("#!/bin/sh\r", "/bin/sh\\r"),
    ],
)
def test_command_whose_interpreter_is_missing(tmp_path: Path, first: str, named: str) -> None:
    script = make(tmp_path / "script", f"{first}\n:\n")
    error = why_not(script)
    assert error.exit_code == 126
    assert f"its interpreter {named} does not exist" in error.lines("p")
    # the kernel thinks so too
    assert subprocess.run(["/bin/sh", "-c", f"exec {script}"], stderr=-3).returncode in (126, 127)


@pytest.mark.parametrize("first", ["#!/bin/sh", "#! /bin/sh -e", "#!\t/bin/sh\t", "#!", "#! ", ""])
def test_command_that_may_run(tmp_path: Path, first: str) -> None:
    script = make(tmp_path / "script", f"{first}\n:\n")
    assert launching.find_command(str(script), {}) == str(script)
    assert launching.find_command("script", {"PATH": f"/no:{tmp_path}"}) == str(script)


def test_command_is_the_first_on_path_that_may_run(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "tool").mkdir()
    make(tmp_path / "b" / "tool", "", 0o644)
    wanted = make(tmp_path / "c" / "tool", "#!/bin/sh\n")
    folders = os.pathsep.join(str(tmp_path / folder) for folder in ("a", "b", "c"))
    assert launching.find_command("tool", {"PATH": folders}) == str(wanted)


# ---- namespaces and the network helper -------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM, errno.EACCES, errno.EINVAL, 0])
def test_every_answer_of_the_kernel_has_a_hint(number: int) -> None:
    error = namespaces._refused(OSError(number, os.strerror(number)), "unshare")
    assert error.exit_code == 125
    assert error.message == f"unshare: {os.strerror(number)}"
    assert error.hint and "\n" not in error.hint


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ('open("/dev/net/tun"): No such file or directory', "modprobe tun"),
        ('open("/dev/net/tun"): Permission denied', "chmod 0666 /dev/net/tun"),
        ("slirp4netns: unrecognized option '--mtu'", "0.4.0"),
        ("open(/proc/7/ns/net): /proc/7/ns/net: Permission denied", "AppArmor"),
        ("Couldn't open user namespace /proc/7/ns/user: Permission denied", "SELinux"),
        ("netns dir open: Permission denied, exiting", "ausearch -c pasta"),
        ("pasta: unrecognized option '--config-net'", "2022_07_14"),
        ("Failed to open() /dev/net/tun: No such file or directory", "modprobe tun"),
        ("Failed to open() /dev/net/tun: Permission denied", "chmod 0666"),
        ("Failed to open tun socket in namespace", "/dev/net/tun"),
        ("External interface not usable", "--network none"),
        ("something else", "by hand"),
        ("", "by hand"),
    ],
)
def test_what_the_network_helper_says_chooses_the_hint(said: str, hint: str) -> None:
    assert hint in errors.helper_hint(said)


def test_network_helper_is_looked_up_on_path_first(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tool").mkdir()
    make(tmp_path / "tool", "", 0o644)
    folders = f"{tmp_path}/a:{tmp_path}"
    assert network.find_executable("tool", {"PATH": folders}) is None
    make(tmp_path / "tool", "#!/bin/sh\n")
    assert network.find_executable("tool", {"PATH": folders}) == str(tmp_path / "tool")
    # one that stands in the working directory is nobody's choice
    assert network.find_executable("tool", {"PATH": ":."}) is None
    assert network.find_executable("sh", {"PATH": ""}) == "/usr/bin/sh"


# ---- what the user sees ----------------------------------------------------------------------

BAD = [
    (batchspawner_portwrap, ["server"], 2),
    (batchspawner_portwrap, ["--bad\noption"], 2),
    (batchspawner_portwrap, ["--portwrap-path", "/no/such", "server", "--port=40001"], 127),
    (batchspawner_portwrap, ["--portwrap-path", "/", "server", "--port=40001"], 126),
    (batchspawner_portwrap, ["/no/such\nserver", "--port=40001"], 127),
    (batchspawner_portwrap, ["/", "--port=40001"], 126),
    (__main__, [], 2),
    (__main__, ["-p", "1e3", "server"], 2),
    (__main__, ["-p", "40001", "/no/such"], 127),
]


def run_program(module: object, words: list[str], shell: str) -> subprocess.CompletedProcess[str]:
    """Run a program by /bin/sh, which sets its descriptors up."""
    name = "batchspawner_portwrap" if module is batchspawner_portwrap else "portwrap"
    command = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", name, *words]
    environ = {"PATH": os.defpath, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize(("module", "words", "status"), BAD, ids=lambda value: "")
def test_two_lines_on_standard_error_and_nothing_else(
    module: object, words: list[str], status: int
) -> None:
    result = run_program(module, words, "")
    assert result.returncode == status, result
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(("batchspawner-portwrap: ", "portwrap: "))
    assert second.startswith("  ") and second.strip()


@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_the_status_is_right_even_if_nobody_can_be_told(shell: str) -> None:
    result = run_program(batchspawner_portwrap, ["server"], shell)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


def test_a_bug_is_no_expected_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(portwrap.options, "parse_port", broken)
    with pytest.raises(RuntimeError):
        batchspawner_portwrap.main(["--port", "40001", "server"])
