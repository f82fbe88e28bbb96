"""--allow-from: how the networks are written, and which clients are among them."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portwrap.__main__ import PARSER
from portwrap.cli.common import common_settings
from portwrap.diagnostics.errors import PortwrapError
from portwrap.keeper.acceptor import is_among
from portwrap.launch import ports

from fuzzing import examples


def is_allowed(networks: str, client: str) -> bool:
    """Whether the relay takes this client."""
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    return is_among(family, (client, 40001), ports.parse_networks(networks))


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        ("198.18.0.1", ["198.18.0.1", "::ffff:198.18.0.1"], ["198.18.0.2", "198.19.0.1"]),
        ("198.18.0.1/32", ["198.18.0.1"], ["198.18.0.0", "::c612:1", "2002:c612:1::"]),
        ("198.18.0.0/15", ["198.18.0.0", "198.19.255.255"], ["198.17.255.255", "198.20.0.0"]),
        ("0.0.0.0/0", ["1.2.3.4", "::ffff:1.2.3.4"], ["::1", "::", "fe80::1"]),
        ("::/0", ["::1", "2001:db8::1"], ["1.2.3.4", "::ffff:1.2.3.4"]),
        ("2001:db8::/33", ["2001:db8::", "2001:db8:7fff::1"], ["2001:db8:8000::", "::"]),
        ("2001:db8::1", ["2001:db8::1", "2001:0db8:0::0001"], ["2001:db8::2"]),
        ("::ffff:198.18.0.0/120", ["198.18.0.255", "::ffff:198.18.0.9"], ["198.18.1.0"]),
        ("::ffff:198.18.0.1", ["198.18.0.1"], ["198.18.0.3"]),
        ("198.18.0.1,2001:db8::/32", ["198.18.0.1", "2001:db8:1::"], ["198.18.0.2", "2001:db9::"]),
    ],
)
def test_who_is_allowed(networks: str, inside: list[str], outside: list[str]) -> None:
    assert [client for client in inside if not is_allowed(networks, client)] == []
    assert [client for client in outside if is_allowed(networks, client)] == []


def addresses(version: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2 ** (32 if version == 4 else 128) - 1)


@examples(100)
@given(st.data(), st.sampled_from([4, 6]))
def test_it_agrees_with_the_standard_library(data: st.DataObject, version: int) -> None:
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    number = data.draw(addresses(version))
    network = kind((number, data.draw(st.integers(0, 32 if version == 4 else 128))), strict=False)
    near = number ^ (1 << data.draw(st.integers(0, 31 if version == 4 else 127)))
    for each in (number, near, data.draw(addresses(version))):
        client = ipaddress.IPv4Address(each) if version == 4 else ipaddress.IPv6Address(each)
        if getattr(client, "ipv4_mapped", None) is None:
            assert is_allowed(str(network), str(client)) == (client in network)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "198.18.0.1,",
        "198.18.0.1, 198.18.0.2",
        " 198.18.0.1",
        "198.18",
        "198.18.0.256",
        "0198.18.0.1",
        "198.18.0.1/",
        "198.18.0.1/33",
        "198.18.0.1/-1",
        "198.18.0.1/+8",
        "198.18.0.0/٨",
        "198.18.0.0/16/16",
        "198.18.0.0/255.255.0.0",
        "198.18.0.1:80",
        "2001:db8::/129",
        "2001:db8::/0032",
        "[2001:db8::1]",
        "fe80::1%eth0",
        "localhost",
        "proxy.example.org",
        "*",
        "any",
        "198.18.0.1\0",
    ],
)
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(PortwrapError, match="--allow-from: ") as caught:
        settings("--allow-from", text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["198.18.0.1/24", "2001:db8::1/64", "::ffff:198.18.0.1/120"])
def test_bits_beyond_the_network_are_a_mistake(text: str) -> None:
    """One address, or all of its network? Nobody is let in by a guess."""
    with pytest.raises(PortwrapError, match="beyond its first"):
        settings("--allow-from", text)


def settings(*words: str, **environ: str) -> dict[str, object]:
    values, _ = PARSER.parse(["-p", "40001", *words, "true"], environ)
    return common_settings(PARSER, values, 40001)


def test_many_are_one_list() -> None:
    made = settings("--allow-from", "198.18.0.1", "--allow-from=198.18.1.0/24,::1")
    assert made["allow_from"] == "198.18.0.1,198.18.1.0/24,::1"
    assert settings()["allow_from"] == ""


def test_the_environment_says_it_too() -> None:
    variable = {"PORTWRAP_ALLOW_FROM": "198.18.0.1"}
    assert settings(**variable)["allow_from"] == "198.18.0.1"
    assert settings("--allow-from", "::1", **variable)["allow_from"] == "::1"


def test_an_empty_variable_does_not_let_everyone_in() -> None:
    """PORTWRAP_ALLOW_FROM=$PROXY where there is no PROXY."""
    with pytest.raises(PortwrapError, match="PORTWRAP_ALLOW_FROM: '' is neither an IP address"):
        settings(PORTWRAP_ALLOW_FROM="")


def test_it_needs_the_relay() -> None:
    for environ in ({}, {"PORTWRAP_ALLOW_FROM": "::1"}):
        words = ["--forward", "native", *([] if environ else ["--allow-from", "::1"])]
        with pytest.raises(PortwrapError, match="needs the relay") as caught:
            settings(*words, **environ)
        assert caught.value.exit_code == 2
