"""Who reaches a UDP socket of a session that has sent a datagram out, at the port that the network
driver uses for it. docs/security.md has the same."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Iterator

import pytest
from network_drivers import OLD_AND_NEW, ChosenDriver
from networks import HOST, HOST_ON_SECOND, SERVER, SERVER_ON_SECOND, Host

from helpers import NEIGHBOUR
from sessions import Maker, Outside, Portwrap

pytestmark = pytest.mark.namespaces

ELSEWHERE, ON_THE_NODE = "from another host", "by a neighbour on the node"
REACHED = {
    "slirp4netns": {ELSEWHERE},
    "slirp4netns-newer": {ELSEWHERE},
    "pasta": {ELSEWHERE, ON_THE_NODE},
    "pasta-newer": set(),
    "without us": {ELSEWHERE, ON_THE_NODE},
}
"""A neighbour's datagram comes from an address of the node, which slirp4netns leaves as it is. The
sandbox has that address itself, so its kernel takes no such datagram from outside. Debian 12's
pasta has one of 127.0.0.1 come from its router."""


class Node:
    """A host, a server that its owner writes to, and others who write to her."""

    def __init__(self, portwrap: Portwrap, host: Host, stack: ExitStack) -> None:
        self.server = stack.enter_context(host.bind_udp(SERVER))
        neighbour = stack.enter_context(Outside(portwrap, NEIGHBOUR))
        elsewhere = [host.bind_udp(SERVER), host.bind_udp(SERVER_ON_SECOND, host.second)]
        here = [neighbour.make(do="bind_udp", address=a, port=0) for a in ("127.0.0.1", HOST)]
        self.senders = {ELSEWHERE: elsewhere, ON_THE_NODE: here}
        for each in (*elsewhere, *here):
            stack.enter_context(each)

    def reached(self, owner: socket.socket) -> set[str]:
        """Who reaches the owner's socket, which has written to the server."""
        _, (_, port) = self.server.recvfrom(99)
        return {who for who in self.senders if self.reaches(who, owner, port)}

    def reaches(self, who: str, owner: socket.socket, port: int) -> bool:
        for sender in self.senders[who]:
            for address in ("127.0.0.1", HOST, HOST_ON_SECOND):
                try:
                    sender.sendto(who.encode(), (address, port))
                except OSError:
                    continue  # there is no way from there
        # The server's comes last: what is before it is all that there is.
        self.server.sendto(b"answer", (HOST, port))
        heard = list(iter(lambda: owner.recv(99), b"answer"))
        assert set(heard) <= {who.encode()}
        return bool(heard)


@pytest.fixture
def node(portwrap: Portwrap, host: Host) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(portwrap, host, stack)


def write(maker: Maker, node: Node) -> socket.socket:
    made = maker.make(do="bind_udp", address="0.0.0.0", port=0)
    made.sendto(b"question", node.server.getsockname())
    return made


@pytest.mark.parametrize("name", OLD_AND_NEW)
def test_a_socket_that_has_sent_something_out(portwrap: Portwrap, node: Node, name: str) -> None:
    with ChosenDriver(name).inside(portwrap) as session, write(session, node) as owner:
        assert node.reached(owner) == REACHED[name]


def test_bare_everybody_reaches_it(portwrap: Portwrap, node: Node) -> None:
    """The control."""
    with Outside(portwrap) as maker, write(maker, node) as owner:
        assert node.reached(owner) == REACHED["without us"]


@pytest.mark.parametrize("name", OLD_AND_NEW)
def test_a_connected_socket(portwrap: Portwrap, node: Node, name: str) -> None:
    """It takes its peer's datagrams only: such are those that ask for names."""
    with ChosenDriver(name).inside(portwrap) as session, write(session, node) as owner:
        owner.connect(node.server.getsockname())
        assert node.reached(owner) == set()
