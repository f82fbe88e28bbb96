"""The way out of the sandbox: a network driver on its tap device. Inbound never goes through it."""

from __future__ import annotations

import os
import sys

from ..diagnostics.errors import PortwrapError, hint_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Union

    NetworkDriver = Union["Slirp4netns", "Pasta"]

NETWORK_DRIVERS = ("auto", "slirp4netns", "pasta", "none")
SUBNETS = ("10.0.2", "172.31.2", "192.168.202", "198.18.2")
"""Beginnings of /24 networks for the inside; the first that the host has no route to is taken. The
last one belongs to tests of networks (RFC 2544): real ones do not use it."""
SUBNET6 = "fd5c:9a1e:72b4:2::"
"""A /64 for the inside, drawn by lot as RFC 4193 wants it. Programs prefer IPv4 to such an address
where a server has both (RFC 6724)."""
ROUTER6 = "fe80::2"


class Route:
    """A route of the host: its interface, and its destination and mask as numbers."""

    def __init__(self, interface: str, destination: int, mask: int) -> None:
        self.interface = interface
        self.destination = destination
        self.mask = mask

    def meets(self, subnet: str) -> bool:
        """Whether it leads to an address of this /24. A default route leads to no special one."""
        first = int.from_bytes(bytes(map(int, f"{subnet}.0".split("."))), "big")
        return self.mask != 0 and not (first ^ self.destination) & self.mask & 0xFFFFFF00


class Slirp4netns:
    """slirp4netns: a TCP/IP stack in user space, with a network of its own. IPv4 only.

    Says that it is ready by writing a byte to the descriptor of --ready-fd (slirp4netns(1)).
    """

    name = "slirp4netns"
    ready_descriptor = 3  # number of that descriptor

    def __init__(self, path: str, routes: Sequence[Route] = ()) -> None:
        self.path = path
        self.subnet = free_subnet(routes)

    def argv(self, pid: int) -> list[str]:
        """The command line for the namespaces of process `pid`."""
        return [
            self.path,
            "--configure",
            "--mtu=65520",
            f"--cidr={self.subnet}.0/24",
            # without it its router is the host's 127.0.0.1, with every service of every user there
            "--disable-host-loopback",
            f"--ready-fd={self.ready_descriptor}",
            str(pid),
            "tap0",
        ]


class Pasta:
    """pasta: hands packets of the inside on as sockets of the host. IPv4, and IPv6 where there is.

    In the foreground it says that it is ready by writing its pid file, here its standard output.
    """

    name = "pasta"
    ready_descriptor = 1  # number of the descriptor where it says so

    def __init__(self, path: str, routes: Sequence[Route] = ()) -> None:
        self.path = path
        self.subnet = free_subnet(routes)
        self.interface = _model_interface(routes)

    def argv(self, pid: int) -> list[str]:
        """The command line for the namespaces of process `pid`."""
        return [
            self.path,
            "--foreground",
            "--quiet",
            f"--pid=/proc/self/fd/{self.ready_descriptor}",
            "--config-net",
            # By default every port that is open inside is open on the host too, and vice versa.
            *("--tcp-ports=none", "--udp-ports=none", "--tcp-ns=none", "--udp-ns=none"),
            # without it its router is the host's 127.0.0.1, with every service of every user there
            "--no-map-gw",
            # By default it takes the host's address, and hides the host's servers with that.
            f"--address={self.subnet}.100",
            "--netmask=24",
            f"--gateway={self.subnet}.2",
            f"--address={SUBNET6}100",
            f"--gateway={ROUTER6}",
            "--ns-ifname=tap0",
            *([f"--interface={self.interface}"] if self.interface else []),
            str(pid),
        ]


def choose(wanted: str, environ: Mapping[str, str]) -> NetworkDriver | None:
    """The network driver to use, looked up on PATH; None for "none".

    Raises PortwrapError where there is none to be had.
    """
    if wanted == "none":
        return None
    routes = read_routes()
    missing = []
    for kind in (Slirp4netns, Pasta):
        if wanted not in ("auto", kind.name):
            continue
        if kind is Pasta and os.geteuid() == 0:
            missing.append("pasta does not run for root")
            continue
        path = find_executable(kind.name, environ)
        if path is not None:
            return kind(path, routes)
        missing.append(f"{kind.name} is not on PATH")
    message = f"{' and '.join(missing)}, and without it the sandbox has no way out"
    raise PortwrapError(message, hint_for(message))


def find_executable(name: str, environ: Mapping[str, str]) -> str | None:
    """Absolute path of an executable file on PATH, then in the places where packages put them."""
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    for folder in [*folders, "/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"]:
        path = os.path.join(folder, name)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def read_routes(table: str = "/proc/net/route") -> list[Route]:
    """The host's IPv4 routes in its main table (proc(5)); none where there is no IPv4."""
    try:
        with open(table) as file:
            rows = [line.split() for line in file][1:]
    except OSError:
        return []
    # columns: Iface Destination Gateway Flags RefCnt Use Metric Mask; a route that only refuses
    # has no interface, which is written as "*"
    return [Route(row[0], _address(row[1]), _address(row[7])) for row in rows if row[0] != "*"]


def _address(digits: str) -> int:
    """An address that the kernel has printed as a number in its own byte order."""
    return int.from_bytes(int(digits, 16).to_bytes(4, sys.byteorder), "big")


def free_subnet(routes: Sequence[Route]) -> str:
    """The first of SUBNETS that the host has no route to, or the last."""
    free = (each for each in SUBNETS if not any(route.meets(each) for route in routes))
    return next(free, SUBNETS[-1])


def _model_interface(routes: Sequence[Route]) -> str:
    """The interface that pasta is to take after, or "" where it finds one by itself.

    Older ones do where there is a default route, and give up where there is none, as on nodes of
    a closed network. What the sandbox sends is bound to no interface either way.
    """
    if any(route.mask == 0 for route in routes):
        return ""
    return next((route.interface for route in routes), "")
