"""The host port: what is one, and who else may have it."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from typing import Iterator

import pytest

from portwrap.diagnostics import lookup
from portwrap.diagnostics.errors import PortwrapError
from portwrap.launch import ports

from helpers import cannot, free_port

LOOPBACK6 = "::1"
ADDRESSES_OF_LOCALHOST = [str(entry[4][0]) for entry in socket.getaddrinfo("localhost", 1)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1),
        ("80", 80),
        ("65535", 65535),
        ("08080", 8080),
        ("00001", 1),
        ("0", None),
        ("00000", None),
        ("65536", None),
        ("99999", None),
        ("100000", None),
        ("000080", None),
        ("9" * 5000, None),
        ("", None),
        ("+1", None),
        ("-1", None),
        (" 1", None),
        ("1\n", None),
        ("1_0", None),
        ("1.0", None),
        ("0x50", None),
        ("٨٠", None),
        ("\uff18\uff10", None),
        ("\u00b2", None),
        ("None", None),
    ],
)
def test_parse(text: str, number: int | None) -> None:
    assert ports.parse_port(text) == number


# ---- binding ---------------------------------------------------------------------------------


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def number() -> int:
    """A port that is free for both families."""
    if not socket.has_ipv6:
        cannot("no IPv6 in this Python")
    return free_port("::")


def bound(stack: ExitStack, address: str, number: int) -> ports.HostPort:
    port = ports.bind(address, number)
    stack.callback(port.close)
    return port


def rival(
    stack: ExitStack, address: str, number: int, *options: int, only_ipv6: bool = True
) -> socket.socket:
    """A neighbour's socket that has bound the port, with these socket options set."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    other = stack.enter_context(socket.socket(family))
    if family == socket.AF_INET6:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
    for option in options:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
    other.bind((address, number))
    return other


def accepts(port: ports.HostPort, address: str) -> bool:
    """Whether a client of this address is taken by one of the port's listeners."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(5)
        try:
            client.connect((address, port.number))
        except ConnectionRefusedError:
            return False
        for listener in port.listeners:
            with socket.socket(fileno=os.dup(listener.fileno())) as copy:
                copy.setblocking(False)
                try:
                    copy.accept()[0].close()
                    return True
                except BlockingIOError:
                    continue
    return False


def refusal(address: str, number: int) -> PortwrapError:
    with pytest.raises(PortwrapError) as caught:
        ports.bind(address, number).close()
    assert caught.value.exit_code == 125
    assert lookup.find(caught.value.failure)
    return caught.value


@pytest.mark.parametrize(
    ("address", "served", "refused"),
    [
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2"], [LOOPBACK6]),
        ("::", ["127.0.0.1", LOOPBACK6], []),
        ("", ["127.0.0.1", LOOPBACK6], []),
        ("127.0.0.1", ["127.0.0.1"], ["127.0.0.2", LOOPBACK6]),
        ("::ffff:127.0.0.1", ["127.0.0.1"], ["127.0.0.2", LOOPBACK6]),
        (LOOPBACK6, [LOOPBACK6], ["127.0.0.1"]),
        ("localhost", ADDRESSES_OF_LOCALHOST, ["127.0.0.2"]),
    ],
)
def test_who_is_served(
    stack: ExitStack, number: int, address: str, served: list[str], refused: list[str]
) -> None:
    port = bound(stack, address, number)
    assert [asked for asked in served if not accepts(port, asked)] == []
    assert [asked for asked in refused if accepts(port, asked)] == []


ADDRESSES = ["0.0.0.0", "::", "", "127.0.0.1", LOOPBACK6, "localhost"]
# Who shares the port by SO_REUSEPORT must be another account's: tests/namespaces/test_host_port.py.
RIVALS = [
    pytest.param((), id="plain"),
    pytest.param((socket.SO_REUSEADDR,), id="reuseaddr"),
]


@pytest.mark.parametrize("options", RIVALS)
@pytest.mark.parametrize("held", ADDRESSES)
@pytest.mark.parametrize("taken", ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1"])
def test_nobody_gets_the_port_on_any_address(
    stack: ExitStack, number: int, held: str, taken: str, options: tuple[int, ...]
) -> None:
    bound(stack, held, number)
    with pytest.raises(OSError) as caught:
        rival(stack, taken, number, *options).listen()
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("options", RIVALS)
@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("taken", ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1"])
def test_a_port_that_someone_listens_on_is_busy(
    stack: ExitStack, number: int, address: str, taken: str, options: tuple[int, ...]
) -> None:
    """At another address of the node, too: who is told a name may try that one first."""
    rival(stack, taken, number, *options).listen()
    error = refusal(address, number)
    assert f":{number}: Address already in use" in error.message
    assert "Start the server again" in lookup.remedy_of(error)


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "::"),
        ("0.0.0.0", "0.0.0.0"),
        ("0.0.0.0", "::"),
        ("::", "::"),
    ],
)
def test_who_has_bound_but_does_not_listen_cannot_listen_after_us(
    stack: ExitStack, number: int, address: str, taken: str
) -> None:
    other = rival(stack, taken, number, socket.SO_REUSEADDR)
    port = bound(stack, address, number)
    with pytest.raises(OSError) as caught:
        other.listen()
    assert caught.value.errno == errno.EADDRINUSE
    assert accepts(port, "127.0.0.1")


def test_who_has_bound_without_sharing_keeps_it(stack: ExitStack, number: int) -> None:
    rival(stack, "127.0.0.1", number)
    assert "Address already in use" in refusal("127.0.0.1", number).message


def test_connections_in_time_wait_are_no_obstacle(stack: ExitStack, number: int) -> None:
    with socket.create_server(("127.0.0.1", number)) as server:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", number)))
        served, _ = server.accept()
        served.close()  # who closes first waits (RFC 9293, 3.6.1)
        assert client.recv(1) == b""
        client.close()
    with pytest.raises(OSError):
        rival(stack, "127.0.0.1", number)
    assert accepts(bound(stack, "127.0.0.1", number), "127.0.0.1")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "127.0.0.1"])
def test_close_frees_it(number: int, address: str) -> None:
    for _ in range(2):
        port = ports.bind(address, number)
        port.close()
    with socket.create_server(("127.0.0.1", number)):
        pass


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_nothing_is_held_after_a_refusal(number: int, address: str) -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::1", number))
        other.listen()
        error = refusal(address, number)
        # the traceback still holds what the failing functions knew
        assert error.__cause__ is not None
        with socket.create_server(("127.0.0.1", number)):
            pass


def test_sockets_are_not_inherited(stack: ExitStack, number: int) -> None:
    port = bound(stack, "0.0.0.0", number)
    assert [os.get_inheritable(one.fileno()) for one in port.listeners + port.reserved] == [
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("address", "said", "remedy"),
    [
        ("198.18.255.254", "Cannot assign requested address", "c.Spawner.ip"),
        ("2001:db8::1", "[2001:db8::1]:", "c.Spawner.ip"),
        ("..", "cannot look up the host address '..'", "c.Spawner.ip"),
        ("a" * 70, "cannot look up the host address 'aaa", "c.Spawner.ip"),
        ("two words", "cannot look up the host address 'two words'", "c.Spawner.ip"),
    ],
)
def test_an_address_that_is_not_of_this_node(
    number: int, address: str, said: str, remedy: str
) -> None:
    error = refusal(address, number)
    assert said in error.message and remedy in lookup.remedy_of(error)
