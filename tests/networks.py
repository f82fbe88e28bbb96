"""A host of the tests' own, with neighbours on its cables, from which no way leads on.

Network namespaces without a name, held by descriptors: nothing of them outlives this process.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Iterator

from helpers import wait_until

CLONE_NEWNET = 0x40000000  # linux/sched.h
SIOCGIFFLAGS, IFF_UP, IFF_RUNNING = 0x8913, 0x1, 0x40  # linux/sockios.h, linux/if.h
IFA_F_TENTATIVE = 0x40  # linux/if_addr.h

HOST, SERVER = "198.18.0.1", "198.18.0.2"
HOST6, SERVER6 = "2001:2::1", "2001:2::2"
"""Addresses for tests of networks (RFC 2544, RFC 5180), the ends of the host's first cable."""
FAR = "198.19.0.2"
"""Another address of the server, which the host reaches by its default route only."""
HOST_ON_SECOND, SERVER_ON_SECOND = "198.18.5.1", "198.18.5.2"
"""The ends of the host's second cable."""

CABLE_INDEX = 77
"""The number of a cable's first end, and the next ones of others'. If both ends have the same one
in their namespaces, the kernel tells up to a second late that the cable is up: it does so at once
only where the two differ (linkwatch_urgent_event in net/core/link_watch.c)."""

libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter(descriptor: int) -> None:
    """Move this thread, and all that it starts, into a network namespace."""
    _checked(libc.setns(descriptor, CLONE_NEWNET))


@contextmanager
def entered(descriptor: int) -> Iterator[None]:
    """Within it this thread is in that network namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(descriptor)
        try:
            yield
        finally:
            enter(before)
    finally:
        os.close(before)


def ip(*commands: str) -> None:
    """Commands of ip(8), in the namespace that this thread is in."""
    text = "\n".join(commands)
    subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True)


def unshare(flags: int) -> None:
    """Move this thread, and all that it starts, into new namespaces (unshare(2))."""
    _checked(libc.unshare(flags))


def new_network(other_flags: int = 0) -> int:
    """Move this thread into a new network namespace, and others, and return a descriptor of it."""
    unshare(CLONE_NEWNET | other_flags)
    # An address is not usable while the kernel looks for others that have it, for a second.
    for path in Path("/proc/sys/net/ipv6/conf").glob("default/accept_dad"):
        path.write_text("0")
    ip("link set lo up")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def let_all_ping() -> None:
    """As systemd has it: a network driver pings on behalf of its user."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")


def has_usable_addresses() -> bool:
    """Whether no cable and no address of this namespace is still being set up by the kernel."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        flags = {name: _flags(asking, name) for _, name in socket.if_nameindex()}
    up = {name for name, each in flags.items() if each & IFF_UP}
    return all(flags[name] & IFF_RUNNING for name in up) and _have_ipv6_addresses(up)


def _flags(asking: socket.socket, name: str) -> int:
    """Those of a network interface: it is running if its state is up or unknown (netdevice(7))."""
    request = struct.pack("16sH14x", name.encode(), 0)
    return int(struct.unpack("16sH14x", fcntl.ioctl(asking, SIOCGIFFLAGS, request))[1])


def _have_ipv6_addresses(names: set[str]) -> bool:
    """Whether each of these has one, as each that is up gets, and the kernel no longer looks for
    others that have the same."""
    try:
        lines = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
    except FileNotFoundError:
        return True  # a kernel without IPv6
    addresses = [line.split() for line in lines]  # number, index, length, scope, flags, name
    tentative = any(int(each[4], 16) & IFA_F_TENTATIVE for each in addresses)
    return not tentative and names <= {each[5] for each in addresses}


class HubApi(BaseHTTPRequestHandler):
    """Answers as the hub's API does when it is asked for its version."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/hub/api" else 404)
        self.send_header("X-JupyterHub-Version", "5.2.1")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server6(HTTPServer):
    """A web server at an IPv6 address."""

    address_family = socket.AF_INET6


class Host:
    """A host with two cables: to a server that is its default router, and to another one."""

    def __init__(self) -> None:
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self.host, self.server, self.second = (new_network() for _ in range(3))
        finally:
            enter(self.home)
        self._connect()

    def _connect(self) -> None:
        with self.entered(self.host):
            let_all_ping()
            for number, peer in enumerate((self.server, self.second)):
                place = f"/proc/{os.getpid()}/fd/{peer}"
                link = f"link add h{number} index {CABLE_INDEX + number}"
                ip(f"{link} type veth peer name s0 netns {place}")
            ip(
                f"addr add {HOST}/24 dev h0",
                f"addr add {HOST6}/64 dev h0",
                f"addr add {HOST_ON_SECOND}/24 dev h1",
                "link set h0 up",
                "link set h1 up",
            )
        with self.entered(self.server):
            ip(
                f"addr add {SERVER}/24 dev s0",
                f"addr add {SERVER6}/64 dev s0",
                f"addr add {FAR}/32 dev lo",
                "link set s0 up",
            )
        with self.entered(self.second):
            ip(f"addr add {SERVER_ON_SECOND}/24 dev s0", "link set s0 up")
        with self.entered(self.host):
            ip(f"route add default via {SERVER}", f"route add default via {SERVER6}")
        for each in (self.host, self.server, self.second):
            with self.entered(each):
                wait_until(has_usable_addresses, what="cables and addresses ready for use")

    entered = staticmethod(entered)

    def describe(self) -> str:
        """Links, addresses and routes of the three namespaces. Routes in all tables are those of
        both families; the kernel's own follow the addresses, some of them later."""
        what = "addr show\nroute show table all\n"
        told: list[str] = []
        for each in (self.host, self.server, self.second):
            with self.entered(each):
                text = subprocess.check_output(["ip", "-batch", "-"], input=what, text=True)
            told += [line for line in text.splitlines() if " table local " not in line]
        return "\n".join(told)

    def close(self) -> None:
        for descriptor in (self.home, self.host, self.server, self.second):
            os.close(descriptor)

    def listen(self, address: str, at: int | None = None, port: int = 0) -> socket.socket:
        """A TCP socket that listens on the server, or in the namespace `at`."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.entered(self.server if at is None else at):
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen()
        listener.settimeout(10)
        return listener

    def bind_udp(self, address: str, at: int | None = None, port: int = 0) -> socket.socket:
        """A UDP socket on the server, or in the namespace `at`."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.entered(self.server if at is None else at):
            bound = socket.socket(family, socket.SOCK_DGRAM)
            bound.bind((address, port))
        bound.settimeout(10)
        return bound
