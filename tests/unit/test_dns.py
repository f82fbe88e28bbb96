"""Which resolvers of the host must answer inside, by what its resolv.conf says."""

from __future__ import annotations

from pathlib import Path

import pytest

from portwrap.launch import dns

RESOLVERS = [
    ("nameserver 127.0.0.53\n", ["127.0.0.53"]),
    ("nameserver 127.0.0.53\nnameserver 127.0.0.53\n", ["127.0.0.53"]),
    ("nameserver ::1\n", ["::1"]),
    ("nameserver ::1%lo\n", ["::1"]),
    ("nameserver 0:0:0:0:0:0:0:1\n", ["::1"]),
    ("nameserver 127.0.0.1\nnameserver ::1", ["127.0.0.1", "::1"]),
    ("nameserver 0.0.0.0\n", ["127.0.0.1"]),
    ("nameserver 127.1\n", ["127.0.0.1"]),
    ("nameserver\t127.0.0.1 \t # comment\n", ["127.0.0.1"]),
    ("options edns0\nnameserver 127.0.0.1\nnameserver 198.18.0.1\r\n", ["127.0.0.1"]),
    ("nameserver 127.0.0.1\0\nnameserver \0\n\0", ["127.0.0.1"]),
    ("nameserver 127.0.0.1\nnameserver 198.18.0.1\n", []),
    ("nameserver 127.0.0.1\n; nameserver 198.18.0.1\n# nameserver 198.18.0.1\n", ["127.0.0.1"]),
    ("nameserver 127.0.0.1\n nameserver 198.18.0.1\nnameservers 198.18.0.1\n", ["127.0.0.1"]),
    ("nameserver 127.0.0.1\nnameserver nonsense\nnameserver\nnameserver 1.2.3.x\n", ["127.0.0.1"]),
    ("nameserver fe80::1%eth0\nnameserver ::1\n", []),
    ("nameserver ::ffff:198.18.0.1\n", []),
    ("nameserver ::ffff:127.0.0.53\n", ["127.0.0.53"]),
    # the C library looks at three
    (
        "".join(f"nameserver 127.0.0.{n}\n" for n in (1, 2, 3)) + "nameserver 198.18.0.1\n",
        ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
    ),
    ("nameserver 127.0.0.1\n\udcff\xff\n", ["127.0.0.1"]),
]


@pytest.mark.parametrize(("text", "addresses"), RESOLVERS)
def test_resolvers(tmp_path: Path, text: str, addresses: list[str]) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = [str(service) for service in dns.needed(str(path))]
    places = [f"[{one}]" if ":" in one else one for one in addresses]
    assert found == [f"{place}:53{kind}" for place in places for kind in ("/udp", "")]


@pytest.mark.parametrize("name", ["missing", ".", "missing/file"])
def test_no_file(tmp_path: Path, name: str) -> None:
    assert dns.name_servers(str(tmp_path / name)) == []
