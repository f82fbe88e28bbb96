"""Which addresses are out of the sandbox."""

from __future__ import annotations

import os
import socket
import struct
from typing import Iterator, Sequence

import pytest

from portwrap.keeper.destinations import MAX_DECIDED, OUTSIDE, Destination, Destinations
from portwrap.keeper.host_addresses import MAX_KNOWN, HostAddresses
from portwrap.kernel.netlink import NETLINK_SOCK_DIAG, NetlinkSocket
from portwrap.launch.ports import parse_networks
from portwrap.protocol import Descriptors, Go

DRIVER = "10.0.2.0/24,fd5c:9a1e:72b4:2::/64"


def sockaddr(address: str, port: int = 80, scope: int = 0) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return struct.pack("=H2sI16sI", socket.AF_INET6, port.to_bytes(2, "big"), 0, packed, scope)
    packed = socket.inet_pton(socket.AF_INET, address)
    return struct.pack("=H2s4s8x", socket.AF_INET, port.to_bytes(2, "big"), packed)


def destinations(
    own: Sequence[str] = (),
    services: Sequence[int] = (),
    command: int = 1,
    diagnosis: NetlinkSocket | None = None,
) -> Destinations:
    found = Destinations(
        Go(
            program="portwrap",
            verbose=False,
            command=command,
            has_pidfd=True,
            lifeline=5,
            guest_port=8888,
            native_forward=True,
            native_outbound=True,
            driver_networks=parse_networks(DRIVER),
            every_address_is_local=False,
            address=0,
            allowed=[],
            published_to=[],
            ephemeral=[],
            own_addresses=own,
            routed_ports=[],
            descriptors=Descriptors(0, 1, 2, services=services),
        ),
        diagnosis,
    )
    MADE.append(found)
    return found


MADE: list[Destinations] = []


@pytest.fixture(autouse=True)
def close_all() -> Iterator[None]:
    """The keeper never does."""
    yield
    while MADE:
        MADE.pop().host.close()


ADDRESSES = [
    ("0.0.0.0", False),
    ("0.255.255.255", False),
    ("1.0.0.0", True),
    ("10.0.1.255", True),
    ("10.0.2.0", False),
    ("10.0.2.3", False),
    ("10.0.3.0", True),
    ("126.255.255.255", True),
    ("127.0.0.0", False),
    ("127.255.255.255", False),
    ("128.0.0.0", True),
    ("169.254.169.254", True),
    ("223.255.255.255", True),
    ("224.0.0.1", False),
    ("240.0.0.1", False),
    ("255.255.255.255", False),
    ("::", False),
    ("::1", False),
    ("::2", True),
    ("::ffff:127.0.0.1", False),
    ("::ffff:10.0.2.2", False),
    ("::ffff:192.0.2.1", True),
    ("::fffe:0:1", True),
    ("fe7f:ffff::1", True),
    ("fe80::1", False),
    ("febf::1", False),
    ("fec0::1", True),
    ("ff02::1", False),
    ("fd5c:9a1e:72b4:1::1", True),
    ("fd5c:9a1e:72b4:2::100", False),
    ("fd5c:9a1e:72b4:3::1", True),
    ("2001:db8::1", True),
]


@pytest.mark.parametrize(("address", "outside"), ADDRESSES)
def test_which_addresses_are_outside(address: str, outside: bool) -> None:
    found = destinations()
    for _ in range(2):  # it remembers
        assert is_outside(found, address) is outside


def is_outside(found: Destinations, address: str, port: int = 80) -> bool:
    return found.find(Destination(sockaddr(address, port))) == OUTSIDE


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    found = destinations()
    for number in range(3 * MAX_DECIDED):
        assert is_outside(found, f"192.0.{number // 256}.{number % 256}")
        assert len(found.decided) <= MAX_DECIDED
    assert not is_outside(found, "127.0.0.1")


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_the_bytes_are_those_that_were_looked_at(address: str) -> None:
    """And no more of them than the kernel reads: what is behind them may be anything."""
    data = sockaddr(address, 0x1234, 5)
    destination = Destination(data + b"more")
    assert destination.data == data and destination.is_internet
    assert destination.port == 0x1234


@pytest.mark.parametrize(
    "data",
    [
        bytes(16),  # AF_UNSPEC: disconnects
        struct.pack("=H", socket.AF_UNIX) + b"/run/x".ljust(14, b"\0"),
        struct.pack("=H", 0xFFFF).ljust(28, b"\0"),
        sockaddr("192.0.2.1")[:15],
        sockaddr("2001:db8::1")[:27],
        b"",
        b"\2",
    ],
)
def test_what_is_no_address_of_the_internet(data: bytes) -> None:
    assert not Destination(data).is_internet


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """The listening socket of a host service."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        yield made


def test_host_services_are_outside(service: socket.socket) -> None:
    """The one that is offered, under both ways to write its address, and no other port of it."""
    port = service.getsockname()[1]
    offered = destinations(services=[service.fileno()])
    for address in ("127.0.0.1", "::ffff:127.0.0.1"):
        assert is_outside(offered, address, port)
        assert not is_outside(offered, address, port ^ 1)
    for address in ("127.0.0.2", "::1"):
        assert not is_outside(offered, address, port)
    assert service.getsockname()[1] == port  # it is still open


def test_host_services_over_udp_are_not(service: socket.socket) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        port = made.getsockname()[1]
        offered = destinations(services=[made.fileno()])
        assert not is_outside(offered, "127.0.0.1", port)


def listens(found: Destinations, port: int) -> bool:
    return any(each.port == port for each in found.listeners(port))


def test_what_listens_in_the_network_namespace_of_a_socket() -> None:
    """And where the kernel does not say, in that of the command."""
    netlink = NetlinkSocket(NETLINK_SOCK_DIAG)
    found = destinations(command=0, diagnosis=netlink)  # a process that there is not
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert not listens(found, port)
        server.listen()
        assert listens(found, port)
        netlink.close()
        assert not listens(found, port)
        assert listens(destinations(command=os.getpid()), port)


def test_the_hosts_addresses() -> None:
    hosts = HostAddresses()
    for _ in range(2):  # it remembers
        assert hosts.have(socket.inet_aton("127.0.0.1"))
        assert not hosts.have(socket.inet_aton("192.0.2.1"))
    for number in range(3 * MAX_KNOWN):
        hosts.have(socket.inet_aton(f"192.0.{number // 256}.{number % 256}"))
        assert len(hosts.known) <= MAX_KNOWN
    hosts.close()
