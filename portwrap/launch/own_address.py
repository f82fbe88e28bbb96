"""The node's own name and address in the sandbox.

Programs bind to the address that the node's name stands for, and connect to it; some want an
interface by its name. So the sandbox has the node's addresses too, on devices with the names of the
node's interfaces, or on lo where there is no /dev/net/tun. What listens in the sandbox is found
there, and never a server of another user of the node.

The node's own services are at the same addresses: sshd, slurmd, a hub. Where the network driver has
to carry connections, rules by port (Linux 4.17) send those of the hub and of system accounts to it.
"""

from __future__ import annotations

import errno
import os
import socket

from ..kernel import sock_diag
from ..kernel.addresses import STAYS_INSIDE, is_loopback, pack, parse_address, serves
from ..kernel.interfaces import IFF_TUN, keep_device, make_device, open_tun
from ..kernel.netlink import family_of
from ..kernel.rtnetlink import (
    IFA_F_DADFAILED,
    IFA_F_TENTATIVE,
    IFF_LOOPBACK,
    IFF_UP,
    RT_SCOPE_LINK,
    TABLE_LOCAL,
    TABLE_MAIN,
    Netlink,
    Port,
)
from .drivers.routes import DEVICE
from .hosts import addresses_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .hosts import Known

MAX_ADDRESSES = 64
"""Of a node: more would be slow, and no node of a cluster has them."""
MAX_RULES = 500
INSIDE_FIRST, SERVICES_FIRST, LOCAL_AFTER = 4, 5, 10
"""Priorities of the rules: services of the node come before the sandbox's own addresses, but for
sockets of which the keeper knows that something in the sandbox listens there."""
SYS_UID_MAX = 999
"""The highest uid of system accounts where login.defs(5) does not give one."""


class OwnAddress:
    """An address of the node, and the interface that has it."""

    def __init__(self, interface: str, packed: bytes) -> None:
        self.interface = interface
        self.packed = packed

    def __str__(self) -> str:
        return socket.inet_ntop(family_of(self.packed), self.packed)


class Node:
    """What a session has to know of its node. Made in the node's network namespace."""

    def __init__(self, addresses: Sequence[OwnAddress], services: Sequence[Port]) -> None:
        self.addresses = addresses
        self.services = services  # which the sandbox must reach at the node's addresses
        # what has been made in the sandbox (`give`)
        self.given: Sequence[str] = []  # addresses
        self.routed: Sequence[tuple[str, int]] = []  # TCP ports of these that rules lead out of


def read_node(reachable: Iterable[tuple[str, int]] = (), known: Known | None = None) -> Node:
    """The addresses of this node, and the services at them: those of system accounts, and what
    listens at the `reachable` hosts and ports; `known` are addresses of the hosts."""
    try:
        addresses = own_addresses(known or {})
    except OSError:  # an outer sandbox without netlink
        return Node([], [])
    own = {each.packed for each in addresses}
    ports = [*_services(own, _highest_system_uid()), *_at(own, reachable, known or {})]
    distinct = {port.key: port for port in ports}
    return Node(addresses, list(distinct.values())[:MAX_RULES])


def own_addresses(known: Known) -> list[OwnAddress]:
    """The addresses of all interfaces that are up, but for the loopback's and the link-local ones
    of IPv6, which each interface has. Raises OSError."""
    netlink = Netlink()
    try:
        interfaces, found = netlink.interfaces(), netlink.addresses()
    finally:
        netlink.close()
    own = []
    for address in found:
        name, flags = interfaces.get(address.index, ("", 0))
        usable = flags & IFF_UP and not address.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)
        is_link_local = len(address.packed) == 16 and address.scope == RT_SCOPE_LINK
        if usable and not is_link_local and not is_loopback(address.packed):
            own.append(OwnAddress("lo" if flags & IFF_LOOPBACK else name, address.packed))
    if len(own) > MAX_ADDRESSES:
        named = {parse_address(each) for each in addresses_of(os.uname().nodename, known)}
        own.sort(key=lambda each: each.packed not in named)
    return own[:MAX_ADDRESSES]


def _at(own: set[bytes], reachable: Iterable[tuple[str, int]], known: Known) -> list[Port]:
    """Those of these hosts and TCP ports that are at the node's own addresses."""
    places = [(each, number) for name, number in reachable for each in addresses_of(name, known)]
    packed = [(parse_address(address), number) for address, number in places]
    return [Port(each, socket.IPPROTO_TCP, number) for each, number in packed if each in own]


def _highest_system_uid(path: str = "/etc/login.defs") -> int:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            rows = [line.split() for line in file if line.startswith("SYS_UID_MAX")]
    except OSError:
        rows = []
    return next((int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()), SYS_UID_MAX)


def _services(own: set[bytes], highest: int) -> list[Port]:
    """The ports of the node's own addresses at which system accounts wait for clients."""
    ports = []
    for table, protocol in (("tcp", socket.IPPROTO_TCP), ("udp", socket.IPPROTO_UDP)):
        for name in (table, f"{table}6"):
            for waiting in sock_diag.waiting_sockets(name):
                if waiting.uid <= highest:
                    served = [each for each in own if serves(waiting.address, each)]
                    ports += [Port(each, protocol, waiting.port) for each in served]
    return ports


# ---- in the sandbox ----------------------------------------------------------------------------


def give(node: Node, with_rules: bool) -> None:
    """Give the sandbox that this process is in the node's addresses; `with_rules`: send what is for
    the node's services to the network driver. Raises OSError.

    To be called with the capabilities of a new user namespace.
    """
    netlink = Netlink()
    try:
        if with_rules and node.services:
            # First, so that no address hides a service if the kernel knows no such rules.
            _add_rules(netlink, node.services)
        for name in dict.fromkeys(each.interface for each in node.addresses):
            if name not in ("lo", DEVICE):  # lo stands in for the driver's own
                _make_device(name)
        indexes = {name: index for index, (name, _) in netlink.interfaces().items()}
        indexes.pop(DEVICE, None)  # the driver starts meanwhile
        for index in set(indexes.values()):
            netlink.set_up(index)
        given = []
        for address in node.addresses:
            index = indexes.get(address.interface, indexes["lo"])
            if _add_address(netlink, index, address.packed):
                given.append(str(address))
        node.given = given
        if with_rules:
            node.routed = tcp_ports(node.services)
    finally:
        netlink.close()


def _add_rules(netlink: Netlink, services: Sequence[Port]) -> None:
    """Have these ports looked up in the main table, before the local one."""
    for family in {family_of(port.packed) for port in services}:
        netlink.add_rule_for_mark(family, INSIDE_FIRST, TABLE_LOCAL, STAYS_INSIDE)
        netlink.add_rule(family, LOCAL_AFTER, TABLE_LOCAL)
    for port in services:
        netlink.add_rule(family_of(port.packed), SERVICES_FIRST, TABLE_MAIN, port)
    for family in {family_of(port.packed) for port in services}:
        netlink.delete_rule(family, 0, TABLE_LOCAL)


def tcp_ports(services: Iterable[Port]) -> list[tuple[str, int]]:
    """Address and port of those over TCP."""
    return [
        (socket.inet_ntop(family_of(port.packed), port.packed), port.number)
        for port in services
        if port.protocol == socket.IPPROTO_TCP
    ]


def route_services(node: Node, device: str, gateway: str, source: str) -> None:
    """Send what is for the node's services at IPv6 addresses to this gateway on the network
    driver's device, from this address: by itself the kernel would take the destination for the
    source as well, as the sandbox has it too (RFC 6724, rule 1). Raises OSError."""
    targets = {port.packed for port in node.services if len(port.packed) == 16}
    if not targets:
        return
    netlink = Netlink()
    try:
        indexes = {name: index for index, (name, _) in netlink.interfaces().items()}
        for packed in targets:
            places = [pack(each) for each in (gateway, source)]
            netlink.add_route(indexes[device], packed, *places)
    finally:
        netlink.close()


def _make_device(name: str) -> None:
    """Make a tun device of this name, which carries nothing. Where that cannot be, lo takes its
    addresses."""
    try:
        tun = open_tun()
    except OSError:
        return
    try:
        make_device(tun, name, IFF_TUN)
        keep_device(tun)
    except OSError:
        pass
    finally:
        os.close(tun)


def _add_address(netlink: Netlink, index: int, packed: bytes) -> bool:
    """Whether the interface has the address now: there may be no IPv6 in the sandbox."""
    try:
        netlink.add_address(index, packed)
    except OSError as error:
        if error.errno != errno.EEXIST:  # two interfaces of the node have it
            return False
    return True
