"""--allow-from between hosts: who is not named is reset, and the server never hears of it."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from typing import Iterator

import pytest
from networks import HOST, HOST6, HOST_ON_SECOND, SERVER, SERVER6, SERVER_ON_SECOND, Host

from helpers import OWNER, run_as
from sessions import Inside, Portwrap, unused_port, unused_ports

pytestmark = pytest.mark.namespaces


@pytest.fixture(scope="module")
def hosts() -> Iterator[Host]:
    """The node between two other hosts, the second of which has no IPv6."""
    made = Host()
    try:
        yield made
    finally:
        made.close()


class Node:
    """A session on the node, and clients on all three hosts."""

    def __init__(
        self, hosts: Host, session: Inside, listener: socket.socket, port: int | None = None
    ) -> None:
        self.hosts = hosts
        self.listener = listener
        self.port = port or session.port

    def is_served(self, at: int, address: str) -> bool:
        """Whether a client in this namespace reaches the server through this address of the node:
        it does, or is reset and the server sees nothing."""
        try:
            with self.hosts.entered(at):
                client = socket.create_connection((address, self.port), timeout=10)
            with client:
                client.sendall(b"?")
                answered = self.answer(client)
        except ConnectionResetError:  # at any of these steps
            answered = False
        if not answered:
            self.listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                self.listener.accept()
            self.listener.settimeout(10)
        return answered

    def answer(self, client: socket.socket) -> bool:
        self.listener.settimeout(0.01)
        while True:
            try:
                server, _ = self.listener.accept()
            except TimeoutError:
                client.setblocking(False)
                try:
                    client.recv(1)
                except BlockingIOError:
                    continue  # neither accepted nor reset yet
                raise AssertionError("an end of file is neither") from None
            with server:
                server.settimeout(10)
                client.settimeout(10)
                assert server.recv(1) == b"?"
                server.sendall(b"!")
                return client.recv(1) == b"!"

    def served(self) -> set[str]:
        """Who is: the two other hosts, over IPv4 and IPv6, and the node itself."""
        clients = {
            "first": (self.hosts.server, HOST),
            "first, IPv6": (self.hosts.server, HOST6),
            "second": (self.hosts.second, HOST_ON_SECOND),
            "the node": (self.hosts.host, "127.0.0.1"),
            "the node's address": (self.hosts.host, HOST),
            "the node, IPv6": (self.hosts.host, "::1"),
        }
        return {who for who, client in clients.items() if self.is_served(*client)}


IPV4 = {"first", "second", "the node", "the node's address"}
EVERYONE = IPV4 | {"first, IPv6", "the node, IPv6"}
CASES = [
    pytest.param("", EVERYONE, id="unset"),
    pytest.param(SERVER, {"first"}, id="one"),
    pytest.param(f"{SERVER},{SERVER_ON_SECOND}", {"first", "second"}, id="two"),
    pytest.param("198.18.0.0/24", {"first", "the node's address"}, id="a network"),
    pytest.param(SERVER6, {"first, IPv6"}, id="IPv6"),
    pytest.param(f"::ffff:{SERVER}", {"first"}, id="mapped"),
    pytest.param("127.0.0.0/8,::1", {"the node", "the node, IPv6"}, id="the node"),
    pytest.param("0.0.0.0/0", IPV4, id="IPv4"),
    pytest.param("203.0.113.1", set(), id="someone else"),
]


@pytest.mark.parametrize(("networks", "served"), CASES)
@pytest.mark.parametrize("service", [False, True], ids=["", "beside a host service"])
def test_who_is_served(
    portwrap: Portwrap, hosts: Host, networks: str, served: set[str], service: bool
) -> None:
    """At a socket for both address families, where IPv4 clients come with mapped addresses. With a
    host service it is a worker that relays."""
    environ = {"PORTWRAP_ALLOW_FROM": networks} if networks else {}
    if service:
        environ["PORTWRAP_HOST_SERVICE"] = str(unused_port())
    with ExitStack() as stack:
        with hosts.entered(hosts.host):
            session = stack.enter_context(
                Inside(portwrap, host="::", forward="auto", extra_env=environ)
            )
        listener = stack.enter_context(session.serve())
        assert Node(hosts, session, listener).served() == served


@pytest.mark.parametrize("networks", [SERVER, f"::1,{SERVER}"])
def test_at_a_socket_for_ipv4_only(portwrap: Portwrap, hosts: Host, networks: str) -> None:
    environ = {"PORTWRAP_ALLOW_FROM": networks}
    with ExitStack() as stack:
        with hosts.entered(hosts.host):
            session = stack.enter_context(Inside(portwrap, forward="auto", extra_env=environ))
        node = Node(hosts, session, stack.enter_context(session.serve()))
        assert node.is_served(hosts.server, HOST)
        assert not node.is_served(hosts.second, HOST_ON_SECOND)
        assert not node.is_served(hosts.host, "127.0.0.1")


def test_more_networks_than_one_message_carries(portwrap: Portwrap, hosts: Host) -> None:
    others = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(6000)]
    environ = {"PORTWRAP_ALLOW_FROM": ",".join([*others, SERVER])}
    with ExitStack() as stack:
        with hosts.entered(hosts.host):
            session = stack.enter_context(
                Inside(portwrap, host="::", forward="auto", extra_env=environ)
            )
        listener = stack.enter_context(session.serve())
        node = Node(hosts, session, listener)
        assert node.is_served(hosts.server, HOST)
        assert not node.is_served(hosts.second, HOST_ON_SECOND)


@pytest.mark.parametrize("networks", ["", SERVER])
def test_published_ports_are_for_the_same_clients(
    portwrap: Portwrap, hosts: Host, networks: str
) -> None:
    published, inner = unused_ports(2)
    environ = {"PORTWRAP_PUBLISH": f"{published}:{inner}"}
    environ.update({"PORTWRAP_ALLOW_FROM": networks} if networks else {})
    with ExitStack() as stack:
        with hosts.entered(hosts.host):
            session = stack.enter_context(Inside(portwrap, forward="auto", extra_env=environ))
        listener = stack.enter_context(session.listen("127.0.0.1", inner))
        node = Node(hosts, session, listener, published)
        assert node.is_served(hosts.server, HOST)
        assert node.is_served(hosts.second, HOST_ON_SECOND) == (not networks)


def test_strangers_do_not_use_up_what_the_others_need(portwrap: Portwrap, hosts: Host) -> None:
    """They are reset at once, however many, and leave no descriptor behind."""
    environ = {"PORTWRAP_ALLOW_FROM": SERVER}
    with ExitStack() as stack:
        before = ["prlimit", "--nofile=80:80"]
        with hosts.entered(hosts.host):
            session = stack.enter_context(
                Inside(portwrap, forward="auto", extra_env=environ, before=before)
            )
        node = Node(hosts, session, stack.enter_context(session.serve()))
        for _ in range(3):
            for _ in range(100):
                with hosts.entered(hosts.second):
                    client = stack.enter_context(socket.socket())
                assert client.connect_ex((HOST_ON_SECOND, session.port)) in (0, errno.ECONNRESET)
            assert node.is_served(hosts.server, HOST)


def test_the_start_says_it(portwrap: Portwrap) -> None:
    options = ["-v", "-p", str(unused_port()), "--allow-from", "127.0.0.1,198.18.0.0/15"]
    result = run_as(OWNER, [*portwrap.words, *options, "true"])
    assert result.returncode == 0, result
    assert " (relay), clients from 127.0.0.1, 198.18.0.0/15, " in result.stderr


def test_it_is_not_for_native_forwarding(portwrap: Portwrap) -> None:
    options = ["-p", str(unused_port()), "--allow-from", "127.0.0.1", "--forward", "native"]
    result = run_as(OWNER, [*portwrap.words, *options, "echo", "ran"])
    assert (result.returncode, result.stdout) == (2, "")
    assert "--allow-from needs the relay" in result.stderr
