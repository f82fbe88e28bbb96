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
WIDEST = 0xFF000000
"""The mask of the widest network that somebody has."""
DEVICE = "tap0"
"""The driver's interface in the sandbox."""


class Route:
    """A route of the host: its interface, and its destination and mask as numbers."""

    def __init__(self, interface: str, destination: int, mask: int) -> None:
        self.interface = interface
        self.destination = destination
        self.mask = mask

    def overlaps(self, subnet: str) -> bool:
        """Whether it leads to an address of this /24. A default route leads to no special one, nor
        do the halves of it that VPNs set: nobody has a network wider than a /8."""
        first = int.from_bytes(bytes(map(int, f"{subnet}.0".split("."))), "big")
        is_special = self.mask >= WIDEST
        return is_special and not (first ^ self.destination) & self.mask & 0xFFFFFF00

    def __str__(self) -> str:
        """The network that it leads to."""
        return f"{ipv4(self.destination)}/{bin(self.mask).count('1')}"


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
    """Whether the host has a default route of IPv6 by a router (proc(5)). With any other one, older
    builds of pasta end where there is no IPv4."""
    try:
        with open(table) as file:
            rows = [line.split() for line in file]
    except OSError:
        return False
    # columns: destination, its length, source, its length, next hop, metric, …, interface
    return any(row[-1] != "lo" and row[1] == "00" and int(row[4], 16) for row in rows)


def _address(digits: str) -> int:
    """An address that the kernel has printed as a number in its own byte order."""
    return int.from_bytes(int(digits, 16).to_bytes(4, sys.byteorder), "big")


def ipv4(number: int) -> str:
    return socket.inet_ntoa(number.to_bytes(4, "big"))


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
    """The first of SUBNETS that none of these routes leads to; else the first of those that only
    the widest ones lead to, as these are the least likely to have a host just there."""

    def narrowest(subnet: str) -> int:
        return max((route.mask for route in overlapping(routes, subnet)), default=0)

    return min(SUBNETS, key=narrowest)  # the first of those that are equal


def overlapping(routes: Iterable[Route], subnet: str) -> list[Route]:
    """Those of these routes that lead to an address of this /24."""
    return [route for route in routes if route.overlaps(subnet)]


def used_addresses(subnet: str) -> list[str]:
    """What a network driver has of a subnet, in CIDR notation: its router and its resolver, the
    sandbox's address, and the one for all. Others of the subnet are nobody's in the sandbox."""
    return [f"{subnet}.0/30", f"{subnet}.100/32", f"{subnet}.255/32"]
