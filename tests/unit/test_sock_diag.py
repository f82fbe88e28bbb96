"""The sockets that wait for anybody: the kernel's answer is what /proc shows."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Iterator

import pytest

from portwrap.kernel import sock_diag, socket_tables
from portwrap.kernel.addresses import BoundSocket
from portwrap.kernel.netlink import NETLINK_SOCK_DIAG, NetlinkSocket


@pytest.fixture(autouse=True)
def sockets() -> Iterator[dict[str, list[socket.socket]]]:
    """Sockets that wait, by their table, and beside them some that do not."""
    with contextlib.ExitStack() as stack:

        def bound(family: int, kind: int, address: str) -> socket.socket:
            made = stack.enter_context(socket.socket(family, kind))
            made.bind((address, 0))
            return made

        waiting = {
            "tcp": [bound(socket.AF_INET, socket.SOCK_STREAM, each) for each in ("127.0.0.1", "")],
            "tcp6": [bound(socket.AF_INET6, socket.SOCK_STREAM, each) for each in ("::1", "::")],
            "udp": [bound(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1")],
            "udp6": [bound(socket.AF_INET6, socket.SOCK_DGRAM, "::1")],
        }
        for listener in waiting["tcp"] + waiting["tcp6"]:
            listener.listen()
        bound(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1")  # does not listen
        connected = bound(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1")
        connected.connect(waiting["udp"][0].getsockname())
        client = stack.enter_context(socket.socket())
        client.connect(waiting["tcp"][0].getsockname())
        yield waiting


def inodes(found: list[BoundSocket]) -> dict[int, tuple[bytes, int, int]]:
    """What was found of this process's sockets."""
    links = {os.readlink(f"/proc/self/fd/{name}") for name in _open_now()}
    ours = [each for each in found if f"socket:[{each.inode}]" in links]
    return {each.inode: (each.address, each.port, each.uid) for each in ours}


def _open_now() -> list[str]:
    names = os.listdir("/proc/self/fd")
    return [name for name in names if os.path.lexists(f"/proc/self/fd/{name}")]


@pytest.mark.parametrize("table", ["tcp", "tcp6", "udp", "udp6"])
def test_the_kernel_names_what_proc_shows(
    table: str, sockets: dict[str, list[socket.socket]]
) -> None:
    found = inodes(sock_diag.waiting_sockets(table))
    assert found == inodes(socket_tables.waiting_sockets("self", table))
    for each in sockets[table]:
        address, port = each.getsockname()[:2]
        packed = socket.inet_pton(each.family, address)
        assert found[os.fstat(each.fileno()).st_ino] == (packed, port, os.geteuid())
    assert len(found) == len(sockets[table])


def test_a_kernel_that_does_not_have_it(
    monkeypatch: pytest.MonkeyPatch, sockets: dict[str, list[socket.socket]]
) -> None:
    monkeypatch.setattr(sock_diag, "NETLINK_SOCK_DIAG", 31)  # a protocol that there is not
    with pytest.raises(OSError):
        NetlinkSocket(31)
    assert len(inodes(sock_diag.waiting_sockets("tcp"))) == len(sockets["tcp"])


@pytest.mark.parametrize("table", ["tcp", "tcp6"])
def test_those_that_listen_on_one_port(table: str, sockets: dict[str, list[socket.socket]]) -> None:
    netlink = NetlinkSocket(NETLINK_SOCK_DIAG)
    try:
        for each in sockets[table]:
            address, port = each.getsockname()[:2]
            found = inodes(sock_diag.tcp_listeners(netlink, port))
            expected = (socket.inet_pton(each.family, address), port, os.geteuid())
            assert found[os.fstat(each.fileno()).st_ino] == expected
            assert {number for _, number, _ in found.values()} == {port}
    finally:
        netlink.close()
