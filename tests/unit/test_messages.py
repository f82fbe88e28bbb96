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

from portwrap.cli.run import as_lines
from portwrap.diagnostics import diagnostic, errors, lookup, remedies
from portwrap.diagnostics.diagnostic import Diagnostic
from portwrap.diagnostics.errors import Failure, PortwrapError
from portwrap.diagnostics.surroundings import APPARMOR, FILTER, OWN_DEVICES
from portwrap.launch import drivers, namespaces
from portwrap.launch.command import find_command
from portwrap.launch.drivers.driver import find_executable

from helpers import PROJECT, run_program

SOURCES = sorted([PROJECT / "batchspawner_portwrap.py", *(PROJECT / "portwrap").glob("**/*.py")])


FAILURES = {name: value for name, value in vars(Failure).items() if name.isupper()}
OF_THE_USER = {Failure.USAGE}
"""Failures whose remedies only the caller knows."""


def test_every_failure_has_a_remedy_and_every_remedy_a_failure() -> None:
    assert len(set(FAILURES.values())) == len(FAILURES)
    rows = {row.failure for row in remedies.table()}
    assert rows == set(FAILURES.values()) - OF_THE_USER
    used = " ".join(source.read_text() for source in SOURCES if source.name != "errors.py")
    assert [name for name in FAILURES if f"Failure.{name}" not in used] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.name))
def test_no_caller_invents_an_identifier(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == PortwrapError.__name__:
            assert len(node.args) >= 2 and not isinstance(node.args[1], ast.Constant), node.lineno


def test_lines() -> None:
    error = PortwrapError("a: b", Failure.USAGE, 126, remedy="Do c.")
    assert as_lines("p", error) == "p: a: b\n  Do c.\n"
    assert PortwrapError("a", Failure.KEEPER).exit_code == errors.EXIT_SANDBOX == 125
    assert (errors.EXIT_USAGE, errors.EXIT_NOT_EXECUTABLE, errors.EXIT_NOT_FOUND) == (2, 126, 127)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028"])
def test_a_line_end_in_a_name_does_not_make_a_second_line(end: str) -> None:
    error = PortwrapError(f"a{end}b: not found", Failure.USAGE, remedy=f"c{end}d")
    text = as_lines("p", error)
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
    assert len(as_lines("p", caught.value).splitlines()) == 2
    return caught.value


def test_command_that_is_missing(tmp_path: Path) -> None:
    error = why_not(tmp_path / "missing")
    assert (error.exit_code, error.message) == (127, f"{tmp_path}/missing: no such file")
    error = why_not("missing", str(tmp_path))
    assert (error.exit_code, error.message) == (127, f"missing: not found on PATH ({tmp_path})")
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
    assert f"'chmod +x {script}'" in lookup.remedy_of(error)


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
    assert f"its interpreter {named} does not exist" in as_lines("p", error)
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


# ---- namespaces and the network driver -------------------------------------------------------


EXPLAINED = (errno.ENOSPC, errno.EINVAL)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM, errno.EACCES, errno.EINVAL, 0])
def test_every_answer_of_the_kernel_has_a_remedy(number: int) -> None:
    error = namespaces._refused(OSError(number, os.strerror(number)), "unshare")
    assert error.exit_code == 125
    assert error.message.startswith(f"unshare: {os.strerror(number)}")
    assert "unshare -Urn true" in lookup.remedy_of(error) or number in EXPLAINED


SETTINGS = {
    "off": {"user/max_user_namespaces": "0"},
    "no networks": {"user/max_net_namespaces": "0"},
    "old Debian": {"kernel/unprivileged_userns_clone": "0"},
    "within another": {"user/max_user_namespaces": "2147483647"},
    "AppArmor": {"kernel/apparmor_restrict_unprivileged_userns": "1"},
    "fine": {
        "user/max_user_namespaces": "28633",
        "kernel/unprivileged_userns_clone": "1",
        "kernel/apparmor_restrict_unprivileged_userns": "0",
    },
}
TUN = 'slirp4netns ended before it was ready (ended with status 1: open("/dev/net/tun")'
PASTA = "pasta ended before it was ready (ended with status 1:"
# The identifier of a failure, the settings of that machine, what the remedy must name.
SEEN = [
    (Failure.NAMESPACE_LIMIT, "off", "user.max_user_namespaces=28633"),
    (Failure.NAMESPACE_LIMIT, "no networks", "user.max_net_namespaces=28633"),
    (Failure.NAMESPACE_LIMIT, "fine", "lsns"),
    (Failure.NAMESPACE_FORBIDDEN, "old Debian", "unprivileged_userns_clone=1"),
    (Failure.NAMESPACE_FORBIDDEN, "AppArmor", "apparmor_parser -r"),
    (Failure.NAMESPACE_FORBIDDEN, "fine", "unshare -Urn true"),
    (Failure.NAMESPACE_THREADS, "fine", "ld.so.preload"),
    (Failure.NAMESPACE_MISSING, "fine", "namespace.unpriv_enable=1"),
    (Failure.DESCRIPTORS, "fine", "hard limit"),
    (Failure.NAMESPACE_LIMIT, "within another", "--disable-userns"),
]
# The identifier of a failure, its message, what is around the job, what the remedy must name.
FORBIDDEN = "pidfd_getfd: Operation not permitted"
AROUND = [
    (Failure.NAMESPACE_FORBIDDEN, "unshare: Permission denied", APPARMOR, "userns,"),
    (Failure.NAMESPACE_FORBIDDEN, "unshare", FILTER, "RestrictNamespaces="),
    (Failure.KEEPER, f"the keeper failed: {FORBIDDEN}", FILTER, "PORTWRAP_FORWARD=relay"),
    (Failure.DRIVER_START, "pasta (ended by signal 31)", FILTER, "mount"),
    (Failure.SYSTEM, "Address family not supported by protocol", FILTER, "RestrictAddress"),
    (Failure.NATIVE, FORBIDDEN, FILTER, "PORTWRAP_FORWARD=relay"),
    (Failure.NATIVE_OUTBOUND, FORBIDDEN, FILTER, "PORTWRAP_OUTWARD=helper"),
    (Failure.RELAYED, FORBIDDEN, FILTER, "PORTWRAP_FORWARD=relay"),
    (Failure.BY_DRIVER, FORBIDDEN, FILTER, "PORTWRAP_OUTWARD=helper"),
    (Failure.TUN_MISSING, "/dev/net/tun: No such file", OWN_DEVICES, "BindPaths="),
]
# What network drivers and the kernel have printed, in reports and in tests.
PRINTED = [
    (f"{TUN}: No such file or directory)", "modprobe tun"),
    (f"{TUN}: Permission denied)", "chmod 0666 /dev/net/tun"),
    (f"{TUN}: Operation not permitted)", "device cgroup"),
    (f"{PASTA} Failed to open() /dev/net/tun: No such file or directory)", "modprobe tun"),
    (f"{PASTA} Failed to open tun socket in namespace)", "crw-rw-rw-"),
    (f"{PASTA} TUNSETIFF ioctl on /dev/net/tun failed)", "mknod /dev/net/tun"),
    (f"{PASTA} netns dir open: Permission denied, exiting)", "ausearch -c pasta"),
    (f"{PASTA} External interface not usable)", "--network slirp4netns"),
    (f"{PASTA} pasta: unrecognized option '--no-map-gw')", "2022_07_14"),
    ("slirp4netns ended …: /proc/7/ns/net: Permission denied", "AppArmor or SELinux"),
    ("slirp4netns …: slirp4netns: unrecognized option '--mtu'", "0.4.0"),
    ("slirp4netns was not ready in 10.0 s", "slirp4netns --configure $! tap0"),
    ("slirp4netns ended before it was ready (ended with status 3)", "unshare -Urn sleep 60"),
    ("pasta ended before it was ready (ended with status 3)", "pasta --config-net $!"),
    ("slirp4netns …: socket: Too many open files", "hard limit"),
]


def setting_on(machine: str, name: str) -> str:
    return SETTINGS[machine].get(name, "")


def row_of(
    failure: str, message: str = "", machine: str = "fine", subject: str = "", around: str = ""
) -> Diagnostic:
    setting = functools.partial(setting_on, machine)
    row = lookup.find(failure, message, subject, setting, around.__eq__)
    assert row is not None
    return row


@pytest.mark.parametrize(("failure", "machine", "named"), SEEN)
def test_the_identifier_and_the_machine_choose_the_remedy(
    failure: str, machine: str, named: str
) -> None:
    assert named in row_of(failure, machine=machine).line("debian")


@pytest.mark.parametrize(("failure", "message", "around", "named"), AROUND)
def test_what_is_around_the_job_chooses_the_remedy(
    failure: str, message: str, around: str, named: str
) -> None:
    row, without = row_of(failure, message, around=around), row_of(failure, message)
    assert named in row.line("debian")
    assert row.around == around and without.around == ""


@pytest.mark.parametrize("failure", [Failure.NATIVE, Failure.RELAYED, Failure.BY_DRIVER])
def test_a_filter_is_not_the_reason_for_what_a_kernel_lacks(failure: str) -> None:
    row = row_of(failure, "pidfd_getfd: Function not implemented", around=FILTER)
    assert "Linux 5." in row.line("debian")


@pytest.mark.parametrize(("printed", "named"), PRINTED, ids=lambda value: value[-40:])
def test_what_a_network_driver_prints_chooses_the_remedy(printed: str, named: str) -> None:
    assert named in row_of(Failure.DRIVER_START, printed).line("debian")


def test_what_the_kernel_says_to_the_keeper_chooses_the_remedy() -> None:
    assert row_of(Failure.KEEPER, "the keeper failed: Too many open files").failure == "descriptors"
    assert (
        row_of(Failure.KEEPER, "sending to the keeper: Too many references").failure
        == "descriptors"
    )
    assert row_of(Failure.KEEPER, "the keeper failed: Cannot allocate memory").failure == "keeper"


def test_no_row_stands_behind_one_that_takes_its_place() -> None:
    """Each is found by its identifier, by the words of a driver, by its example, or on a
    machine with its setting."""
    found = [row_of(failure, machine=machine) for failure, machine, _ in SEEN]
    found += [row_of(Failure.DRIVER_START, printed) for printed, _ in PRINTED]
    found += [row_of(failure, message, around=around) for failure, message, around, _ in AROUND]
    for row in remedies.table():
        if row.failure != Failure.DRIVER_START:
            message = row.example if row.answer and not row.around else ""
            found.append(row_of(row.failure, message, subject=row.subject))
    causes = [row.cause for row in found]
    assert [row.cause for row in remedies.table() if row.cause not in causes] == []


# Where each row that is not recorded is made to happen: a file of tests/namespaces, and a test.
CHECK, REFUSALS, MISTAKES = "test_check.py", "test_refusals.py", "test_mistakes.py"
UNEXPECTED, AROUND_IT = "../unit/test_unexpected.py", "test_surroundings.py"
REAL = {
    "/proc is read-only": ("test_surroundings.py", "test_a_proc_that_is_read_only"),
    "User namespaces are switched off": (CHECK, "test_namespaces"),
    "Network namespaces are switched off": (CHECK, "test_namespaces"),
    "The limit of namespaces is reached": (CHECK, "test_namespaces"),
    "AppArmor restricts": (CHECK, "test_the_remedy_for_apparmor_works_as_it_is_printed"),
    "The AppArmor profile of this": ("../vm/test_refusals.py", "test_apparmor"),
    "A container, chroot": (CHECK, "test_namespaces_that_something_forbids"),
    "A seccomp filter around the job": (
        AROUND_IT,
        "test_a_filter_of_systemd_and_what_it_does_not_allow",
    ),
    "A sandbox or container": (AROUND_IT, "test_a_sandbox_that_allows_no_further_one"),
    "The job has a /dev": (AROUND_IT, "test_a_job_with_a_dev_of_its_own"),
    "A device cgroup": (AROUND_IT, "test_a_device_cgroup"),
    "CUDA needs": (AROUND_IT, "test_the_check_looks_at_what_cuda_needs"),
    "This interpreter starts a thread": (REFUSALS, "test_an_interpreter_that_starts_a_thread"),
    "Whoever can change the program": ("test_writable.py", "test_the_check_warns"),
    "It needs native forwarding or": ("test_ephemeral_ports.py", "test_nothing_is_native"),
    "Native outbound is not possible": (CHECK, "test_a_kernel_without_native_forwarding"),
    "The tun device is missing": (CHECK, "test_the_tun_device"),
    "Every user must be able to open": (CHECK, "test_the_tun_device"),
    "The tun device does not work": (CHECK, "test_the_tun_device"),
    "The limit of open files is too low": (REFUSALS, "test_hardly_any_descriptor"),
    "Each relayed connection": (CHECK, "test_few_descriptors"),
    "Each session needs a user": (CHECK, "test_few_namespaces"),
    "A session starts faster": ("../e2e/test_build_for.py", "test_the_check_of_byte_code"),
    "This Python or this program": (UNEXPECTED, "test_what_the_system_causes_is_two_lines"),
    "The system refused a step": (UNEXPECTED, "test_what_the_system_causes_is_two_lines"),
    "A limit of this job": (UNEXPECTED, "test_what_the_system_causes_is_two_lines"),
    "The node may be out of": (REFUSALS, "test_hardly_any_process"),
    "pasta gives up root's": ("test_network.py", "test_pasta_does_not_run_for_root"),
    "This pasta needs an interface": ("test_network.py", "test_a_node_without_any_network"),
    "slirp4netns does not work": (REFUSALS, "test_driver_that_dies_at_its_start"),
    "pasta does not work": (CHECK, "test_the_other_network_driver_is_only_warned_about"),
    "This node lacks": (CHECK, "test_network_drivers"),
    "Outbound connections are lost": ("test_lifetime.py", "test_the_network_driver_dies"),
    "Another program on this node uses it": (
        "test_routes.py",
        "test_a_published_port_that_is_taken",
    ),
    "Another program on this node already": (REFUSALS, "test_host_port_busy"),
    "This node does not have this address": (REFUSALS, "test_host_name_that_nobody_knows"),
    "Ports below": (REFUSALS, "test_host_port_of_root"),
    "No port was given": (REFUSALS, "test_no_host_port"),
    "Names cannot be resolved": (CHECK, "test_no_nameserver"),
    "OpenSSH rejects": (CHECK, "test_more_files_of_root_than_are_covered"),
    "ssh cannot read": (CHECK, "test_a_configuration_that_ssh_does_not_read"),
    "No program on this node listens there": (CHECK, "test_a_hub_on_loopback_that_does_not_answer"),
    "The network driver cannot reach": (CHECK, "test_a_hub_that_only_the_node_reaches"),
    "The server listens on another port": ("test_unserved.py", "test_where_the_server_listens"),
    "A container or a sandbox in the session": (
        "test_unserved.py",
        "test_where_the_server_listens",
    ),
    "The network driver uses that": (CHECK, "test_a_hub_in_the_sandboxs_own_network"),
    "This node has routes to every": (CHECK, "test_a_node_that_uses_every_network_of_a_sandbox"),
    "The server must reach": (CHECK, "test_a_hub_that_does_not_answer"),
    "This node does not know the name": (CHECK, "test_a_hub_that_does_not_answer"),
    "No program listens at this": (CHECK, "test_a_hub_that_does_not_answer"),
    "The program there does not use TLS": (CHECK, "test_a_url_that_is_nearly_that_of_the_hub"),
    "Another program answers at this URL": (CHECK, "test_a_web_server_that_is_no_hub"),
    "Sessions of batchspawner": (
        CHECK,
        "test_profiles_where_the_one_that_sessions_need_is_missing",
    ),
    "Native forwarding is not": (CHECK, "test_a_kernel_without_native_forwarding"),
    "It needs Linux 5.9": (CHECK, "test_a_kernel_without_native_forwarding"),
    "The service would be open": (MISTAKES, "test_the_remedy_works_as_it_is_printed"),
    "No directory on PATH": (MISTAKES, "test_the_remedy_works_as_it_is_printed"),
    "This file does not exist": (MISTAKES, "test_the_remedy_works_as_it_is_printed"),
    "Give the path of a program": (MISTAKES, "test_the_remedy_works_as_it_is_printed"),
    "This account may not execute": (MISTAKES, "test_the_remedy_works_as_it_is_printed"),
    "The first line of the script": (MISTAKES, "test_the_remedy_works_as_it_is_printed"),
    "The file cannot be executed": (
        "test_exit_status.py",
        "test_a_command_that_is_no_program",
    ),
}
NEVER_SEEN = [
    "The system does not allow",
    "The kernel refuses",
    "Each address and port can",
    "Each uses a file descriptor",
]
"""What is left of a kind of failure: nobody has told of any."""


def test_every_row_happens_for_real_in_a_test_or_is_marked_as_recorded() -> None:
    rows = [row.cause for row in remedies.table() if not row.recorded]
    known = [*REAL, *NEVER_SEEN]
    assert [cause for cause in rows if not cause.startswith(tuple(known))] == []
    assert [cause for cause in known if not any(row.startswith(cause) for row in rows)] == []
    for file, name in REAL.values():
        assert f"def {name}(" in (PROJECT / "tests" / "namespaces" / file).read_text(), name


def test_nothing_known() -> None:
    assert "--check" in lookup.remedy_of(PortwrapError("something else", "no identifier"))


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
    assert diagnostic.this_system(diagnostic.os_release(str(file))) == system
    assert named in row_of(Failure.DRIVER_NOT_FOUND).line(system)
    assert diagnostic.this_system(diagnostic.os_release(str(tmp_path / "missing"))) == ""


def test_each_network_driver_is_in_the_table_and_in_the_choices() -> None:
    names = [driver.name for driver in drivers.NETWORK_DRIVERS]
    assert ("auto", *names, "direct", "none") == drivers.CHOICES
    for name in names:
        assert row_of(Failure.DRIVER_NOT_FOUND, subject=name).cause.startswith(
            f"This node lacks {name}"
        )
        assert name in row_of(Failure.DRIVER_START, f"{name} was not ready in 10 s").cause


def test_network_driver_is_looked_up_on_path_first(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tool").mkdir()
    make(tmp_path / "tool", "", 0o644)
    folders = f"{tmp_path}/a:{tmp_path}"
    assert find_executable("tool", {"PATH": folders}) is None
    make(tmp_path / "tool", "#!/bin/sh\n")
    assert find_executable("tool", {"PATH": folders}) == str(tmp_path / "tool")
    # one that stands in the working directory is nobody's choice
    assert find_executable("tool", {"PATH": ":."}) is None
    assert find_executable("sh", {"PATH": ""}) == "/usr/bin/sh"


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
