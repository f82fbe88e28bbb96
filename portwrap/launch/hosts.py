"""Hosts that a session has to reach: the hub, proxies, resolvers; and their addresses, as far as
they are known without a resolver, which may not answer and would delay a start."""

from __future__ import annotations

import os

from ..kernel.addresses import parse_address
from . import dns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Known = Mapping[str, list[str]]
    """The addresses of each name in the hosts file, as `read_hosts_file` returns them."""

HOSTS_FILE = "/etc/hosts"
MAX_SIZE = 1 << 20
"""Bytes of it that are read: some sites list every host of a network in it."""
PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")


def needed_addresses(hosts: Iterable[str], environ: Mapping[str, str], known: Known) -> list[str]:
    """The addresses of these hosts, of the proxies that the environment names, and of the
    resolvers."""
    names = [*hosts, *proxy_hosts(environ)]
    found = [address for name in names for address in addresses_of(name, known)]
    return list(dict.fromkeys([*found, *dns.name_servers(dns.RESOLV_CONF)]))


def need_ipv6(hosts: Iterable[str], known: Known) -> bool:
    """Whether these hosts have IPv6 addresses only, as far as they are known."""
    found = [address for name in hosts for address in addresses_of(name, known)]
    return bool(found) and all(":" in address and address != "::1" for address in found)


def proxy_hosts(environ: Mapping[str, str]) -> list[str]:
    """The hosts of the proxies that programs take from the environment, in either case."""
    names = [name for each in PROXY_VARIABLES for name in (each, each.upper())]
    return [host for name in names for host in [_host_of(environ.get(name, ""))] if host]


def _host_of(url: str) -> str:
    """The host of a URL, which may lack its scheme and have a user and a port."""
    place = url.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place.partition(":")[0]


def addresses_of(name: str, known: Known) -> list[str]:
    """The addresses of a host: itself where it is one, else those that are known."""
    return [name] if parse_address(name) else known.get(name.lower(), [])


def read_hosts_file(path: str = HOSTS_FILE) -> dict[str, list[str]]:
    """The addresses of each name in hosts(5); none where there is no such file."""
    found: dict[str, list[str]] = {}
    try:
        # O_NONBLOCK: one that is a FIFO must not hold up a start
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            lines = (file.read(MAX_SIZE) or b"").decode("latin-1").splitlines()
    except OSError:
        return found
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            found.setdefault(name.lower(), []).append(address)
    return found
