"""Two hosts of the bench's own, joined by a cable, from which no way leads on.

They are network namespaces: root's own, or in a user namespace of the account's, so that making
them needs no root. In there is no other account, so that what needs subordinate uids does not start
(RootlessKit). Descriptors hold them: nothing of them outlives this process.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from typing import TYPE_CHECKING

from .accounts import fork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .accounts import Account

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
PR_SET_DUMPABLE, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 4, 47, 2  # linux/prctl.h
CAP_NET_ADMIN = 12
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
NODE, SERVER = "198.18.0.1", "198.18.0.2"
"""The cable's ends (addresses for such measurements, RFC 2544)."""

libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The two hosts cannot be made here."""


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise LabError(f"{what}: {os.strerror(ctypes.get_errno())}")


class Network:
    """One of the two hosts, as descriptors of its namespaces."""

    def __init__(self, user: int | None, net: int) -> None:
        self.user = user  # None: that of root
        self.net = net

    def enter(self, account: Account) -> None:
        """Move this process there, and make it one of the account's."""
        if self.user is not None:
            account.become()
            _checked(libc.setns(self.user, CLONE_NEWUSER), "setns(user)")
        _checked(libc.setns(self.net, CLONE_NEWNET), "setns(net)")
        account.become()


class Lab:
    """The node, where sessions run, and the server, which is its default router."""

    def __init__(self, account: Account) -> None:
        """Raises LabError."""
        try:
            self._make(account if os.geteuid() else None)
        except LabError:
            if os.geteuid():
                raise
            self._make(account)  # root of a container may not make its own

    def _make(self, owner: Account | None) -> None:
        """Have a child make both, in a user namespace of this account's if there is one."""
        told, tell = os.pipe()
        going, go = os.pipe()
        child = fork()
        if child == 0:
            os.close(told)
            os.close(go)
            _build(owner, tell, going)
        os.close(tell)
        os.close(going)
        try:
            with open(told) as words:
                answer = words.readline().split(" ", 1)
                if answer[0] != "made":
                    raise LabError(" ".join(answer).strip() or "no reason was given")
                user = os.open(f"/proc/{child}/ns/user", os.O_RDONLY) if owner else None
                node, server = (
                    os.open(f"/proc/{child}/fd/{number}", os.O_RDONLY)
                    for number in answer[1].split()
                )
        finally:
            os.close(go)
            os.waitpid(child, 0)
        self.node, self.server = Network(user, node), Network(user, server)

    def close(self) -> None:
        """Let go of both."""
        for descriptor in (self.node.user, self.node.net, self.server.net):
            if descriptor is not None:
                os.close(descriptor)


def _build(owner: Account | None, tell: int, going: int) -> None:
    """In a child: make both, say "made NODE SERVER", their descriptors, and wait to be let go."""
    try:
        if owner:
            owner.become()
            _enter_user_namespace()
        node, server = _make_networks()
        os.write(tell, f"made {node} {server}\n".encode())
        os.close(tell)
        os.read(going, 1)
    except (LabError, OSError, subprocess.SubprocessError) as error:
        os.write(tell, f"{error}\n".encode())
    finally:
        os._exit(0)


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    # Who has changed its user has its files in /proc owned by root (proc(5)), the maps among them.
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    _checked(libc.unshare(CLONE_NEWUSER), "user namespaces")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _let_programs_administer_networks()


def _make_networks() -> tuple[int, int]:
    node, server = _new_network(), _new_network()
    _checked(libc.setns(node, CLONE_NEWNET), "setns(net)")
    _ip(
        f"link add h0 type veth peer name s0 netns /proc/self/fd/{server}",
        f"addr add {NODE}/24 dev h0",
        "link set h0 up",
        given=[server],
    )
    _checked(libc.setns(server, CLONE_NEWNET), "setns(net)")
    _ip(f"addr add {SERVER}/24 dev s0", "link set s0 up")
    _checked(libc.setns(node, CLONE_NEWNET), "setns(net)")
    _ip(f"route add default via {SERVER}")
    return node, server


def _new_network() -> int:
    _checked(libc.unshare(CLONE_NEWNET), "network namespaces")
    _ip("link set lo up")
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def _let_programs_administer_networks() -> None:
    """A capability that is ambient stays across exec (capabilities(7)), so that ip(8) has it."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    bit = 1 << CAP_NET_ADMIN
    # effective, permitted and inheritable of the capabilities 0-31, then of 32-63
    data = bytearray(24)
    _checked(libc.capget(header, (ctypes.c_char * 24).from_buffer(data)), "capget")
    effective, permitted, inheritable, *rest = struct.unpack("=6I", data)
    packed = struct.pack("=6I", effective, permitted, inheritable | bit, *rest)
    _checked(libc.capset(header, packed), "capset")
    _checked(
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN, 0, 0), "ambient capability"
    )


def _ip(*commands: str, given: Sequence[int] = ()) -> None:
    """Commands of ip(8), which has these descriptors, too."""
    done = subprocess.run(
        ["ip", "-batch", "-"],
        input="\n".join(commands),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=given,
        check=False,
    )
    if done.returncode:
        raise LabError(f"ip: {done.stdout.strip().splitlines()[0]}")
