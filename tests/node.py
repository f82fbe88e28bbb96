"""The node that the tests run on: a machine of a cluster, made of namespaces.

Its name, node01, leads to the address of its network interface, not to 127.0.0.1. It has a network,
an /etc, a /run, and homes and uids of the two accounts of its own, so that several runs of the
tests, and several workers of one, neither see nor hurt anything of each other's. Else its files are
the machine's. It is gone with the process that has become it.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from networks import CABLE_INDEX, entered, has_usable_addresses, ip, let_all_ping, new_network

from helpers import NEIGHBOUR, OWNER, wait_until

CLONE_NEWNS, CLONE_NEWUTS = 0x00020000, 0x04000000  # linux/sched.h

NAME, ADDRESS, ADDRESS6 = "node01", "10.77.0.1", "fd77::1"
PEER_NAME, PEER, PEER6 = "hub01", "10.77.0.2", "fd77::2"
"""The other end of the node's cable, and its router: from there no way leads on."""
HOSTS = f"""127.0.0.1 localhost
::1 localhost
{ADDRESS} {NAME}.cluster.example {NAME}
{PEER} {PEER_NAME}.cluster.example {PEER_NAME}
"""
RESOLV_CONF = f"nameserver {PEER}\noptions timeout:1 attempts:1\n"
FIRST_UID, UIDS = 20000, 10
"""The first node's first uid, and how many each node has: tests make more accounts."""
OUTER, MOST = "PORTWRAP_TEST_NODE", 100
"""Where the number of this process's node stands for what it starts, and how many there may be side
by side."""

HAS_IPV6 = os.path.isdir("/proc/sys/net/ipv6")

_peer: int | None = None  # a descriptor of the router's network namespace


@functools.lru_cache(maxsize=None)
def become() -> str | None:
    """Move this process, and all that it starts, onto a node of its own. Returns why that fails,
    None if it does not. The process must have done nothing yet with its accounts' names."""
    try:
        number = _claim_number()
        _make_network()
        _make_files(number)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no node of the tests' own here: {error}"
    return None


@contextmanager
def peer() -> Iterator[None]:
    """Within it this thread is in the network namespace of the router."""
    assert _peer is not None, "there is no node"
    with entered(_peer):
        yield


def _claim_number() -> int:
    """A number that is this process's alone on this machine. An abstract socket (unix(7)) is there
    as long as its process and leaves no file; it belongs to its network namespace, so a run of the
    tests that a test starts has other numbers from the beginning."""
    number = MOST * (int(os.environ.get(OUTER, "-1")) + 1)
    while True:
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0batchspawner-portwrap-tests-{number}")
        except OSError:
            holder.close()
            number += 1
        else:
            holder.detach()  # left open
            os.environ[OUTER] = str(number)
            return number


def _make_network() -> None:
    global _peer
    _peer = new_network()
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")  # so that it reports that no way leads on
    new_network(CLONE_NEWUTS | CLONE_NEWNS)
    socket.sethostname(NAME)
    let_all_ping()
    place = f"/proc/{os.getpid()}/fd/{_peer}"
    ip(f"link add eth0 index {CABLE_INDEX} type veth peer name eth0 netns {place}")
    with peer():
        ip(*_cable(PEER, PEER6))
    ip(*_cable(ADDRESS, ADDRESS6), f"route add default via {PEER}")
    if HAS_IPV6:
        ip(f"route add default via {PEER6}")
    wait_until(has_usable_addresses, what="a cable and addresses ready for use")


def _cable(address: str, address6: str) -> list[str]:
    """Commands of ip(8) for one end of the cable."""
    add6 = [f"addr add {address6}/64 dev eth0"] if HAS_IPV6 else []
    return [f"addr add {address}/16 dev eth0", *add6, "link set eth0 up"]


# ---- files -----------------------------------------------------------------------------------


def _make_files(number: int) -> None:
    _mount("--make-rprivate", "/")
    _show_own_network()
    with _covered("/etc") as machines:
        subprocess.run(["cp", "-a", f"{machines}/.", "/etc"], check=True)
    with _covered("/run") as machines:
        _copy_folders(machines, Path("/run"))
    for name, text in (("hosts", HOSTS), ("resolv.conf", RESOLV_CONF), ("hostname", f"{NAME}\n")):
        path = Path("/etc", name)
        path.unlink(missing_ok=True)  # it may be a link into /run
        path.write_text(text)
    for path in Path("/etc/ssh/ssh_config.d").glob("*"):  # sessions have mounts only for need
        path.unlink()
    _change_uids(FIRST_UID + number * UIDS)
    for account in (OWNER, NEIGHBOUR):
        _make_home(account)


def _mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], check=True)


@contextmanager
def _covered(place: str) -> Iterator[Path]:
    """Mount an empty file system there. Within it what was there before is at the path returned."""
    before, mode = os.open(place, os.O_PATH | os.O_DIRECTORY), stat.S_IMODE(os.stat(place).st_mode)
    try:
        _mount("-t", "tmpfs", "-o", f"mode={mode:o}", "tmpfs", place)
        yield Path(f"/proc/{os.getpid()}/fd/{before}")
    finally:
        os.close(before)


def _show_own_network() -> None:
    """/sys/class/net lists the interfaces of the network namespace that mounted it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    below = [line.split()[4] for line in lines if line.split()[4].startswith("/sys/")]
    before = os.open("/sys", os.O_PATH | os.O_DIRECTORY)
    try:
        _mount("-t", "sysfs", "sysfs", "/sys")
        for place in below:
            if os.path.exists(place) and not any(place.startswith(f"{one}/") for one in below):
                # mount(8) would take the descriptor for the path that it was opened by
                here = f"/proc/{os.getpid()}/fd/{before}/{place[len('/sys/') :]}"
                _mount("--no-canonicalize", "--rbind", here, place)
    finally:
        os.close(before)


def _copy_folders(source: Path, target: Path) -> None:
    """The directories and links right in there, the directories empty."""
    for entry in os.scandir(source):
        copy, facts = target / entry.name, entry.stat(follow_symlinks=False)
        if entry.is_symlink():
            copy.symlink_to(os.readlink(entry.path))
        elif entry.is_dir():
            copy.mkdir()
            shutil.chown(copy, facts.st_uid, facts.st_gid)
            copy.chmod(stat.S_IMODE(facts.st_mode))


# ---- accounts --------------------------------------------------------------------------------


def _change_uids(first: int) -> None:
    """Give the two accounts, and their groups, numbers from this one on."""
    fields = {"passwd": r"\1:{0}:{0}:", "group": r"\1:{0}:"}
    numbers = {"passwd": r"[0-9]+:[0-9]+:", "group": r"[0-9]+:"}
    for uid, account in enumerate((OWNER, NEIGHBOUR), first):
        for name, new in fields.items():
            path = Path("/etc", name)
            pattern = rf"^({account}:[^:]*):{numbers[name]}"
            text, count = re.subn(pattern, new.format(uid), path.read_text(), flags=re.M)
            if count != 1:
                raise OSError(f"no account {account} in {path}")
            path.write_text(text)


def _make_home(account: str) -> None:
    """A home that is gone with the node, as useradd(8) makes it."""
    entry = pwd.getpwnam(account)
    with _covered(entry.pw_dir):
        shutil.copytree("/etc/skel", entry.pw_dir, symlinks=True, dirs_exist_ok=True)
    for folder, _, names in os.walk(entry.pw_dir):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
