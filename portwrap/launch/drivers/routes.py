"""The routes of the host, and the subnets that network drivers use in the sandbox."""

from __future__ import annotations

import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SUBNETS = ("198.18.2", "10.0.2", "172.31.2", "192.168.202")
"""Beginnings of /24 networks for the sandbox; the first is used that the host has no route to and
that has none of the addresses that the session will need. The first one belongs to tests of
networks (RFC 2544): real ones do not use it."""
SUBNET6 = "fd5c:9a1e:72b4:2::"
"""A /64 for the sandbox, drawn by lot as RFC 4193 wants it. Programs prefer IPv4 to such an address
where a server has both (RFC 6724)."""
ROUTER6, ADDRESS6 = "fe80::2", f"{SUBNET6}100"
DEVICE = "tap0"
"""The driver's interface in the sandbox."""


class Route:
    """A route of the host: its interface, and its destination and mask as numbers."""

    def __init__(self, interface: str, destination: int, mask: int) -> None:
        self.interface = interface
        self.destination = destination
        self.mask = mask

    def overlaps(self, subnet: str) -> bool:
        """Whether it leads to an address of this /24. A default route leads to no special one."""
        first = int.from_bytes(bytes(map(int, f"{subnet}.0".split("."))), "big")
        return self.mask != 0 and not (first ^ self.destination) & self.mask & 0xFFFFFF00


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


def leads_on_by_ipv6(table: str = "/proc/net/ipv6_route") -> bool:
    """Whether the host has an IPv6 route that leads to other hosts, and to more than those on one
    cable (proc(5))."""
    try:
        with open(table) as file:
            rows = [line.split() for line in file]
    except OSError:
        return False
    # columns: destination, its length, source, its length, next hop, metric, …, interface
    return any(row[-1] != "lo" and not row[0].startswith(("fe80", "ff")) for row in rows)


def _address(digits: str) -> int:
    """An address that the kernel has printed as a number in its own byte order."""
    return int.from_bytes(int(digits, 16).to_bytes(4, sys.byteorder), "big")


def routes_to(addresses: Iterable[str]) -> list[Route]:
    """Routes to these IPv4 addresses alone; whatever else is among them is passed over."""
    found = []
    for address in addresses:
        try:
            packed = socket.inet_aton(address)
        except (OSError, ValueError):
            continue
        found.append(Route("", int.from_bytes(packed, "big"), 0xFFFFFFFF))
    return found


def free_subnet(routes: Sequence[Route]) -> str:
    """The first of SUBNETS that none of these routes leads to, or the last."""
    free = (each for each in SUBNETS if not any(route.overlaps(each) for route in routes))
    return next(free, SUBNETS[-1])
