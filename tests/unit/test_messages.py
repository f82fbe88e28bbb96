"""Expected failures: one line of what happened, one of what to do, and the published status."""

from __future__ import annotations

import ast
import errno
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from portwrap.diagnostics import errors
from portwrap.diagnostics import remedies as messages
from portwrap.diagnostics.errors import PortwrapError
from portwrap.launch import namespaces, network
from portwrap.launch.command import find_command

from helpers import PROJECT, run_program

SOURCES = sorted([PROJECT / "batchspawner_portwrap.py", *(PROJECT / "portwrap").glob("**/*.py")])


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
    assert PortwrapError("a").exit_code == errors.EXIT_SANDBOX == 125
    assert (errors.EXIT_USAGE, errors.EXIT_NOT_EXECUTABLE, errors.EXIT_NOT_FOUND) == (2, 126, 127)


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
        find_command(str(name), {"PATH": path})
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
    assert find_command(str(script), {}) == str(script)
    assert find_command("script", {"PATH": f"/no:{tmp_path}"}) == str(script)


def test_command_is_the_first_on_path_that_may_run(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "tool").mkdir()
    make(tmp_path / "b" / "tool", "", 0o644)
    wanted = make(tmp_path / "c" / "tool", "#!/bin/sh\n")
    folders = os.pathsep.join(str(tmp_path / folder) for folder in ("a", "b", "c"))
    assert find_command("tool", {"PATH": folders}) == str(wanted)


# ---- namespaces and the network helper -------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM, errno.EACCES, errno.EINVAL, 0])
def test_every_answer_of_the_kernel_has_a_hint(number: int) -> None:
    error = namespaces._refused(OSError(number, os.strerror(number)), "unshare")
    assert error.exit_code == 125
    assert error.message.startswith(f"unshare: {os.strerror(number)}")
    assert error.hint and "\n" not in error.hint


SETTINGS = {
    "off": {"user/max_user_namespaces": "0"},
    "no networks": {"user/max_net_namespaces": "0"},
    "old Debian": {"kernel/unprivileged_userns_clone": "0"},
    "AppArmor": {"kernel/apparmor_restrict_unprivileged_userns": "1"},
    "fine": {
        "user/max_user_namespaces": "28633",
        "kernel/unprivileged_userns_clone": "1",
        "kernel/apparmor_restrict_unprivileged_userns": "0",
    },
}
UNSHARE = "unshare(CLONE_NEWUSER|CLONE_NEWNET)"
UID_MAP = "setting up the user namespace (/proc/self/uid_map)"
TUN = 'slirp4netns ended before it was ready (ended with status 1: open("/dev/net/tun")'
PASTA = "pasta ended before it was ready (ended with status 1:"
# What was said, the settings of that machine, what the hint must name. Those that no test makes
# happen for real are recorded from reports.
SAID = [
    (f"{UNSHARE}: No space left on device", "off", "user.max_user_namespaces=28633"),
    (f"{UNSHARE}: No space left on device", "no networks", "user.max_net_namespaces=28633"),
    (f"{UNSHARE}: No space left on device", "fine", "lsns"),
    (f"{UNSHARE}: Operation not permitted", "old Debian", "unprivileged_userns_clone=1"),
    (f"{UNSHARE}: Operation not permitted", "AppArmor", "apparmor_parser -r"),
    (f"{UID_MAP}: Operation not permitted", "AppArmor", "apparmor_parser -r"),
    (f"{UNSHARE}: Operation not permitted", "fine", "unshare -Urn true"),
    (f"{UID_MAP}: Operation not permitted", "fine", "unshare -Urn true"),
    (f"{UNSHARE}: Permission denied", "fine", "unshare -Urn true"),
    (f"{UNSHARE}: Invalid argument, with 2 threads", "fine", "LD_PRELOAD"),
    (f"{UNSHARE}: Invalid argument", "fine", "namespace.unpriv_enable=1"),
    (f"{TUN}: No such file or directory)", "fine", "modprobe tun"),
    (f"{TUN}: Permission denied)", "fine", "chmod 0666 /dev/net/tun"),
    (f"{PASTA} Failed to open() /dev/net/tun: No such file or directory)", "fine", "modprobe tun"),
    (f"{PASTA} Failed to open tun socket in namespace)", "fine", "crw-rw-rw-"),
    (f"{PASTA} TUNSETIFF ioctl on /dev/net/tun failed)", "fine", "mknod /dev/net/tun"),
    (f"{PASTA} netns dir open: Permission denied, exiting)", "fine", "ausearch -c pasta"),
    ("slirp4netns ended …: /proc/7/ns/net: Permission denied", "fine", "AppArmor or SELinux"),
    ("slirp4netns: unrecognized option '--mtu'", "fine", "0.4.0"),
    ("slirp4netns was not ready in 10.0 s", "fine", "by hand"),
    ("slirp4netns ended before it was ready (ended with status 3)", "fine", "by hand"),
    ("socket: Too many open files", "fine", "hard limit"),
]


@pytest.mark.parametrize(("said", "machine", "named"), SAID, ids=lambda value: value[:40])
def test_what_was_said_chooses_the_hint(said: str, machine: str, named: str) -> None:
    row = messages.find(said, functools.partial(setting_on, machine))
    assert row is not None
    assert named in row.hint("debian")


OTHERS = [
    "slirp4netns is not on PATH, and without it the sandbox has no way out",
    "pasta does not run for root, and without it the sandbox has no way out",
    "pasta ended before it was ready (ended with status 1: External interface not usable)",
    "slirp4netns ended by signal 9; ending the command (SIGTERM)",
    "host port 0.0.0.0:40001: Address already in use",
    "host port 198.18.0.9:40001: Cannot assign requested address",
    "host port 0.0.0.0:7: Permission denied",
    "host port 0.0.0.0:40001: No buffer space available",
    "no host port from 1 to 65535: there is no JUPYTERHUB_SERVICE_URL",
    "published port 0.0.0.0:40001: Address already in use",
    "run_path(which(cmd[0]) …): expected str, bytes or os.PathLike object, not NoneType",
    "the keeper process ended while the sandbox was set up",
    "no nameserver answers inside",
    "ssh: Bad owner or permissions on /etc/ssh/ssh_config.d/20-systemd-ssh-proxy.conf",
    "the hub http://198.18.0.1:8081 does not answer from inside",
]


def setting_on(machine: str, name: str) -> str:
    return SETTINGS[machine].get(name, "")


def test_no_row_stands_behind_one_that_takes_its_place() -> None:
    found = [messages.find(said, lambda name: "") for said in OTHERS]
    for said, machine, _ in SAID:
        found.append(messages.find(said, functools.partial(setting_on, machine)))
    assert [row.shows for row in messages.REFUSALS if row not in found] == []


PORT_TAKEN = "test_a_published_port_that_is_taken"
# Where each row that is not recorded is made to happen: a file of tests/namespaces, and a test.
REAL = {
    "User namespaces are switched off": ("test_check.py", "test_namespaces"),
    "Network namespaces are switched off": ("test_check.py", "test_namespaces"),
    "The limit of namespaces is reached": ("test_check.py", "test_namespaces"),
    "Something outside forbids": ("test_check.py", "test_namespaces_that_a_container_forbids"),
    "This interpreter starts a thread": ("test_refusals.py", "test_a_library_that_starts_a_thread"),
    "It gives up root's rights": ("test_network.py", "test_pasta_does_not_run_for_root"),
    "Install it on every node": ("test_check.py", "test_network_helpers"),
    "The tun device is missing": ("test_check.py", "test_the_tun_device"),
    "Every user must be able to open": ("test_check.py", "test_the_tun_device"),
    "The tun device does not work": ("test_check.py", "test_the_tun_device"),
    "This pasta needs an interface": ("test_network.py", "test_a_node_without_any_network"),
    "Run the same helper by hand": ("test_refusals.py", "test_helper_that_dies_at_its_start"),
    "The way out is gone": ("test_lifetime.py", "test_the_network_helper_dies"),
    "Each connection through the relay": ("test_refusals.py", "test_hardly_any_descriptor"),
    "Another program of this node has it": (
        "test_routes.py",
        "test_a_published_port_that_is_taken",
    ),
    "Another program of this node took it": ("test_refusals.py", "test_host_port_busy"),
    "This node has no such address": ("test_refusals.py", "test_host_name_that_nobody_knows"),
    "Ports below": ("test_refusals.py", "test_host_port_of_root"),
    "No port has arrived": ("test_refusals.py", "test_no_host_port"),
    "The node may be out of": ("test_refusals.py", "test_hardly_any_process"),
    "Names cannot be looked up": ("test_check.py", "test_no_nameserver"),
    "OpenSSH takes no file": ("test_check.py", "test_more_files_of_root_than_are_covered"),
    "The server must reach": ("test_check.py", "test_a_hub_that_does_not_answer"),
}
NEVER_SEEN = ["'ip address' shows"]
"""What is left of the host port's refusals: nobody has told of any."""


def test_every_row_happens_for_real_in_a_test_or_is_marked_as_recorded() -> None:
    rows = [row.cause for row in messages.REFUSALS if not row.recorded]
    known = [*REAL, *NEVER_SEEN]
    assert [cause for cause in rows if not cause.startswith(tuple(known))] == []
    assert [cause for cause in known if not any(row.startswith(cause) for row in rows)] == []
    for file, name in REAL.values():
        assert f"def {name}(" in (PROJECT / "tests" / "namespaces" / file).read_text(), name


SAYING = ("give_up", "end_session", "_overloaded", "NOT_NATIVE")


def texts_said(source: Path) -> list[str]:
    """What this module says when a start or a session ends, with "3" for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(source.read_text())):
        function = node.func if isinstance(node, ast.Call) else None
        name = getattr(function, "attr", getattr(function, "id", ""))  # of a method, of a function
        if isinstance(node, ast.Call) and name in SAYING:
            for text in node.args[:1]:
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                values = [part.value if isinstance(part, ast.Constant) else "3" for part in parts]
                found.append("".join(map(str, values)))
    return [text for text in found if text.strip("3")]


def test_whatever_the_keeper_says_has_a_row() -> None:
    said = [text for source in SOURCES for text in texts_said(source)]
    assert len(said) >= 6
    assert [text for text in said if messages.find(f"{text}; ending the command") is None] == []


def test_nothing_known() -> None:
    assert "--check" in messages.hint_for("something else")


RELEASES = [
    ('ID=debian\nVERSION_ID="12"\n', "debian", "apt-get install slirp4netns"),
    ('ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\n', "debian", "apt-get install slirp4netns"),
    ('ID=ubuntu\nID_LIKE=debian\nVERSION_ID="25.04"\n', "debian", "apt-get install slirp4netns"),
    ('ID="rhel"\nID_LIKE="fedora"\nVERSION_ID="8.10"\n', "rhel", "dnf install slirp4netns"),
    ('ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.5"\n', "rhel", "slirp4netns"),
    ('ID="almalinux"\nID_LIKE="rhel centos"\nVERSION_ID="10.0"\n', "rhel10", "passt"),
    ("ID=fedora\nVERSION_ID=42\n", "rhel10", "dnf install passt"),
    ("ID=arch\n# a comment\n\n", "", "Install it on every node"),
]


@pytest.mark.parametrize(("release", "system", "named"), RELEASES, ids=lambda value: value[:12])
def test_the_remedy_is_one_of_this_distribution(
    tmp_path: Path, release: str, system: str, named: str
) -> None:
    file = tmp_path / "os-release"
    file.write_text(release)
    assert messages.this_system(messages.os_release(str(file))) == system
    row = messages.find("slirp4netns is not on PATH, and without it the sandbox has no way out")
    assert row is not None and named in row.hint(system)
    assert messages.this_system(messages.os_release(str(tmp_path / "missing"))) == ""


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

HUB, SANDBOX = "batchspawner_portwrap", "portwrap"
BAD = [
    (HUB, ["server"], 2),
    (HUB, ["--bad\noption"], 2),
    (HUB, ["--portwrap-path", "/no/such", "server", "--port=40001"], 127),
    (HUB, ["--portwrap-path", "/", "server", "--port=40001"], 126),
    (HUB, ["/no/such\nserver", "--port=40001"], 127),
    (HUB, ["/", "--port=40001"], 126),
    (SANDBOX, [], 2),
    (SANDBOX, ["-p", "1e3", "server"], 2),
    (SANDBOX, ["-p", "40001", "/no/such"], 127),
]


@pytest.mark.parametrize(("module", "words", "status"), BAD, ids=lambda value: "")
def test_two_lines_on_standard_error_and_nothing_else(
    module: str, words: list[str], status: int
) -> None:
    result = run_program(module, words)
    assert result.returncode == status, result
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(("batchspawner-portwrap: ", "portwrap: "))
    assert second.startswith("  ") and second.strip()


@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_the_status_is_right_even_if_nobody_can_be_told(shell: str) -> None:
    result = run_program(HUB, ["server"], redirections=shell)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


BROKEN = """
import batchspawner_portwrap, portwrap.cli.parser

def broken(*_):
    raise RuntimeError("a bug")

portwrap.cli.parser.parse_port = broken
batchspawner_portwrap.main(["--port", "40001", "server"])
"""


def test_a_bug_is_no_expected_failure() -> None:
    environ = {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", BROKEN]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20)
    assert result.returncode == 1
    assert result.stderr.endswith("RuntimeError: a bug\n")
