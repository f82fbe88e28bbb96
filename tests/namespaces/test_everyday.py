"""What users do all day, by the real programs: what works inside, and what cannot."""

from __future__ import annotations

import functools
import http.server
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import pytest
from network_drivers import OLD_AND_NEW, ChosenDriver
from networks import SERVER, Host

from helpers import OWNER, as_user, end, environment, identity, needs, run_as, wait_until
from sessions import Portwrap, Session

pytestmark = pytest.mark.namespaces

PROJECT_GROUP = "pw-project"
PROJECT_GID = 47110


class Day:
    """A node, and a shell of the owner, who is in a project's group, inside and outside."""

    def __init__(self, portwrap: Portwrap, folder: Path) -> None:
        self.portwrap = portwrap
        self.folder = folder
        owner = pwd.getpwnam(OWNER)
        self.home = folder / "home"
        self.home.mkdir()
        os.chown(self.home, owner.pw_uid, owner.pw_gid)
        self.project = folder / "project"
        self.project.mkdir()
        os.chown(self.project, 0, PROJECT_GID)
        self.project.chmod(0o2770)
        (self.project / "data").write_text("data\n")
        (self.project / "data").chmod(0o640)
        groups = Path("/etc/group").read_text()
        (folder / "group").write_text(f"{groups}{PROJECT_GROUP}:x:{PROJECT_GID}:{OWNER}\n")
        ids = f"--reuid={owner.pw_uid} --regid={owner.pw_gid} --groups={PROJECT_GID}"
        mounts = f"mount --make-rprivate / && mount --bind {folder}/group /etc/group"
        script = f'{mounts} && exec setpriv {ids} "$@"'
        self.before = ["unshare", "--mount", "sh", "-c", script, "sh"]
        self.variables = {**environment(OWNER), "HOME": str(self.home)}

    def outside(self, script: str) -> subprocess.CompletedProcess[str]:
        words = [*self.before, "sh", "-c", script]
        return run_as("root", words, env=self.variables, cwd=self.home)

    def inside(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        variables = {**self.variables, **options.pop("extra_env", {})}
        settings = {"account": "root", "before": self.before, "cwd": self.home, **options}
        words = ["sh", "-c", script]
        with Session(self.portwrap, words, extra_env=variables, **settings) as session:
            stdout, stderr = session.process.communicate(timeout=40)
            status = session.process.returncode
        return subprocess.CompletedProcess(words, status, stdout, stderr)


@pytest.fixture
def day(portwrap: Portwrap, world_dir: Path) -> Day:
    return Day(portwrap, world_dir)


# ---- works as outside ---------------------------------------------------------------------------

SHARED_MEMORY = """\
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(create=True, size=4096)
block.close()
block.unlink()
"""
LOCKS = """\
import fcntl
with open("lock", "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""
NUMBERS = re.compile(r"(?<=pid )\d+")
"""Of processes: these differ."""
BUS_NAMES = "--print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames"

WORKS = {  # what: programs needed, script
    "limits": ("", "ulimit -a"),
    "core dumps": ("", "ulimit -c $(ulimit -Hc); sh -c 'kill -SEGV $$'; echo $?"),
    "shared memory": ("", f"/usr/bin/python3 -c '{SHARED_MEMORY}' && echo fine"),
    "locks": ("", f"/usr/bin/python3 -c '{LOCKS}' && echo fine"),
    "files of the project": ("", "cat ../project/data; ls ../project"),
    "the user's name": ("", "whoami; echo ~; id -un; id -u; id -gn"),
    "processor affinity": ("taskset", "taskset -cp $$ | sed 's/.*: //'; nice -n 5 nice"),
    "device nodes": ("", "ls -l /dev/null | cut -c1-10; : </dev/urandom; : >/dev/null"),
    "tmux": (
        "tmux",
        "tmux -S $PWD/t new -d 'sleep 9' && tmux -S $PWD/t ls | cut -d' ' -f1-3;"
        " tmux -S $PWD/t kill-server",
    ),
    "screen": (
        "screen",
        "export SCREENDIR=$PWD/screens; mkdir -m 700 $SCREENDIR; screen -dmS s sleep 9;"
        " until screen -ls | grep -q Detached; do sleep 0.05; done; echo detached;"
        " screen -S s -X quit; rm -rf $SCREENDIR",
    ),
    "ssh-agent": (
        "ssh-agent ssh-keygen",
        "ssh-keygen -qt ed25519 -N '' -f key && eval $(ssh-agent -s) && ssh-add -q key &&"
        " ssh-add -l | wc -l; ssh-agent -k; rm key*;"
        " while [ -e ${SSH_AUTH_SOCK%/*} ]; do sleep 0.05; done",
    ),
    "a D-Bus of one's own": (
        "dbus-run-session",
        f"dbus-run-session -- dbus-send {BUS_NAMES} | grep -c org.freedesktop.DBus",
    ),
    "namespaces in namespaces": ("", "unshare --user --map-root-user --net --mount id -u"),
    "bubblewrap": ("bwrap", "bwrap --dev-bind / / --unshare-all id -u"),
    "bubblewrap with a network": ("bwrap", "bwrap --ro-bind / / --proc /proc --dev /dev id -u"),
    "ptrace": ("strace", "strace -fqe trace=none true; echo $?"),
    "many processes": ("", "seq 50 | xargs -P 20 -n 1 echo | wc -l"),
    "ping without a capability of its own": (  # as some distributions have it
        "ping",
        "cp $(command -v ping) p && ./p -qc1 -W5 127.0.0.1 | grep -c '1 received'",
    ),
    "ping to oneself": ("ping", "ping -qc1 -W5 127.0.0.1 | grep -c '1 received'"),
}


@pytest.mark.parametrize("what", WORKS)
def test_works_as_outside(day: Day, what: str) -> None:
    """With each network driver."""
    tools, script = WORKS[what]
    needs(*tools.split())
    outside = day.outside(script)
    assert outside.returncode == 0 and outside.stdout, outside
    for name in OLD_AND_NEW:
        inside = day.inside(script, **ChosenDriver(name).options)
        assert (inside.returncode, inside.stderr) == (0, outside.stderr), name
        assert NUMBERS.sub("N", inside.stdout) == NUMBERS.sub("N", outside.stdout), name


def test_locks_and_shared_memory_are_those_of_the_host(day: Day) -> None:
    lock, memory = day.home / "shared-lock", Path("/dev/shm") / f"{day.folder.name}"
    script = f"flock -n {lock} true; echo $?; echo inside >{memory}"
    try:
        with as_user(OWNER, ["flock", lock, "sh", "-c", "echo held; sleep 60"]) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            assert day.inside(script).stdout == "1\n"
            os.killpg(holder.pid, 9)
            holder.wait()
        assert day.inside(script).stdout == "0\n"
        assert memory.read_text() == "inside\n"
    finally:
        memory.unlink(missing_ok=True)


def test_new_files_in_a_projects_directory_belong_to_the_project(day: Day) -> None:
    """The directory's setgid bit decides, in the kernel's own numbers."""
    result = day.inside("cd ../project && touch file && mkdir folder && touch folder/file")
    assert (result.returncode, result.stderr) == (0, "")
    for name in ("file", "folder", "folder/file"):
        assert (day.project / name).stat().st_gid == PROJECT_GID
    assert (day.project / "folder").stat().st_mode & 0o2000


# What gives a file to the project: the program, how it does outside, and what can be done instead.
KEEPING_GROUPS = {
    "rsync -a": ("rsync", "rsync -a ../project/ copy", "rsync -a --no-group ../project/ copy"),
    "install -g": (
        "install",
        f"mkdir copy && install -g {PROJECT_GID} ../project/data copy",
        "mkdir -p copy && install ../project/data copy",
    ),
    "chgrp": (
        "chgrp",
        f"cp -r ../project copy && chgrp {PROJECT_GID} copy/data",
        "cp ../project/data ../project/new && mv -f ../project/new copy/data",
    ),
}


@pytest.mark.parametrize("what", KEEPING_GROUPS)
def test_a_group_that_cannot_be_given(day: Day, what: str) -> None:
    tool, script, instead = KEEPING_GROUPS[what]
    needs(tool)
    assert day.outside(script).returncode == 0
    assert (day.home / "copy" / "data").stat().st_gid == PROJECT_GID
    shutil.rmtree(day.home / "copy")
    refused = day.inside(script)
    assert refused.returncode not in (0, 125) and "Invalid argument" in refused.stderr, refused
    result = day.inside(instead)
    assert (result.returncode, result.stderr) == (0, "")
    assert (day.home / "copy" / "data").read_text() == "data\n"
    if tool == "chgrp":  # what was made in the project's directory keeps its group
        assert (day.home / "copy" / "data").stat().st_gid == PROJECT_GID


def test_cp_loses_the_group_silently(day: Day) -> None:
    """Into a directory of the project it does not: what is made there has its group."""
    for run, group in ((day.outside, PROJECT_GID), (day.inside, pwd.getpwnam(OWNER).pw_gid)):
        result = run("rm -rf copy && cp -a ../project copy")
        assert (result.returncode, result.stderr) == (0, "")
        assert (day.home / "copy" / "data").stat().st_gid == group
    assert day.inside("cp -a ../project/data ../project/copy").returncode == 0
    assert (day.project / "copy").stat().st_gid == PROJECT_GID


def test_the_group_of_the_job_is_the_one_that_files_can_be_given_to(day: Day) -> None:
    """As sg(1) or `srun --gid` choose it before the session begins."""
    owner = pwd.getpwnam(OWNER)
    ids = f"--reuid={owner.pw_uid} --regid={PROJECT_GID} --groups={owner.pw_gid}"
    mounts = f"mount --make-rprivate / && mount --bind {day.folder}/group /etc/group"
    day.before[-2] = f'{mounts} && exec setpriv {ids} "$@"'
    result = day.inside("rsync -a ../project/ copy && chgrp -R pw-project copy")
    assert (result.returncode, result.stderr) == (0, "")
    assert (day.home / "copy" / "data").stat().st_gid == PROJECT_GID
    assert "Invalid argument" in day.inside(f"chgrp {owner.pw_gid} copy").stderr


MAP_GROUPS = """\
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
deny, text, then = sys.argv[1:]
assert libc.unshare(0x10000000) == 0
def write(name, text):
    try:
        with open("/proc/self/" + name, "w") as file:
            file.write(text)
    except OSError as error:
        sys.exit(error.strerror)
if deny:
    write("setgroups", "deny")
write("gid_map", text)
if then:
    try:
        os.setgroups([int(then)])
    except OSError as error:
        sys.exit("setgroups: " + error.strerror)
"""


def test_no_user_namespace_has_a_second_group(day: Day) -> None:
    """What the kernel allows without privileges (user_namespaces(7)): one line of gid_map, of the
    effective group, after supplementary groups have been given up."""
    own, other = pwd.getpwnam(OWNER).pw_gid, PROJECT_GID
    refused = "Operation not permitted"
    for deny, text, then, said in (
        ("deny", f"{own} {own} 1", "", ""),  # the control
        ("", f"{own} {own} 1", "", refused),
        ("deny", f"{other} {other} 1", "", refused),
        ("deny", f"{own} {own} 1\n{other} {other} 1", "", refused),
        ("deny", f"{own} {own} 1", str(own), f"setgroups: {refused}"),
    ):
        words = [*day.before, "/usr/bin/python3", "-c", MAP_GROUPS, deny, text, then]
        result = run_as("root", words, env=day.variables, cwd=day.home)
        assert result.stderr.strip() == said, (deny, text, then)


# ---- cannot work --------------------------------------------------------------------------------


# A program with a file system of its own has fusermount3 mount it, and gets the mount's descriptor.
FUSE_MOUNT = """\
import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
os.makedirs("mounted", exist_ok=True)
words = ["env", f"_FUSE_COMMFD={theirs.fileno()}", "fusermount3", "mounted"]
status = subprocess.run(words, pass_fds=[theirs.fileno()]).returncode
if status == 0:
    subprocess.run(["fusermount3", "-u", "-z", "mounted"], check=True)
sys.exit(status)
"""

CANNOT = {  # what: programs needed, script that works outside, what it says inside
    "fusermount": (
        "fusermount3",
        f"/usr/bin/python3 -c '{FUSE_MOUNT}'",
        "mount failed: Operation not permitted",
    ),
    "crontab": ("crontab", "echo | crontab - && crontab -r", "Permission denied"),
    "chgrp": ("", f"touch f && chgrp {PROJECT_GID} f", "Invalid argument"),
    "newgrp": ("newgrp", f"echo true | newgrp {PROJECT_GROUP}", "Operation not permitted"),
    "sg": ("sg", f"sg {PROJECT_GROUP} -c true", "Operation not permitted"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_cannot_work(day: Day, what: str) -> None:
    tools, script, said = CANNOT[what]
    needs(*tools.split())
    outside = day.outside(script)
    assert outside.returncode == 0, outside
    for name in OLD_AND_NEW:
        inside = day.inside(script, **ChosenDriver(name).options)
        assert inside.returncode != 0, name
        assert said in inside.stderr, name


def test_sudo_cannot_work(day: Day) -> None:
    needs("sudo")
    assert "password is required" in day.outside("sudo -n true").stderr
    assert "must be owned by uid 0" in day.inside("sudo -n true").stderr


@pytest.mark.parametrize("bit", [0o4000, 0o2000], ids=["setuid", "setgid"])
def test_set_id_programs_stay_the_users(day: Day, bit: int) -> None:
    """So crontab, fusermount and the like lack the rights that they rely on."""
    program = day.folder / "id"
    shutil.copyfile("/usr/bin/id", program)
    os.chown(program, 0, PROJECT_GID)
    program.chmod(0o755 | bit)
    effective = "euid=" if bit == 0o4000 else "egid="
    assert effective in day.outside(str(program)).stdout
    assert effective not in day.inside(str(program)).stdout


def test_abstract_sockets_are_another_set(day: Day) -> None:
    """Those of paths are the same: D-Bus by path works, by an abstract name it cannot."""
    needs("dbus-daemon", "dbus-send")
    name = day.folder.name
    config = day.folder / "bus.conf"
    config.write_text(
        f"<busconfig><listen>unix:path={day.home}/bus</listen>"
        f"<listen>unix:abstract={name}</listen>"
        '<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/>'
        "</policy></busconfig>"
    )
    argv = ["dbus-daemon", "--nofork", "--print-address", f"--config-file={config}"]
    daemon = as_user(OWNER, argv)
    try:
        assert daemon.stdout is not None and daemon.stdout.readline()
        for address, works in ((f"path={day.home}/bus", True), (f"abstract={name}", False)):
            script = f"dbus-send --bus=unix:{address} {BUS_NAMES}"
            assert day.outside(script).returncode == 0
            assert (day.inside(script).returncode == 0) == works
    finally:
        end(daemon)


def test_munge(day: Day) -> None:
    """Credentials come from the kernel, which tells the daemon the user's number out there."""
    needs("munge", "munged", "unmunge")
    key = day.home / "key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    owner = identity(OWNER)
    os.chown(key, owner["user"], owner["group"])
    files = [f"--{name}-file={day.home}/{name}" for name in ("key", "pid", "log", "seed")]
    argv = ["munged", "--foreground", "--force", f"--socket={day.home}/munge", *files]
    daemon = as_user(OWNER, argv)
    try:
        wait_until((day.home / "munge").exists, what="munged")
        script = f"munge -S {day.home}/munge -n | unmunge -S {day.home}/munge"
        result = day.inside(script)
        assert result.returncode == 0, result.stderr
        uid = next(line for line in result.stdout.splitlines() if line.startswith("UID:"))
        assert f"({owner['user']})" in uid
    finally:
        end(daemon)


# ---- over the network ---------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a directory without a word."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(listener: socket.socket, folder: Path) -> Iterator[None]:
    """A web server on this listening socket."""
    server = http.server.ThreadingHTTPServer(
        ("", 0), functools.partial(Quiet, directory=str(folder)), bind_and_activate=False
    )
    server.socket.close()
    server.socket = listener
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        listener.close()


def make_certificate(folder: Path) -> Path:
    """A certificate for the server's address, and its key, in one file."""
    needs("openssl")
    words = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test"]
    words += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    words += ["-addext", f"subjectAltName=IP:{SERVER}"]
    words += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(words, check=True, capture_output=True)
    (folder / "both.pem").write_bytes(
        (folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes()
    )
    return folder / "both.pem"


@pytest.fixture
def index(host: Host, world_dir: Path) -> Iterator[str]:
    """The address of a package index behind TLS, on another host."""
    certificate = make_certificate(world_dir)
    folder = world_dir / "simple" / "portwrap-test-package"
    folder.mkdir(parents=True)
    name = "portwrap_test_package-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        info = f"{name}.dist-info"
        wheel.writestr("portwrap_test_package.py", f"DATA = {os.urandom(200_000).hex()!r}\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: portwrap-test-package\nVersion: 1.0\n"
        )
        kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", kind)
        wheel.writestr(f"{info}/RECORD", "")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = host.listen(SERVER)
    port = listener.getsockname()[1]
    listener.settimeout(None)
    with serving(context.wrap_socket(listener, server_side=True), world_dir):
        yield f"https://{SERVER}:{port}/simple"


def test_pip_install(day: Day, index: str, driver: ChosenDriver) -> None:
    pip = f"{sys.executable} -m pip --disable-pip-version-check --isolated install --no-cache-dir"
    script = (
        f"{pip} -q --target there --index-url {index} --cert {day.folder}/cert.pem"
        " portwrap-test-package && ls there"
    )
    result = day.inside(script, **driver.options)
    assert result.returncode == 0, result.stderr
    assert "portwrap_test_package.py" in result.stdout.split()


def test_downloads(day: Day, index: str, driver: ChosenDriver) -> None:
    """As conda, curl and wget do it: by a client that checks the certificate."""
    needs("curl")
    script = f"curl -sf --noproxy '*' --cacert {day.folder}/cert.pem {index}/ | grep -c portwrap"
    assert day.inside(script, **driver.options).stdout.strip() not in ("", "0")
    script = f"curl -s --noproxy '*' {index}/; echo $?"
    assert day.inside(script, **driver.options).stdout == "60\n"  # an unknown authority


def test_ping(day: Day, host: Host, driver: ChosenDriver) -> None:
    needs("ping")
    result = day.inside(f"ping -qc1 -W5 {SERVER}", **driver.options)
    assert "1 received" in result.stdout, result


def test_a_proxy_on_the_nodes_loopback(day: Day, host: Host, driver: ChosenDriver) -> None:
    """Out of reach, unless it is named."""
    needs("curl")
    (day.home / "page").write_text("page")
    proxy = host.listen("127.0.0.1", at=host.host)
    proxy.settimeout(None)
    port = proxy.getsockname()[1]
    script = f"http_proxy=http://127.0.0.1:{port} curl -s http://{SERVER}/page; echo $?"

    class Proxy(Quiet):
        """Answers for every host from one directory."""

        def translate_path(self, path: str) -> str:
            return super().translate_path(path.rpartition("/")[2])

    server = http.server.ThreadingHTTPServer(
        ("", 0), functools.partial(Proxy, directory=str(day.home)), bind_and_activate=False
    )
    server.socket.close()
    server.socket = proxy
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        assert day.inside(script, **driver.options).stdout == "7\n"  # nobody there
        named = {**driver.options["extra_env"], "PORTWRAP_HOST_SERVICE": str(port)}
        options = {**driver.options, "extra_env": named}
        assert day.inside(script, **options).stdout == "page0\n"
    finally:
        server.shutdown()
        thread.join()
        proxy.close()
