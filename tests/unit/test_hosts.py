"""The addresses that a session has to reach, as far as they are known without a resolver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from portwrap.launch import dns, hosts

HOSTS = """
127.0.0.1 localhost
198.18.0.7\tHub01.cluster.example hub01 # the hub
198.18.0.8 hub01
2001:2::7 hub6
#198.18.0.9 gone
"""


def test_hosts_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    known = hosts.read_hosts_file(str(path))
    assert hosts.addresses_of("HUB01", known) == ["198.18.0.7", "198.18.0.8"]
    assert hosts.addresses_of("hub6", known) == ["2001:2::7"]
    assert hosts.addresses_of("gone", known) == []
    assert hosts.addresses_of("198.18.0.9", known) == ["198.18.0.9"]
    assert hosts.addresses_of("2001:2::9", known) == ["2001:2::9"]


def test_hosts_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo"):
        assert hosts.read_hosts_file(str(path)) == {}


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://proxy.example:3128", "proxy.example"),
        ("http://user:word@198.18.0.9:3128/", "198.18.0.9"),
        ("198.18.0.9:3128", "198.18.0.9"),
        ("http://[2001:2::9]:3128", "2001:2::9"),
        ("proxy", "proxy"),
    ],
)
@pytest.mark.parametrize("variable", ["https_proxy", "HTTP_PROXY"])
def test_proxies(variable: str, url: str, host: str) -> None:
    assert hosts.proxy_hosts({variable: url, "no_proxy": "other"}) == [host]
    assert hosts.proxy_hosts({variable: ""}) == []


def test_needed_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, name, text in ((hosts, "HOSTS_FILE", HOSTS), (dns, "RESOLV_CONF", "")):
        path = tmp_path / name
        path.write_text(text or "nameserver 198.18.0.1\nnameserver 198.18.0.7\n")
        monkeypatch.setattr(module, name, str(path))
    known = hosts.read_hosts_file(hosts.HOSTS_FILE)
    found = hosts.needed_addresses(["hub01", "unknown"], {"http_proxy": "198.18.0.3:1"}, known)
    assert found == ["198.18.0.7", "198.18.0.8", "198.18.0.3", "198.18.0.1"]


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        (["hub6"], True),
        (["2001:2::9"], True),
        (["hub6", "hub01"], False),
        (["hub01"], False),
        (["::1"], False),
        (["unknown"], False),
        ([], False),
    ],
)
def test_hosts_that_need_ipv6(tmp_path: Path, names: list[str], needed: bool) -> None:
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    assert hosts.need_ipv6(names, hosts.read_hosts_file(str(path))) is needed
