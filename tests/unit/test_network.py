"""The network drivers' command lines, and the subnet of the sandbox."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from portwrap.diagnostics import lookup
from portwrap.diagnostics.errors import PortwrapError
from portwrap.launch import drivers
from portwrap.launch.drivers import driver
from portwrap.launch.drivers import routes as host_routes
from portwrap.launch.drivers.direct import Direct
from portwrap.launch.drivers.pasta import Pasta
from portwrap.launch.drivers.routes import Route
from portwrap.launch.drivers.slirp4netns import Slirp4netns


def test_the_command_line_of_slirp4netns() -> None:
    assert Slirp4netns("/usr/bin/slirp4netns").argv(4711) == [
        "/usr/bin/slirp4netns",
        "--configure",
        "--mtu=65520",
        "--cidr=198.18.2.0/24",
        "--disable-host-loopback",
        "--ready-fd=3",
        "4711",
        "tap0",
    ]


def test_the_command_line_of_pasta() -> None:
    assert Pasta("/usr/bin/pasta").argv(4711) == [
        "/usr/bin/pasta",
        "--foreground",
        "--quiet",
        "--pid=/proc/self/fd/1",
        "--config-net",
        "--tcp-ports=none",
        "--udp-ports=none",
        "--tcp-ns=none",
        "--udp-ns=none",
        "--no-map-gw",
        "--address=198.18.2.100",
        "--netmask=24",
        "--gateway=198.18.2.2",
        "--address=fd5c:9a1e:72b4:2::100",
        "--gateway=fe80::2",
        "--ns-ifname=tap0",
        "4711",
    ]


def route(interface: str, network_of: str) -> Route:
    """The route to a network in CIDR notation."""
    address, _, bits = network_of.partition("/")
    mask = (0xFFFFFFFF << (32 - int(bits))) & 0xFFFFFFFF
    return Route(interface, int.from_bytes(bytes(map(int, address.split("."))), "big"), mask)


@pytest.mark.parametrize(
    ("networks", "subnet"),
    [
        ([], "198.18.2"),
        (["0.0.0.0/0"], "198.18.2"),
        (["198.18.3.0/24", "198.18.0.0/23"], "198.18.2"),
        (["198.18.2.0/24"], "10.0.2"),
        (["198.18.2.77/32"], "10.0.2"),
        (["198.18.2.128/25"], "10.0.2"),
        (["198.18.0.0/15"], "10.0.2"),
        (["198.18.0.0/15", "10.0.0.0/8"], "172.31.2"),
        (["198.18.0.0/15", "10.0.0.0/8", "172.16.0.0/12"], "192.168.202"),
        (["128.0.0.0/1", "0.0.0.0/1"], "198.18.2"),  # a default route, as VPNs set it
        (["198.18.2.7/32", "10.0.2.0/24", "172.31.0.0/16", "192.168.202.1/32"], "172.31.2"),
        (["198.18.2.0/24", "10.0.2.0/24", "172.31.2.0/24", "192.168.202.0/24"], "198.18.2"),
    ],
)
def test_the_first_subnet_that_the_host_does_not_use(networks: list[str], subnet: str) -> None:
    routes = [route("eth0", each) for each in networks]
    assert host_routes.free_subnet(routes) == subnet
    assert f"--cidr={subnet}.0/24" in Slirp4netns("s", routes).argv(1)
    words = Pasta("p", routes).argv(1)
    assert {f"--address={subnet}.100", f"--gateway={subnet}.2"} <= set(words)


@pytest.mark.parametrize("kind", [Slirp4netns, Pasta])
def test_a_subnet_without_an_address_that_is_needed(kind: type[Slirp4netns] | type[Pasta]) -> None:
    """Behind the default route, which leads to no subnet in particular."""
    default = [route("eth0", "0.0.0.0/0")]
    assert kind("p", default, ["2001:2::1", "hub", "198.18.3.1"]).subnet == "198.18.2"
    assert kind("p", default, ["198.18.2.103"]).subnet == "10.0.2"
    assert kind("p", default, ["198.18.2.103", "10.0.2.3"]).subnet == "172.31.2"


def test_direct_where_nothing_can_be_native() -> None:
    """The reason is that of the driver, if one was wanted."""
    missing = PortwrapError("no driver found", "some identifier")
    with pytest.raises(PortwrapError, match="no driver found"):
        Direct(instead_of=missing).refuse_without_native("an old kernel")
    with pytest.raises(PortwrapError, match="direct is not possible: an old kernel"):
        Direct().refuse_without_native("an old kernel")


@pytest.mark.parametrize(
    ("routes", "interface"),
    [
        ([], ""),
        ([route("ib0", "10.1.0.0/16"), route("eth0", "0.0.0.0/0")], ""),
        ([route("ib0", "10.1.0.0/16"), route("eth0", "10.9.0.0/16")], "ib0"),
    ],
)
def test_an_interface_for_pasta_where_no_route_is_the_default(
    routes: list[Route], interface: str
) -> None:
    named = [word for word in Pasta("p", routes).argv(1) if "--interface" in word]
    assert named == ([f"--interface={interface}"] if interface else [])


TABLE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t{router}\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t{network}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0
*\t{refused}\t00000000\t0200\t0\t0\t0\t{mask}\t0\t0\t0
"""


def test_the_kernels_table_of_routes(tmp_path: Path) -> None:
    def printed(address: str) -> str:
        return f"{int.from_bytes(bytes(map(int, address.split('.'))), sys.byteorder):08X}"

    table = tmp_path / "route"
    table.write_text(
        TABLE.format(
            router=printed("192.0.2.1"),
            network=printed("198.18.2.0"),
            refused=printed("10.0.2.0"),
            mask=printed("255.255.255.0"),
        )
    )
    routes = host_routes.read_routes(str(table))
    assert [each.interface for each in routes] == ["eth0", "eth1"]
    assert [each.mask for each in routes] == [0, 0xFFFFFF00]
    assert routes[1].destination == 0xC6120200
    assert host_routes.free_subnet(routes) == "10.0.2"
    assert host_routes.read_routes(str(tmp_path / "none")) == []


def make_drivers(folder: Path, *names: str) -> dict[str, str]:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


def test_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    both = make_drivers(tmp_path, "slirp4netns", "pasta")
    assert drivers.choose("none", both) is None
    for way, kind in (("auto", Slirp4netns), ("slirp4netns", Slirp4netns), ("pasta", Pasta)):
        chosen = drivers.choose(way, both)
        assert type(chosen) is kind
        assert chosen.path == str(tmp_path / kind.name)


def test_pasta_is_not_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    environ = make_drivers(tmp_path, "pasta", "slirp4netns")
    assert isinstance(drivers.choose("auto", environ), Slirp4netns)
    with pytest.raises(PortwrapError, match="pasta does not run for root") as caught:
        drivers.choose("pasta", environ)
    assert "slirp4netns" in lookup.remedy_of(caught.value)


NEITHER = "neither slirp4netns nor pasta found: the session would have no outbound network"


@pytest.mark.parametrize(
    ("network", "uid", "message"),
    [
        ("auto", 1000, NEITHER),
        ("slirp4netns", 1000, "slirp4netns not found: the session would have no outbound network"),
        ("auto", 0, "slirp4netns not found, pasta does not run for root: the session would have"),
    ],
)
def test_no_driver(monkeypatch: pytest.MonkeyPatch, network: str, uid: int, message: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(driver, "PACKAGE_FOLDERS", ())
    with pytest.raises(PortwrapError) as caught:
        drivers.choose(network, {"PATH": "/nowhere"}, may_be_direct=False)
    assert caught.value.message.startswith(message)
    assert "slirp4netns" in lookup.remedy_of(caught.value)
    assert drivers.usable({"PATH": "/nowhere"}) == []


def test_without_a_driver_it_may_be_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """With "auto"; a driver that was asked for by name is missing all the same."""
    monkeypatch.setattr(driver, "PACKAGE_FOLDERS", ())
    nothing = {"PATH": "/nowhere"}
    chosen = drivers.choose("auto", nothing)
    assert chosen is not None and (chosen.name, chosen.path) == ("direct", "")
    assert chosen.warning
    asked = drivers.choose("direct", nothing)
    assert asked is not None and (asked.name, asked.warning) == ("direct", "")
    with pytest.raises(PortwrapError, match="slirp4netns not found"):
        drivers.choose("slirp4netns", nothing)


IPV6_ROUTE = "{to} {length} {zero} 00 {hop} 00000400 1 0 00000003 {name}\n"
ROUTER = "20010db8000000000000000000000001"


@pytest.mark.parametrize(
    ("to", "length", "hop", "name", "leads_on"),
    [
        ("0" * 32, "00", ROUTER, "eth0", True),
        ("20000000000000000000000000000000", "03", ROUTER, "eth0", False),
        ("0" * 32, "00", "0" * 32, "eth0", False),
        ("20010db8000000000000000000000000", "40", "0" * 32, "eth0", False),
        ("0" * 32, "00", "0" * 32, "lo", False),  # the kernel's own: unreachable
        ("fe800000000000000000000000000000", "40", "0" * 32, "eth0", False),
        ("ff000000000000000000000000000000", "08", "0" * 32, "eth0", False),
    ],
)
def test_routes_of_ipv6(
    tmp_path: Path, to: str, length: str, hop: str, name: str, leads_on: bool
) -> None:
    table = tmp_path / "ipv6_route"
    row = IPV6_ROUTE.format(to=to, length=length, zero="0" * 32, hop=hop, name=name)
    table.write_text(row)
    assert host_routes.leads_on_by_ipv6(str(table)) == leads_on
    assert not host_routes.leads_on_by_ipv6(str(tmp_path / "none"))
