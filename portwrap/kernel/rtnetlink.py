"""Interfaces, addresses, routes and rules of this network namespace (rtnetlink(7)).

Numbers and structures are from the kernel's headers: linux/netlink.h, linux/rtnetlink.h,
linux/if_addr.h, linux/if_link.h, linux/fib_rules.h.
"""

from __future__ import annotations

import os
import struct
import sys

import _socket

from .netlink import (
    NETLINK_ROUTE,
    RTA_DST,
    RTN_LOCAL,
    NetlinkSocket,
    attribute,
    attributes,
    family_of,
)

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE = 24
RTM_NEWRULE, RTM_DELRULE = 32, 33
NLM_F_CREATE_NEW = 0x600  # NLM_F_CREATE | NLM_F_EXCL

IFINFO = struct.Struct("=BBHiII")  # family, pad, type, index, flags, change
IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")
# family, destination length, source length, TOS, table, protocol, scope, type, flags
RULE = struct.Struct("=BBBBBBBBI")
# family, destination length, source length, TOS, table, 0, 0, action, flags

IFLA_IFNAME = 3
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_F_NOPREFIXROUTE = 0x02, 0x08, 0x40, 0x200
FRA_DST, FRA_PRIORITY, FRA_FWMARK = 1, 6, 10
FRA_SUPPRESS_PREFIXLEN, FRA_TABLE = 14, 15
FRA_IP_PROTO, FRA_DPORT_RANGE = 22, 24
RTA_OIF, RTA_GATEWAY, RTA_PREFSRC = 4, 5, 7
RTPROT_STATIC, RTN_UNICAST = 4, 1
FR_ACT_TO_TBL, FR_ACT_UNREACHABLE = 1, 7
RT_SCOPE_LINK, RT_SCOPE_HOST = 253, 254
TABLE_MAIN, TABLE_LOCAL = 254, 255

IFF_UP, IFF_LOOPBACK = 0x1, 0x8  # linux/if.h


class Address:
    """An address of an interface."""

    def __init__(self, index: int, packed: bytes, bits: int, scope: int, flags: int) -> None:
        self.index = index
        self.packed = packed
        self.bits = bits  # of its network
        self.scope = scope
        self.flags = flags


class Netlink(NetlinkSocket):
    """Asks of and changes the network namespace in which it was made."""

    def __init__(self) -> None:
        """Raises OSError."""
        super().__init__(NETLINK_ROUTE)

    def interfaces(self) -> dict[int, tuple[str, int]]:
        """Name and flags (IFF_…) of each interface, by its index. Raises OSError."""
        found = {}
        for body in self.dump(RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0, 0)):
            _, _, _, index, flags, _ = IFINFO.unpack_from(body)
            name = attributes(body[IFINFO.size :]).get(IFLA_IFNAME, b"")
            found[index] = os.fsdecode(name.rstrip(b"\0")), flags
        return found

    def addresses(self) -> list[Address]:
        """The addresses of all interfaces, of both families. Raises OSError."""
        found = []
        for body in self.dump(RTM_GETADDR, IFADDR.pack(0, 0, 0, 0, 0)):
            family, bits, flags, scope, index = IFADDR.unpack_from(body)
            fields = attributes(body[IFADDR.size :])
            # Of a point-to-point interface IFA_ADDRESS is the peer's.
            packed = fields.get(IFA_LOCAL) or fields.get(IFA_ADDRESS, b"")
            if IFA_FLAGS in fields:
                flags = int.from_bytes(fields[IFA_FLAGS], sys.byteorder)
            if family in (_socket.AF_INET, _socket.AF_INET6):
                found.append(Address(index, packed, bits, scope, flags))
        return found

    def set_up(self, index: int) -> None:
        """Set an interface up. Raises OSError."""
        self.request(RTM_NEWLINK, IFINFO.pack(0, 0, 0, index, IFF_UP, IFF_UP))

    def add_address(self, index: int, packed: bytes) -> None:
        """Give an interface this one address, without a network. Raises OSError.

        The kernel adds the route to an IPv6 address later, from a work queue: a connection to it
        would be led elsewhere until then.
        """
        body = IFADDR.pack(family_of(packed), 8 * len(packed), IFA_F_NODAD, 0, index)
        body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
        body += attribute(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD | IFA_F_NOPREFIXROUTE))
        self.request(RTM_NEWADDR, body, NLM_F_CREATE_NEW)
        if family_of(packed) == _socket.AF_INET6:
            self._add_local(index, _socket.AF_INET6, attribute(RTA_DST, packed), 8 * len(packed))

    def add_route(self, index: int, packed: bytes, gateway: bytes, source: bytes) -> None:
        """Reach this one address by a gateway on an interface, from this source address. Raises
        OSError."""
        body = ROUTE.pack(
            family_of(packed), 8 * len(packed), 0, 0, TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0
        )
        body += attribute(RTA_DST, packed) + attribute(RTA_GATEWAY, gateway)
        body += attribute(RTA_OIF, struct.pack("=I", index)) + attribute(RTA_PREFSRC, source)
        self.request(RTM_NEWROUTE, body, NLM_F_CREATE_NEW)

    def add_local_default(self, index: int, source: bytes) -> None:
        """Take every address for one of this host, on an interface, and go there from this source
        address. Raises OSError."""
        self._add_local(index, family_of(source), attribute(RTA_PREFSRC, source))

    def _add_local(self, index: int, family: int, more: bytes, bits: int = 0) -> None:
        body = ROUTE.pack(
            family, bits, 0, 0, TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0
        )
        body += attribute(RTA_OIF, struct.pack("=I", index)) + more
        self.request(RTM_NEWROUTE, body, NLM_F_CREATE_NEW)

    def add_unreachable(
        self, family: int, priority: int, protocol: int, address: bytes = b""
    ) -> None:
        """Let nothing of this protocol (Linux 4.17) reach this address, or any. Raises OSError."""
        body = RULE.pack(family, 8 * len(address), 0, 0, 0, 0, 0, FR_ACT_UNREACHABLE, 0)
        body += attribute(FRA_PRIORITY, struct.pack("=I", priority))
        body += attribute(FRA_DST, address) if address else b""
        body += attribute(FRA_IP_PROTO, bytes([protocol]))
        self.request(RTM_NEWRULE, body, NLM_F_CREATE_NEW)

    def add_rule(self, family: int, priority: int, table: int, to: Port | None = None) -> None:
        """Look into this table at this priority, for one port only if that is given. Raises
        OSError."""
        self._rule(RTM_NEWRULE, family, priority, table, to)

    def add_rule_without_default(self, family: int, priority: int, table: int) -> None:
        """Look into this table at this priority, but for its default route. Raises OSError."""
        self._rule(RTM_NEWRULE, family, priority, table, None, SUPPRESS_DEFAULT)

    def add_rule_for_mark(self, family: int, priority: int, table: int, mark: int) -> None:
        """Look into this table at this priority for what has this mark (socket(7), SO_MARK). Raises
        OSError."""
        more = attribute(FRA_FWMARK, struct.pack("=I", mark))
        self._rule(RTM_NEWRULE, family, priority, table, None, more)

    def delete_rule(self, family: int, priority: int, table: int) -> None:
        """Raises OSError."""
        self._rule(RTM_DELRULE, family, priority, table, None)

    def _rule(
        self,
        kind: int,
        family: int,
        priority: int,
        table: int,
        to: Port | None,
        more: bytes = b"",
    ) -> None:
        length = 8 * len(to.packed) if to else 0
        body = RULE.pack(family, length, 0, 0, table, 0, 0, FR_ACT_TO_TBL, 0)
        body += attribute(FRA_PRIORITY, struct.pack("=I", priority)) + more
        if to:
            body += attribute(FRA_DST, to.packed)
            body += attribute(FRA_IP_PROTO, bytes([to.protocol]))
            body += attribute(FRA_DPORT_RANGE, struct.pack("=HH", to.number, to.number))
        self.request(kind, body, NLM_F_CREATE_NEW if kind == RTM_NEWRULE else 0)


class Port:
    """A TCP or UDP port of one address."""

    def __init__(self, packed: bytes, protocol: int, number: int) -> None:
        self.packed = packed
        self.protocol = protocol  # IPPROTO_TCP or IPPROTO_UDP
        self.number = number

    @property
    def key(self) -> tuple[bytes, int, int]:
        """The same for two that are the same."""
        return self.packed, self.protocol, self.number


SUPPRESS_DEFAULT = attribute(FRA_SUPPRESS_PREFIXLEN, bytes(4))
"""Routes whose prefix is not longer than 0 do not count."""
