"""Names: where the host asks a resolver on its own loopback, that resolver answers inside too.

Nothing is mounted over /etc/resolv.conf, which the host may replace at any time: a mount on the
old file would vanish then. The addresses in it become host services (`services.py`) instead.
"""

from __future__ import annotations

import socket

from .services import LOOPBACK_IPV4, TCP, UDP, Service, asked_at, distinct, is_held, is_loopback

RESOLV_CONF = "/etc/resolv.conf"
PORT = 53
MAX_SERVERS = 3  # MAXNS of resolv.h: the C library looks at no more


def needed(path: str = RESOLV_CONF, every: bool = False) -> list[Service]:
    """The resolvers of the host that must answer inside: none, unless all are on its loopback; or
    `every` one, by UDP, where nothing else leads there."""
    servers = name_servers(path)
    if not servers:
        # resolver(5): without a file, or a server in it, the one of this machine is asked.
        servers = [LOOPBACK_IPV4] if is_held("udp", LOOPBACK_IPV4, PORT) else []
    if every:
        others = [server for server in servers if not is_loopback(server)]
        far = [Service(server, PORT, UDP) for server in others if not is_link_local(server)]
        servers = [server for server in servers if is_loopback(server)]
    elif all(map(is_loopback, servers)):
        far = []
    else:
        return []
    near = [Service(server, PORT, kind) for server in servers for kind in (UDP, TCP)]
    return distinct([*near, *far])


def is_link_local(address: str) -> bool:
    """Whether it means something only with its interface, which is not in the sandbox."""
    return address.lower().startswith(("fe8", "fe9", "fea", "feb"))


def name_servers(path: str) -> list[str]:
    """The numeric addresses of the name servers, as the C library reads this file: the keyword
    begins the line, and what is no address is passed over."""
    try:
        with open(path, "rb") as file:
            texts = [line.rstrip(b"\n").partition(b"\0")[0] for line in file]
    except OSError:
        return []
    lines = [text.decode("latin-1") for text in texts]  # any byte is a character
    rests = [line[10:] for line in lines if line.startswith(("nameserver ", "nameserver\t"))]
    words = [rest.replace("\t", " ").lstrip(" ").partition(" ")[0] for rest in rests]
    return [address for address in map(numeric, words) if address][:MAX_SERVERS]


def numeric(text: str) -> str:
    """The address that a client connects to which reads this one; "" if it is none."""
    address = text.partition("%")[0]  # without its interface
    if address.split() != [address]:
        return ""  # inet_aton(3) would stop at any white space, such as a carriage return
    try:
        if ":" in address:
            packed = socket.inet_pton(socket.AF_INET6, address)
            return asked_at(socket.inet_ntop(socket.AF_INET6, packed))
        return asked_at(socket.inet_ntoa(socket.inet_aton(address)))
    except OSError:
        return ""
