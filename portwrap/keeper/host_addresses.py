"""Which addresses the host has by now: one may have been added after the session began."""

from __future__ import annotations

import errno
import select

import _socket

from ..kernel.netlink import (
    NETLINK_ROUTE,
    RTA_DST,
    RTN_LOCAL,
    NetlinkSocket,
    attribute,
    family_of,
)

RTM_GETROUTE = 26  # linux/rtnetlink.h, as all of these
TYPE = 7  # where struct rtmsg has the type of a route
RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE = 0x40, 0x400
MAX_KNOWN = 256
"""Addresses that are remembered."""


class HostAddresses:
    """Asks the kernel for its route to an address, once until its routes change."""

    def __init__(self) -> None:
        self.known: dict[bytes, bool] = {}
        self.news = select.poll()
        self.changes: _socket.socket | None = None
        try:
            self.changes = NetlinkSocket(NETLINK_ROUTE).socket
            # One message has to find room: of more it is enough that some were lost (ENOBUFS).
            self.changes.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 1)
            self.changes.bind((0, RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE))
            self.changes.setblocking(False)
            self.news.register(self.changes, select.POLLIN)
        except OSError:  # an outer sandbox without netlink
            self.changes = None

    def close(self) -> None:
        if self.changes is not None:
            self.changes.close()

    def have(self, address: bytes) -> bool:
        """Whether the host takes what is sent to this address for its own. Raises OSError."""
        if self.changes is None:
            return False
        while self.news.poll(0):
            self.known.clear()
            try:
                self.changes.recv(1)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost
                    raise
        if len(self.known) >= MAX_KNOWN:
            self.known.clear()
        found = self.known.get(address)
        if found is None:
            found = self.known[address] = is_local(address)
        return found


def is_local(address: bytes) -> bool:
    """The same of this network namespace, from the kernel. Raises OSError."""
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        body = bytes([family_of(address), 8 * len(address)]) + bytes(10)
        return netlink.ask(RTM_GETROUTE, body + attribute(RTA_DST, address))[TYPE] == RTN_LOCAL
    except OSError:
        return False  # there is no route
    finally:
        netlink.close()
