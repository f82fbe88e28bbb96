"""The URL that servers request of another host, as the user gave it: read strictly, so that no
mistake in it is looked up as a name."""

from __future__ import annotations

import socket

from ..launch.ports import parse_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_PORTS = {"http": 80, "https": 443}


class InvalidUrl(ValueError):
    """What is wrong with a URL, and the one that was probably meant; "" if none is near."""

    def __init__(self, reason: str, meant: str = "") -> None:
        super().__init__(reason)
        self.meant = meant


class Api:
    """An HTTP API: its name in the report, the product that answers there, and the header in which
    it gives its version."""

    def __init__(self, name: str, product: str, header: str, url: str, example: str) -> None:
        """`example` is a whole URL of such an API. Raises InvalidUrl."""
        self.name = name
        self.product = product
        self.header = header
        self.url = url
        self.scheme, self.host, self.port, self.path = parse_url(url, example)

    @property
    def target(self) -> dict[str, Any]:
        """What the probe needs of it."""
        keys = ("scheme", "host", "port", "path", "header")
        return {key: getattr(self, key) for key in keys}


def parse_url(text: str, example: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of a URL. Raises InvalidUrl."""
    if not text:
        raise InvalidUrl("is empty", example)
    scheme, mark, rest = text.partition("://")
    if not mark:
        raise InvalidUrl(f"must be a URL, not {text!r}", _completed(text, example))
    if scheme not in DEFAULT_PORTS:
        raise InvalidUrl(f"must begin with http:// or https://, not {text!r}", f"http://{rest}")
    place, _, path = rest.partition("/")
    host, port = _host_and_port(place, f"{scheme}://{{}}/{path}")
    if not host:
        raise InvalidUrl(f"has no host: {text!r}")
    number = parse_port(port) if port else DEFAULT_PORTS[scheme]
    if number is None:
        raise InvalidUrl(f"must have a port from 1 to 65535, not {port!r}")
    return scheme, host, number, f"/{path}"


def _completed(text: str, example: str) -> str:
    """The example with this host, and with this port where there is one."""
    scheme, _, rest = example.partition("://")
    place, _, path = rest.partition("/")
    host, _, port = text.partition("/")[0].partition(":")
    return f"{scheme}://{host}:{port or place.rpartition(':')[2]}/{path}"


def _host_and_port(place: str, url: str) -> tuple[str, str]:
    """The two parts of "host", "host:port" or "[address]:port"; `url` is all around it."""
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":") or not is_ipv6(host):
            raise InvalidUrl(f"must have an IPv6 address in brackets, not {place!r}")
        return host, rest[1:]
    if place.count(":") > 1:
        host, _, port = place.rpartition(":")
        meant = f"[{host}]:{port}" if is_ipv6(host) else f"[{place}]"
        reason = f"must have its IPv6 address in brackets, not {place!r}"
        raise InvalidUrl(reason, url.format(meant))
    host, _, port = place.partition(":")
    return host, port


def is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True
