"""Every expected failure, made real: two lines, the right status, and nothing left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from launches import (
    as_owner_in,
    at_url,
    batchspawner_portwrap,
    in_sandbox,
    interpreter_with,
    ours_alive,
    refusal_of,
    run_in_sandbox,
    thread_library,
    wait_until_nothing_is_left,
)

from helpers import OWNER, as_user, end, environment, needs, run_as, wait_until
from sessions import ENTRY, Portwrap, holders_of, unused_port, unused_ports

pytestmark = pytest.mark.namespaces
each_forward = pytest.mark.usefixtures("each_forward")
"""For what can come to an end when the forward has been chosen."""


@pytest.fixture
def port() -> int:
    return unused_port()


# ---- the host port ---------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::"])
def test_host_port_busy(portwrap: Portwrap, port: int, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family):
        result = run_in_sandbox(portwrap, "true", port=port)
        refusal_of(result, 125, f":{port}: Address already in use", "Start the server again")


def test_host_port_of_root(portwrap: Portwrap) -> None:
    floor = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    assert floor > 7
    refusal_of(run_in_sandbox(portwrap, "true", port=7), 125, ":7: Permission denied", "1024")


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:0/", "http://h:abc/", "http://h:65536/"])
def test_no_host_port(portwrap: Portwrap, url: str | None) -> None:
    extra = {} if url is None else {"JUPYTERHUB_SERVICE_URL": url}
    program = batchspawner_portwrap(portwrap)
    result = run_as(OWNER, [portwrap.python, program, "true"], extra_env=extra)
    refusal_of(result, 2, "no host port from 1 to 65535", "JUPYTERHUB_SERVICE_URL")


@pytest.mark.parametrize("number", ["0", "65536", "abc", ""])
def test_host_port_that_is_none(portwrap: Portwrap, number: str) -> None:
    result = run_as(OWNER, [*portwrap.words, "-p", number, "true"])
    refusal_of(result, 2, "-p must be a number from 1 to 65535")


def test_host_name_that_nobody_knows(portwrap: Portwrap, port: int) -> None:
    """Asked in a network without any outbound network."""
    words = [*portwrap.words, "-p", str(port), "--host", "node.invalid", "true"]
    result = run_as(OWNER, ["unshare", "-Urn", *words])
    refusal_of(result, 125, "cannot look up the host address 'node.invalid'", "c.Spawner.ip")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", ""])
def test_a_kernel_without_ipv6(portwrap: Portwrap, port: int, address: str) -> None:
    """It is no failure there that the port's other side cannot be held."""
    without = portwrap.program("without.py", "ipv6")
    program = [portwrap.python, str(batchspawner_portwrap(portwrap))]
    environ = at_url(port, JUPYTERHUB_SERVICE_URL=f"http://{address}:{port}/")
    result = run_as(OWNER, [*without, *program, "echo", "there"], env=environ)
    assert (result.returncode, result.stdout, result.stderr) == (0, "there\n", ""), result


# ---- namespaces ------------------------------------------------------------------------------

SWITCH = 'echo 0 > /proc/sys/user/{}; exec "$@"'


@pytest.mark.parametrize("kind", ["max_user_namespaces", "max_net_namespaces"])
def test_namespaces_switched_off(portwrap: Portwrap, port: int, kind: str) -> None:
    """ENOSPC, in a user namespace of the test, where this setting is its own."""
    before = ["unshare", "-Ur", "sh", "-c", SWITCH.format(kind), "sh"]
    result = run_in_sandbox(portwrap, "true", port=port, before=before)
    refusal_of(result, 125, "unshare", "No space left on device", kind)
    assert holders_of(port) == []


def test_namespaces_refused(portwrap: Portwrap, port: int, world_dir: Path) -> None:
    """EPERM: whoever is in a chroot gets no user namespace (unshare(2))."""
    root = world_dir / "root"
    root.mkdir()
    enter = f'exec chroot --userspec={OWNER}:{OWNER} {root} "$@"'
    before = ["unshare", "-m", "sh", "-c", f"mount --rbind / {root} && {enter}", "sh"]
    result = run_in_sandbox(portwrap, "true", port=port, before=before, account="root")
    refusal_of(result, 125, "unshare", "Operation not permitted", "unshare -Urn true")
    assert holders_of(port) == []


def test_an_interpreter_that_starts_a_thread(
    portwrap: Portwrap, port: int, world_dir: Path
) -> None:
    """No process with threads can enter a user namespace (unshare(2))."""
    python = interpreter_with(thread_library(world_dir), portwrap.python, world_dir)
    _, *words = in_sandbox(portwrap, "true", port=port)
    result = run_as(OWNER, [python, *words])
    refusal_of(result, 125, "Invalid argument, with 2 threads", "ld.so.preload")
    assert holders_of(port) == []


LOUD = {"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"}


def test_warnings_of_python_are_no_part_of_a_refusal(portwrap: Portwrap, port: int) -> None:
    """Each closes sockets: at the unshare, at the driver, at a step that nobody expects."""
    for refused in ("unshare", "setns", "netlink"):
        before = ["env", *(f"{name}={value}" for name, value in LOUD.items())]
        before = [*portwrap.program("without.py", refused), *before]
        network = "direct" if refused == "netlink" else "slirp4netns"
        extra = {"PORTWRAP_NETWORK": network}
        refusal_of(run_in_sandbox(portwrap, "true", port=port, before=before, extra_env=extra), 125)


def test_warnings_of_python_find_nothing_in_a_session(portwrap: Portwrap) -> None:
    result = run_in_sandbox(portwrap, "/bin/echo", "there", extra_env=LOUD)
    assert (result.returncode, result.stdout, result.stderr) == (0, "there\n", "")


# ---- the network driver ----------------------------------------------------------------------


def fake_driver(folder: Path, script: str) -> dict[str, str]:
    """The environment with a slirp4netns of the test's own first on PATH."""
    path = folder / "slirp4netns"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_driver_not_installed(portwrap: Portwrap, port: int) -> None:
    hide = [
        f"mount --bind /dev/null {place}/{name}"
        for place in ("/usr/bin", "/usr/local/bin", "/usr/sbin")
        for name in ("slirp4netns", "pasta")
        if os.path.exists(f"{place}/{name}")
    ]
    before = as_owner_in(*hide)
    by_driver = environment(OWNER, {"PORTWRAP_OUTWARD": "helper"})
    result = run_in_sandbox(
        portwrap, "true", port=port, before=before, account="root", env=by_driver
    )
    refusal_of(result, 125, "neither slirp4netns nor pasta found", "Install it on every node")
    assert holders_of(port) == []


def test_driver_is_found_without_a_path(portwrap: Portwrap) -> None:
    """Batch jobs may have a shorter PATH than it takes; packages put it in /usr/bin."""
    result = run_in_sandbox(portwrap, "/bin/echo", "there", env={"PATH": "/nowhere"})
    assert (result.returncode, result.stdout) == (0, "there\n"), result


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", ["ended with status 3"]),
        ("echo one >&2; echo two >&2; exit 1", ["ended with status 1", "one; two"]),
        ("kill -SEGV $$", ["ended by signal 11"]),
        ("echo 'open(\"/dev/net/tun\"): Permission denied' >&2; exit 1", ["chmod 0666"]),
        ("echo \"slirp4netns: unrecognized option '--mtu'\" >&2; exit 1", ["0.4.0"]),
        ("exec /no/such", ["ended before it was ready"]),
    ],
)
def test_driver_that_dies_at_its_start(
    portwrap: Portwrap, port: int, world_dir: Path, script: str, said: list[str]
) -> None:
    before = ours_alive()
    environ = fake_driver(world_dir, f"ulimit -c 0; {script}")
    result = run_in_sandbox(portwrap, "true", port=port, extra_env=environ)
    refusal_of(result, 125, "slirp4netns ended before it was ready", *said)
    wait_until_nothing_is_left(before, port)


def test_driver_that_is_no_program(portwrap: Portwrap, port: int, world_dir: Path) -> None:
    before = ours_alive()
    environ = fake_driver(world_dir, "")
    world_dir.joinpath("slirp4netns").write_bytes(b"\x7fELF nonsense")
    result = run_in_sandbox(portwrap, "true", port=port, extra_env=environ)
    refusal_of(result, 125, "slirp4netns ended before it was ready", "Exec format error")
    wait_until_nothing_is_left(before, port)


@pytest.mark.slow
@each_forward
@pytest.mark.parametrize(
    ("each_forward", "script"),
    [
        pytest.param("auto", "echo starting >&2; exec sleep 600", id="waits"),
        pytest.param("relay", "while :; do echo starting >&2; sleep 0.2; done", id="talks"),
    ],
    indirect=["each_forward"],
)
def test_driver_that_never_gets_ready(
    portwrap: Portwrap, port: int, world_dir: Path, script: str
) -> None:
    before = ours_alive()
    environ = fake_driver(world_dir, script)
    result = run_in_sandbox(portwrap, "true", port=port, extra_env=environ, seconds=25)
    refusal_of(result, 125, "slirp4netns was not ready in 10", "starting")
    wait_until_nothing_is_left(before, port)


@each_forward
def test_signal_while_the_helper_is_awaited(portwrap: Portwrap, port: int, world_dir: Path) -> None:
    before = ours_alive()
    words = in_sandbox(portwrap, "true", port=port)
    started = world_dir / "started"
    world_dir.chmod(0o777)
    environ = fake_driver(world_dir, f"touch {started}; exec sleep 600")
    process = as_user(OWNER, words, extra_env=environ)
    try:
        wait_until(started.exists, 10)
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == -signal.SIGINT
    finally:
        end(process)
    wait_until_nothing_is_left(before, port)


# ---- stopped in the middle of a start --------------------------------------------------------

SHORT, LONGER = 2.0, 2.5
"""Seconds that a driver and the keeper may take in a start that is stopped."""
SHORTEN = (
    "from portwrap.launch import lifeline;"
    f" lifeline.DRIVER_TIMEOUT, lifeline.ANSWER_TIMEOUT = {SHORT}, {LONGER}; "
)


def starts_shortly(portwrap: Portwrap, port: int) -> list[str]:
    """Words that start a session with short timeouts."""
    *python, text = portwrap.words
    text = text.replace(ENTRY, SHORTEN + ENTRY)
    return [*python, text, "-p", str(port), "-P", "8888", "echo", "there"]


def waiting_driver(folder: Path) -> dict[str, str]:
    """The environment with a slirp4netns that notes its start, and waits until it may go on."""
    folder.chmod(0o777)
    go_on = f"while [ ! -e {folder}/go ]; do sleep 0.01; done; exec /usr/bin/slirp4netns"
    return fake_driver(folder, f'touch {folder}/started; {go_on} "$@"')


def test_time_in_which_all_is_stopped_is_not_counted(
    portwrap: Portwrap, port: int, world_dir: Path
) -> None:
    """As by a batch system that suspends the job."""
    words = starts_shortly(portwrap, port)
    process = as_user(OWNER, words, extra_env=waiting_driver(world_dir))
    try:
        wait_until(world_dir.joinpath("started").exists)
        os.killpg(process.pid, signal.SIGSTOP)
        until = time.monotonic() + 1.2 * LONGER
        wait_until(lambda: time.monotonic() > until)
        world_dir.joinpath("go").touch()
        os.killpg(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=30) == ("there\n", "")
    finally:
        end(process)


def test_time_in_which_nothing_is_stopped_is_counted(
    portwrap: Portwrap, port: int, world_dir: Path
) -> None:
    """The control of the one above."""
    words = starts_shortly(portwrap, port)
    result = run_as(OWNER, words, extra_env=waiting_driver(world_dir))
    refusal_of(result, 125, f"slirp4netns was not ready in {SHORT} s")


@pytest.mark.parametrize(
    ("preparation", "said"),
    [
        pytest.param([], ["No such file or directory", "modprobe tun"], id="missing"),
        pytest.param(
            ["mknod -m 0600 /dev/net/tun c 10 200"],
            ["Permission denied", "chmod 0666 /dev/net/tun"],
            id="closed",
        ),
        pytest.param(["touch /dev/net/tun"], ["/dev/net/tun"], id="no device"),
    ],
)
def test_no_tun_device(
    portwrap: Portwrap, port: int, preparation: list[str], said: list[str]
) -> None:
    before = ours_alive()
    own = as_owner_in("mount -t tmpfs -o dev,mode=0755 tmpfs /dev/net", *preparation)
    by_driver = environment(OWNER, {"PORTWRAP_OUTWARD": "helper"})
    result = run_in_sandbox(portwrap, "true", port=port, before=own, account="root", env=by_driver)
    refusal_of(result, 125, "slirp4netns ended before it was ready", *said)
    wait_until_nothing_is_left(before, port)


# ---- little of everything --------------------------------------------------------------------


@each_forward
@pytest.mark.parametrize("most", range(1, 6))
def test_hardly_any_process(portwrap: Portwrap, port: int, most: int) -> None:
    """An account that may have so many: it works, or says in two lines that it does not."""
    needs("prlimit", "setpriv")
    before = ours_alive()
    uid = random.randrange(1 << 20, 1 << 21)
    limit = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    limit += ["prlimit", f"--nproc={most}", "--"]
    result = run_in_sandbox(portwrap, "true", port=port, before=limit, account="root")
    if result.returncode or most < 3:
        refusal_of(result, 125, "Resource temporarily unavailable")
    wait_until_nothing_is_left(before, port)


@each_forward
@pytest.mark.parametrize("most", [16, 12, 10, 8, 6, 5])
def test_hardly_any_descriptor(portwrap: Portwrap, port: int, most: int) -> None:
    """It works, or says in two lines that it does not."""
    before = ours_alive()
    limit = ["prlimit", f"--nofile={most}", "--"]
    result = run_in_sandbox(portwrap, "true", port=port, before=limit)
    if result.returncode:
        refusal_of(result, 125, "Too many open files", "'ulimit -Hn'")
    wait_until_nothing_is_left(before, port)


def test_more_descriptors_under_way_than_the_account_may_have(
    portwrap: Portwrap, port: int
) -> None:
    needs("strace")
    error = "inject=sendmsg:error=ETOOMANYREFS:when=1"
    watch = ["strace", "-qq", "-o", "/dev/null", "-e", error]
    result = run_in_sandbox(portwrap, "true", port=port, before=watch)
    refusal_of(result, 125, "sending to the keeper: Too many references")


@each_forward
@pytest.mark.parametrize("most", range(9, 33))
def test_hardly_any_descriptor_for_more_than_one_port(
    portwrap: Portwrap, port: int, most: int
) -> None:
    """The kernel drops what a message carries beyond the limit: no port may be lost with that."""
    before = ours_alive()
    published, offered = unused_ports(2)
    limit = ["prlimit", f"--nofile={most}", "--"]
    extra = {"PORTWRAP_PUBLISH": str(published), "PORTWRAP_HOST_SERVICE": str(offered)}
    extra["PORTWRAP_NETWORK"] = "none"  # a helper needs more of them, and would refuse earlier
    look = ["grep", "-c", f" 0100007F:{offered:04X} 00000000:0000 0A ", "/proc/net/tcp"]
    result = run_in_sandbox(portwrap, *look, port=port, before=limit, extra_env=extra)
    if result.returncode == 125:
        refusal_of(result, 125, "Too many open files", "'ulimit -Hn'")
    else:
        assert (result.returncode, result.stdout) == (0, "1\n"), result
    wait_until_nothing_is_left(before, port)


OLD_LIMIT = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
prlimit64 = 302 if os.uname().machine == "x86_64" else 261
# struct seccomp_data: the number at 0, the third argument (what to set, or nothing) at 32
words = [(0x20, 0, 0, 0), (0x15, 0, 3, prlimit64), (0x20, 0, 0, 32), (0x15, 1, 0, 0)]
words += [(6, 0, 0, 0x50001), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *word) for word in words))
program = ctypes.create_string_buffer(struct.pack("@HP", len(words), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_hard_limit_that_may_not_be_used(portwrap: Portwrap) -> None:
    """EPERM, as where it is older than a lower fs.nr_open."""
    before = [portwrap.python, "-c", OLD_LIMIT]
    control = run_as(OWNER, [*before, "prlimit", "--nofile=100", "true"])
    assert "Operation not permitted" in control.stderr
    result = run_in_sandbox(portwrap, "/bin/echo", "there", before=before)
    assert (result.returncode, result.stdout, result.stderr) == (0, "there\n", "")


# ---- the hub on loopback, told in the start-up line -------------------------------------------


@each_forward
@pytest.mark.parametrize(
    ("api", "told"),
    [
        ("http://127.0.0.1:8081/hub/api", True),
        ("http://127.1.2.3:8081/hub/api", True),
        ("http://localhost:8081/hub/api", True),
        ("http://[::1]:8081/hub/api", True),
        ("http://198.18.0.1:8081/hub/api", False),
        ("http://localhost.example:8081/hub/api", False),
        ("", False),
    ],
)
def test_hub_on_loopback_is_a_host_service(
    portwrap: Portwrap, port: int, api: str, told: bool
) -> None:
    program = batchspawner_portwrap(portwrap)
    environ = at_url(port, JUPYTERHUB_API_URL=api, PORTWRAP_QUIET="0")
    result = run_as(OWNER, [portwrap.python, program, "sh", "-c", "exit 3"], env=environ)
    assert (result.returncode, result.stdout) == (3, ""), result
    assert result.stderr.count("\n") == 1
    assert (", host services " in result.stderr and ":8081" in result.stderr) == told


def test_a_keeper_that_refuses_before_it_is_told(
    portwrap: Portwrap, port: int, world_dir: Path
) -> None:
    """It is gone when the launching process turns to it; what it said is read all the same."""
    needs("strace")
    broken = Portwrap(portwrap.python, world_dir / "broken")
    shutil.rmtree(broken.folder / "portwrap" / "keeper")
    late = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=unshare:delay_enter=2s"]
    result = run_in_sandbox(broken, "true", port=port, before=late)
    refusal_of(result, 125, "the keeper cannot be loaded")


def test_a_process_that_may_not_be_dumped(portwrap: Portwrap, port: int) -> None:
    """As one is that has held secrets: the files by which it maps its ids are root's then."""
    kept = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)"  # PR_SET_DUMPABLE
    words = [portwrap.python, "-c", f"{kept}; {portwrap.words[-1]}", "-p", str(port), "echo", "ran"]
    result = run_as(OWNER, words)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ran\n", "")
