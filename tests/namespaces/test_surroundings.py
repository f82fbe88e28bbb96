"""Jobs with something around them: a seccomp filter, a /dev or a device cgroup of their own. A
session starts in there, or two lines tell what is in its way."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import pytest
from checked_node import Node
from launches import (
    as_owner_in,
    in_sandbox,
    ours_alive,
    refusal_of,
    run_in_sandbox,
    wait_until_nothing_is_left,
)
from networks import SERVER, Host
from outbound import echoing, native, whose

from helpers import OWNER, PROJECT, cannot, environment, needs, run_as, wait_until
from sessions import Inside, Portwrap, injected, kill, unused_port

pytestmark = pytest.mark.namespaces

WORKER = "portwrap-relay"
LIMIT = 1.9
"""Seconds within which nothing of a session may be left."""
NATIVE_CALLS = ["pidfd_open", "pidfd_getfd", "pidfd_send_signal", "seccomp", "kcmp"]
NATIVE_CALLS += ["process_vm_readv"]
SERVICE_FILTER = "pidfd_getfd,seccomp,mount=kill"
"""What a session may call and SystemCallFilter=@system-service of systemd does not have."""


@pytest.fixture
def port() -> int:
    return unused_port()


def by_driver(**more: str) -> dict[str, str]:
    """The environment where a session cannot do without a network driver."""
    return environment(OWNER, {"PORTWRAP_OUTWARD": "helper", **more})


# ---- seccomp filters ---------------------------------------------------------------------------


def verbosely(portwrap: Portwrap, port: int, filtered: str, *options: str) -> Any:
    """Run echo in a session within such a filter, with every step in the log."""
    before = portwrap.program("without.py", filtered)
    words = in_sandbox(portwrap, port=port)
    return run_as(OWNER, [*before, *words, "-v", *options, "echo", "there"])


@pytest.mark.parametrize("call", NATIVE_CALLS)
def test_a_call_that_would_be_the_end_is_not_made(portwrap: Portwrap, port: int, call: str) -> None:
    before = ours_alive()
    result = verbosely(portwrap, port, f"{call}=kill")
    assert (result.returncode, result.stdout) == (0, "there\n"), result
    assert f"forward: relay, because a seccomp filter kills the callers of {call}\n" in (
        result.stderr
    )
    wait_until_nothing_is_left(before, port)


SSH_FOLDER = "/etc/ssh/ssh_config.d"


@pytest.mark.parametrize("filtered", ["mount=kill", "mount=EPERM"])
def test_mounts_that_are_forbidden(portwrap: Portwrap, filtered: str) -> None:
    """ssh goes without its configuration of root's, and is the only one to."""
    needs("ssh")
    around = as_owner_in(
        "mount -t tmpfs -o mode=0755 tmpfs /etc/ssh",
        f"mkdir {SSH_FOLDER} && touch {SSH_FOLDER}/site.conf",
        f"echo 'Include {SSH_FOLDER}/*.conf' >/etc/ssh/ssh_config",
    )
    around += portwrap.program("without.py", filtered)
    result = run_in_sandbox(
        portwrap, "echo", "there", before=around, account="root", env=environment(OWNER)
    )
    assert (result.returncode, result.stdout) == (0, "there\n"), result
    assert result.stderr.startswith(f"portwrap: ssh rejects root-owned files in {SSH_FOLDER}: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("answer", ["EPERM", "ENOSYS", "EACCES"])
@pytest.mark.parametrize("call", [*NATIVE_CALLS, "mount"])
def test_a_call_that_is_refused(portwrap: Portwrap, port: int, call: str, answer: str) -> None:
    before = ours_alive()
    result = verbosely(portwrap, port, f"{call}={answer}")
    assert (result.returncode, result.stdout) == (0, "there\n"), result
    assert "Traceback" not in result.stderr and "kills" not in result.stderr
    wait_until_nothing_is_left(before, port)


@pytest.mark.parametrize(
    ("filtered", "said"),
    [
        ("unshare=kill", ["a seccomp filter kills the callers of unshare", "RestrictNamespaces="]),
        ("setns=kill", ["a seccomp filter kills the callers of setns", "RestrictNamespaces="]),
        ("unshare=EPERM", ["Operation not permitted", "RestrictNamespaces="]),
        ("setns=EPERM", ["slirp4netns ended before", "seccomp filter", "Allow setns, "]),
    ],
)
def test_what_no_session_can_do_without(
    portwrap: Portwrap, port: int, filtered: str, said: list[str]
) -> None:
    before, around = ours_alive(), portwrap.program("without.py", filtered)
    result = run_in_sandbox(portwrap, "true", port=port, before=around)
    refusal_of(result, 125, *said)
    wait_until_nothing_is_left(before, port)


REFUSED = [  # settings, what refuses the start, and the remedy
    ({"FORWARD": "native"}, "--forward native is not possible", "PORTWRAP_FORWARD=relay"),
    ({"OUTWARD": "native"}, "--outward native is not possible", "PORTWRAP_OUTWARD=helper"),
    ({"NETWORK": "direct"}, "--network direct is not possible", "PORTWRAP_OUTWARD=helper"),
    ({"NETWORK": "pasta"}, "pasta ended before it was ready (ended by signal 31)", "Allow setns, "),
]


@pytest.mark.parametrize(("settings", "said", "remedy"), REFUSED)
def test_a_filter_of_systemd_and_what_it_does_not_allow(
    portwrap: Portwrap, port: int, settings: dict[str, str], said: str, remedy: str
) -> None:
    before, around = ours_alive(), portwrap.program("without.py", SERVICE_FILTER)
    env = environment(OWNER, {f"PORTWRAP_{name}": value for name, value in settings.items()})
    result = run_in_sandbox(portwrap, "true", port=port, before=around, env=env)
    refusal_of(result, 125, said, "A seccomp filter around the job", remedy)
    wait_until_nothing_is_left(before, port)


def test_a_keeper_that_a_filter_refuses(portwrap: Portwrap, port: int) -> None:
    around = portwrap.program("without.py", "setns=EPERM")
    env = by_driver(PORTWRAP_NETWORK="none", PORTWRAP_FORWARD="relay")
    result = run_in_sandbox(portwrap, "true", port=port, before=around, env=env)
    said = "the keeper failed: setns: Operation not permitted"
    refusal_of(result, 125, said, "A seccomp filter around the job", "PORTWRAP_FORWARD=relay")


def test_a_step_that_a_filter_refuses(portwrap: Portwrap, port: int) -> None:
    """As RestrictAddressFamilies= of systemd."""
    around = portwrap.program("without.py", "netlink")
    env = environment(OWNER, {"PORTWRAP_NETWORK": "direct"})
    result = run_in_sandbox(portwrap, "true", port=port, before=around, env=env)
    refusal_of(result, 125, "Address family not supported", "RestrictAddressFamilies=")


def test_a_server_within_a_filter_of_systemd(portwrap: Portwrap) -> None:
    around = portwrap.program("without.py", SERVICE_FILTER)
    with Inside(portwrap, forward="auto", before=around, network="slirp4netns") as session:
        session.wait_until_up()
        with session.serve() as listener:
            client, server = session.pair(listener)
            client.sendall(b"there")
            assert server.recv(100) == b"there"


@pytest.mark.parametrize("driver", ["slirp4netns", "none"])
def test_without_netlink(portwrap: Portwrap, port: int, driver: str) -> None:
    """Neither the relay nor slirp4netns needs it."""
    around, env = portwrap.program("without.py", "netlink"), by_driver(PORTWRAP_NETWORK=driver)
    result = run_in_sandbox(portwrap, "echo", "there", port=port, before=around, env=env)
    assert (result.returncode, result.stdout, result.stderr) == (0, "there\n", "")


def test_a_driver_without_netlink(portwrap: Portwrap, port: int) -> None:
    around, env = portwrap.program("without.py", "netlink"), by_driver(PORTWRAP_NETWORK="pasta")
    result = run_in_sandbox(portwrap, "true", port=port, before=around, env=env)
    refusal_of(result, 125, "netlink socket", "A seccomp filter around the job", "AF_NETLINK")


PAGE = (PROJECT / "docs" / "containers.md").read_text()
ADVISED = re.findall(r"^SystemCallFilter=(.+)$", PAGE, re.MULTILINE)[0].split()
"""What is to allow everything."""


@pytest.mark.parametrize("network", ["slirp4netns", "pasta", "direct"])
def test_a_filter_of_systemd_that_allows_everything(
    portwrap: Portwrap, host: Host, network: str
) -> None:
    around = portwrap.program("service_filter.py", "kill", ",".join(ADVISED))
    with native(portwrap, before=around, network=network) as session:
        with echoing(host.listen(SERVER)) as port:
            assert whose(session, port) == "native"
        with session.serve() as listener:
            client, server = session.pair(listener)
            client.sendall(b"there")
            assert server.recv(100) == b"there"


@pytest.mark.parametrize("missing", ["pidfd_getfd", "seccomp"])
def test_a_filter_of_systemd_that_lacks_one_call(
    portwrap: Portwrap, port: int, missing: str
) -> None:
    """The control: systemd's own sets do not have it."""
    names = ",".join(name for name in ADVISED if name != missing)
    around = portwrap.program("service_filter.py", "kill", names)
    words = in_sandbox(portwrap, "-v", "echo", "there", port=port)
    result = run_as(OWNER, [*around, *words])
    assert (result.returncode, result.stdout) == (0, "there\n"), result
    assert f"forward: relay, because a seccomp filter kills the callers of {missing}\n" in (
        result.stderr
    )


def check_within(node: Node, filtered: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The status of --check within a filter, and what it has found, by name."""
    around = node.portwrap.program("without.py", filtered)
    status, answer = node.check("--network", "slirp4netns", before=around)
    return status, {check["name"]: check for check in answer["checks"]}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("kill", "a seccomp filter kills the callers of pidfd_getfd"),
        ("EPERM", "pidfd_getfd: Operation not permitted"),
    ],
)
def test_the_check_within_a_filter_of_systemd(node: Node, answer: str, why: str) -> None:
    status, found = check_within(node, SERVICE_FILTER.replace("kill", answer))
    assert status == 0, found
    assert found["forward"]["fact"] == f"relay ({why})"
    assert found["outbound"]["fact"] == f"slirp4netns ({why})"
    for name, setting in (("forward", "FORWARD=relay"), ("outbound", "OUTWARD=helper")):
        assert found[name]["status"] == "warning"
        assert "A seccomp filter" in found[name]["remedy"]
        assert f"PORTWRAP_{setting}" in found[name]["remedy"]


def test_the_check_within_a_filter_of_namespaces(node: Node) -> None:
    status, found = check_within(node, "unshare=kill")
    assert (status, found["user namespaces"]["status"]) == (125, "failed")
    assert "kills the callers of unshare" in found["user namespaces"]["fact"]
    assert "RestrictNamespaces=" in found["user namespaces"]["remedy"]


def test_a_proc_that_is_read_only(portwrap: Portwrap, port: int) -> None:
    """As by ReadOnlyPaths=/ of systemd."""
    around = as_owner_in("mount -o remount,bind,ro /proc")
    env = environment(OWNER)
    result = run_in_sandbox(portwrap, "true", port=port, before=around, account="root", env=env)
    refusal_of(result, 125, "Read-only file system", "ReadWritePaths=/proc")


# ---- security modules --------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "relay": {"forward": "relay"},
    "native": {"forward": "auto"},
    "worker": {"forward": "relay", "extra_env": {"PORTWRAP_HOST_SERVICE": str(unused_port())}},
}
ENDS = ["relay-command", "relay-driver", "native-command", "native-driver"]
ENDS += ["worker-command", "worker-driver", "worker-worker"]
FORBIDDEN = ["kill", "wait4", "setns", "kcmp", "pidfd_open,pidfd_getfd,pidfd_send_signal"]
FORBIDDEN += ["process_vm_readv", "openat", "readlink", "getdents64", "ptrace"]


def use(session: Inside) -> None:
    """Have a server, and a client; whether they meet is not the question."""
    try:
        with session.serve():
            session.client()
    except OSError:
        pass  # the session has ended


@pytest.mark.parametrize("call", FORBIDDEN)
@pytest.mark.parametrize("end", ENDS)
def test_a_security_module_that_forbids(portwrap: Portwrap, end: str, call: str) -> None:
    """As AppArmor, where pasta's profile takes signals of unconfined processes only. However the
    session ends, it does so at once, and nobody reads of a fault of ours."""
    form, _, ends = end.partition("-")
    with Inside(portwrap, **FORMS[form]) as session:
        session.wait_until_up()
        if form == "worker":
            wait_until(lambda: session.named(WORKER), what="the worker")
        pids = {"command": session.pid, "driver": session.driver, "worker": session.named(WORKER)}
        with injected(session.keeper, f"{call}:error=EACCES", children=True):
            use(session)
            kill(pids[ends])
            session.wait_until_gone(LIMIT)
        said = session.stderr()
        assert "Traceback" not in said
        if call == "kill" and ends != "command":
            what = {"driver": "slirp4netns", "worker": "the relay in the sandbox"}[ends]
            assert f"portwrap: {what} ended by signal 9; ending the command (SIGTERM)\n" in said


# ---- user namespaces of a sandbox around the job -----------------------------------------------

BWRAP = ["bwrap", "--dev-bind", "/", "/"]


def test_a_sandbox_that_allows_no_further_one(portwrap: Portwrap, port: int) -> None:
    needs("bwrap")
    around = [*BWRAP, "--unshare-user"]
    control = run_in_sandbox(portwrap, "echo", "there", before=around)
    assert (control.returncode, control.stdout) == (0, "there\n"), control
    result = run_in_sandbox(portwrap, "true", port=port, before=[*around, "--disable-userns"])
    said = refusal_of(result, 125, "No space left on device", "--disable-userns")
    assert "sysctl" not in said


# ---- the tun device ----------------------------------------------------------------------------

OWN_DEV = [*BWRAP, "--dev", "/dev"]
TUN = "/dev/net/tun"


def test_a_job_with_a_dev_of_its_own(portwrap: Portwrap, port: int) -> None:
    needs("bwrap")
    result = run_in_sandbox(portwrap, "true", port=port, before=OWN_DEV, env=by_driver())
    said = refusal_of(result, 125, "No such file or directory", f"--dev-bind {TUN}")
    for remedy in (f"--device {TUN}", f"--bind {TUN}", f"BindPaths={TUN}", "--network direct"):
        assert remedy in said
    assert "modprobe" not in said and "mknod" not in said
    # the remedies work
    cured = [*OWN_DEV, "--dev-bind", TUN, TUN]
    result = run_in_sandbox(portwrap, "echo", "there", port=port, before=cured, env=by_driver())
    assert (result.returncode, result.stdout) == (0, "there\n"), result
    env = environment(OWNER, {"PORTWRAP_NETWORK": "direct"})
    result = run_in_sandbox(portwrap, "echo", "there", port=port, before=OWN_DEV, env=env)
    assert (result.returncode, result.stdout, result.stderr) == (0, "there\n", "")


PRIVATE_DEVICES = (  # as PrivateDevices= of systemd
    "new=$(mktemp -d)",
    "mount -t tmpfs tmpfs $new",
    "for each in null zero random urandom; do",
    "    touch $new/$each; mount --bind /dev/$each $new/$each",
    "done",
    "mount --move $new /dev",
    "rmdir $new",
)


def test_a_unit_with_private_devices(portwrap: Portwrap, port: int) -> None:
    around = as_owner_in(*PRIVATE_DEVICES)
    result = run_in_sandbox(
        portwrap, "true", port=port, before=around, account="root", env=by_driver()
    )
    refusal_of(result, 125, "No such file or directory", "BindPaths=", "PrivateDevices=")


DEVICES = Path("/sys/fs/cgroup/devices")


@contextmanager
def device_cgroup(*denied: str) -> Iterator[list[str]]:
    """Words that run others in a cgroup that denies these devices."""
    if not DEVICES.joinpath("devices.deny").exists():
        cannot("no cgroup of devices here (cgroup v1)")
    folder = DEVICES / f"portwrap-test-{os.getpid()}"
    folder.mkdir()
    try:
        for device in denied:
            folder.joinpath("devices.deny").write_text(device)
        become = f'exec setpriv --reuid={OWNER} --regid={OWNER} --init-groups -- "$@"'
        yield ["sh", "-c", f"echo $$ >{folder}/cgroup.procs; {become}", "sh"]
    finally:
        tasks = folder / "cgroup.procs"
        wait_until(lambda: not tasks.read_text(), what="nobody in the cgroup")
        folder.rmdir()


def test_a_device_cgroup(portwrap: Portwrap, port: int, node: Node) -> None:
    before = ours_alive()
    with device_cgroup("c 10:200 rwm") as around:
        for driver, answer in (("auto", "Operation not permitted"), ("pasta", "tun socket")):
            env = by_driver(PORTWRAP_NETWORK=driver)
            result = run_in_sandbox(
                portwrap, "true", port=port, before=around, account="root", env=env
            )
            said = refusal_of(result, 125, answer, "device cgroup")
            assert "chmod" not in said and "cgroup_allowed_devices_file" not in said
            assert "DeviceAllow=" in said and "--network direct" in said
        words = [*around, *node.program("--check", "--json")]
        answer = json.loads(node.run(node.enter(*words)).stdout)
        found = {check["name"]: check for check in answer["checks"]}
        assert found["tun device"]["fact"] == f"{TUN}: Operation not permitted"
        assert "DeviceAllow=" in found["tun device"]["remedy"]
        assert "device cgroup" in found["network driver"]["remedy"]
        wait_until_nothing_is_left(before | set(map(int, [node.holder.pid])), port)
    with device_cgroup() as around:
        result = run_in_sandbox(
            portwrap, "echo", "there", port=port, before=around, account="root", env=by_driver()
        )
        assert (result.returncode, result.stdout) == (0, "there\n"), result


# ---- GPUs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [[], ["nvidia-uvm"]], ids=["", "uvm"])
def test_the_check_looks_at_what_cuda_needs(make_node: Any, made: list[str]) -> None:
    """A stand-in: no GPU is needed to see which devices there are."""
    names = ["nvidia0", "nvidiactl", *made]
    devices = [f"touch $new/{name}; mount --bind /dev/null $new/{name}" for name in names]
    *private, move, remove = PRIVATE_DEVICES
    rest = "for each in net pts shm; do mkdir $new/$each; mount --rbind /dev/$each $new/$each; done"
    node = make_node(*private, rest, *devices, move, remove)
    status, answer = node.check()
    found = {check["name"]: check for check in answer["checks"]}["gpu"]
    assert status == 0, answer
    if made:
        assert found == {"name": "gpu", "status": "ok", "fact": "/dev/nvidia0 and /dev/nvidia-uvm"}
        return
    assert (found["status"], found["fact"]) == ("warning", "/dev/nvidia0 without /dev/nvidia-uvm")
    assert "setuid" in found["remedy"] and found["command"] == "nvidia-modprobe -u -c 0"


# ---- setuid programs ---------------------------------------------------------------------------

MAP_UIDS = """
import os, subprocess, sys
words = ["unshare", "-U", "sh", "-c", "echo up; read _"]
with subprocess.Popen(words, stdin=-1, stdout=-1) as process:
    process.stdout.readline()
    ranges = ["0", str(os.getuid()), "1", "1", *sys.argv[1:]]
    status = subprocess.run(["newuidmap", str(process.pid), *ranges]).returncode
    process.stdin.close()
sys.exit(status)
"""


def test_newuidmap_does_not_work_in_a_session(portwrap: Portwrap) -> None:
    """Root's rights, which it takes by its set-user-ID bit, are not to be had in the sandbox. So
    podman, apptainer --fakeroot and apptainer build, which run it, do not work either."""
    needs("newuidmap")
    rows = [line.split(":") for line in Path("/etc/subuid").read_text().splitlines()]
    subordinate = next((row[1:] for row in rows if row[0] == OWNER), None)
    if subordinate is None:
        cannot(f"{OWNER} has no row in /etc/subuid")
    words = [portwrap.python, "-c", MAP_UIDS, *subordinate]
    control = run_as(OWNER, words)
    assert control.returncode == 0, control
    result = run_in_sandbox(portwrap, *words)
    assert result.returncode == 1 and "newuidmap" in result.stderr, result
