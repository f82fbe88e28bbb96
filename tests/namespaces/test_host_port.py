"""Who may have the number of the host port: two accounts, every address, every option, before the
session has it, while it has it, and while its server has ended its listening."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Iterator

import pytest
from launches import as_owner_in
from networks import FAR, HOST, HOST6, Host
from networks import HOST as NODE
from networks import HOST6 as NODE6
from rivals import Player, in_a_loop, taken

from conftest import TEST_ROOT
from helpers import NEIGHBOUR, OWNER, as_user, cannot, end, needs, run_as, wait_until
from sessions import Portwrap, Session, injected, port_without_a_past

pytestmark = pytest.mark.namespaces

BUSY = "Address already in use"
NAMES = f"""
127.0.0.1 localhost
::1 localhost
{HOST} node.test
{HOST6} node.test
{HOST} some.test
{FAR} some.test
{FAR} far.test
"""
V4, V6 = "127.0.0.1", "::1"
MAPPED, MAPPED_NODE, MAPPED_ALL = f"::ffff:{V4}", f"::ffff:{NODE}", "::ffff:0.0.0.0"
RIVALS = ["0.0.0.0", V4, NODE, "::", V6, NODE6, MAPPED, MAPPED_NODE, MAPPED_ALL]
"""Where a neighbour listens."""

FREE_BARE: dict[str, set[str]] = {
    "": set(),
    "0.0.0.0": {"::", V6, NODE6},
    "::": {"0.0.0.0", V4, NODE, MAPPED, MAPPED_NODE, MAPPED_ALL},
    V4: {NODE, "::", V6, NODE6, MAPPED_NODE},
    NODE: {V4, "::", V6, NODE6, MAPPED},
    V6: {"0.0.0.0", V4, NODE, NODE6, MAPPED, MAPPED_NODE, MAPPED_ALL},
    NODE6: {"0.0.0.0", V4, NODE, V6, MAPPED, MAPPED_NODE, MAPPED_ALL},
    "localhost": {NODE, NODE6, MAPPED_NODE},
    "node.test": {V4, V6, MAPPED},
}
"""Host of a server that runs without us, and where a neighbour may listen on the same number, after
it or before it. With us: nowhere."""
HOSTS = [*FREE_BARE, MAPPED]
"""tornado and asyncio cannot bind an IPv4 address that is written as an IPv6 one."""
SERVED: dict[str, set[str]] = {
    "": {V4, NODE, V6, NODE6},
    "::": {V4, NODE, V6, NODE6},
    "0.0.0.0": {V4, NODE},
    "localhost": {V4, V6},
    "node.test": {NODE, NODE6},
    MAPPED: {V4},
}
"""Where clients of a session are served; at an address that is not here, at that address."""
every_host = pytest.mark.parametrize("place", HOSTS)


@pytest.fixture
def names(world_dir: Path) -> list[str]:
    """Words that make the owner of what follows, where /etc/hosts has names of two families."""
    hosts = world_dir / "hosts"
    hosts.write_text(NAMES)
    hosts.chmod(0o644)
    return as_owner_in(f"mount --bind {hosts} /etc/hosts")


@pytest.fixture
def owner(portwrap: Portwrap, host: Host, names: list[str]) -> Iterator[Player]:
    """Has the host port, on a host with an address of each family."""
    with Player("root", [*names, *portwrap.program("host_port.py")]) as player:
        yield player


@pytest.fixture
def rival(portwrap: Portwrap, host: Host) -> Iterator[Player]:
    with Player(NEIGHBOUR, portwrap.program("rival.py")) as player:
        yield player


# ---- a neighbour who comes later ------------------------------------------------------------


@every_host
def test_nowhere_after_us(portwrap: Portwrap, owner: Player, place: str) -> None:
    port = port_without_a_past()
    assert owner.do("ours", place, port) is None
    assert taken(portwrap, port, RIVALS) == set()
    assert owner.do("shut") is None
    assert taken(portwrap, port, RIVALS) == set()
    assert owner.do("listen") is None
    assert taken(portwrap, port, RIVALS) == set()
    owner.do("close")
    assert taken(portwrap, port, RIVALS) == set(RIVALS)


@pytest.mark.parametrize("place", FREE_BARE)
def test_bare_there_is_room(portwrap: Portwrap, owner: Player, place: str) -> None:
    """The control; a server that has ended its listening by shutdown(2) leaves all of it."""
    port = port_without_a_past()
    assert owner.do("bare", place, port) is None
    assert taken(portwrap, port, RIVALS) == FREE_BARE[place]
    assert owner.do("shut") is None
    assert taken(portwrap, port, RIVALS) == set(RIVALS)


@every_host
def test_who_is_served(owner: Player, place: str) -> None:
    """Who tries another address first is refused at once, and goes on to the next."""
    port = port_without_a_past()
    assert owner.do("ours", place, port) is None
    served = set()
    for address in (V4, V6, NODE, NODE6):
        try:
            socket.create_connection((address, port), timeout=10).close()
            served.add(address)
        except ConnectionRefusedError:
            continue
    assert served == SERVED.get(place, {place})


def test_a_name_with_an_address_of_another_node(owner: Player) -> None:
    """It is left out; a name that has no other is refused."""
    assert owner.do("ours", "some.test", port_without_a_past()) is None
    assert "Cannot assign requested address" in owner.do("ours", "far.test", port_without_a_past())


# ---- a neighbour who was there before -------------------------------------------------------


def rivals() -> Iterator[tuple[str, int, int, int]]:
    """Address, SO_REUSEADDR, SO_REUSEPORT, IPV6_V6ONLY."""
    for address, reuse_address, reuse_port in itertools.product(RIVALS, (0, 1), (0, 1)):
        for only_ipv6 in (0, 1) if address == "::" else (":" in address and "." not in address,):
            yield address, reuse_address, reuse_port, int(only_ipv6)


@every_host
def test_nowhere_before_us(owner: Player, rival: Player, place: str) -> None:
    """Who listens has it: the session does not start. Who is bound and has SO_REUSEADDR lets us
    bind, but he cannot listen any more."""
    for address, reuse_address, reuse_port, only_ipv6 in rivals():
        for listens in (False, True):
            port = port_without_a_past()
            tried = (address, reuse_address, reuse_port, only_ipv6, listens)
            assert rival.do("bind", address, port, reuse_address, reuse_port, only_ipv6) is None
            if listens:
                assert rival.do("listen") is None
            refusal = owner.do("ours", place, port)
            if listens or not reuse_address:
                assert BUSY in (refusal or ""), tried
            else:
                assert refusal is None, tried
                assert rival.do("listen") == BUSY, tried
                owner.do("shut")
                assert rival.do("listen") == BUSY, tried
                owner.do("close")
            rival.do("close")


@pytest.mark.parametrize("place", FREE_BARE)
def test_bare_he_stays(owner: Player, rival: Player, place: str) -> None:
    """The control: he listens, and the owner's server starts beside him, or after him."""
    beside = set()
    for address, reuse_address, reuse_port, only_ipv6 in rivals():
        port = port_without_a_past()
        assert rival.do("bind", address, port, reuse_address, reuse_port, only_ipv6) is None
        assert rival.do("listen") is None
        if owner.do("bare", place, port) is None:
            beside.add(address)
            owner.do("close")
        rival.do("close")
    assert beside == FREE_BARE[place]


def test_nobody_slips_in_while_the_port_is_reserved(
    portwrap: Portwrap, owner: Player, rival: Player
) -> None:
    """Between the bind of what reserves the port and its being alone there is room for who has
    SO_REUSEADDR: we look again."""
    port = port_without_a_past()
    with injected(owner.pid, f"bind:delay_exit={60 * 1_000_000}:when=2"):  # until strace lets go
        owner.give("ours", V4, port)
        wait_until(lambda: accepts(V4, port), what="a listener")
        wait_until(lambda: in_bind(owner.pid), what="the second bind")
        assert rival.do("bind", NODE, port, 1, 0, 0) is None
        assert rival.do("listen") is None
    assert BUSY in owner.answer()


def accepts(address: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0


BIND_CALL = {"x86_64": "49", "aarch64": "200"}.get(os.uname().machine, "")


def in_bind(pid: int) -> bool:
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == BIND_CALL


# ---- while a session has it -----------------------------------------------------------------


@pytest.mark.parametrize("forward", ["relay", "native"])
@pytest.mark.parametrize("place", ["localhost", "node.test", "", V4, NODE6])
def test_a_session_from_its_start_to_its_end(
    portwrap: Portwrap, host: Host, names: list[str], forward: str, place: str
) -> None:
    server = portwrap.program("server.py", "plain", V4, "8888")
    options: dict[str, Any] = {"account": "root", "before": names, "forward": forward}
    with Session(portwrap, server, host=place or "::", **options) as session:
        session.wait_until_up()
        for address in SERVED.get(place, {place}):
            assert ask(session.port, address)["pid"] == session.pid
        assert taken(portwrap, session.port, RIVALS) == set()
        os.kill(session.keeper, signal.SIGSTOP)
        assert taken(portwrap, session.port, RIVALS) == set()
        os.kill(session.keeper, signal.SIGCONT)
        session.process.terminate()
        wait_until(
            lambda: taken(portwrap, session.port, RIVALS) == set(RIVALS), what="the port free"
        )


HUB = TEST_ROOT / "hub-venv" / "bin"
NODE_CLIENT = """
require("http").get(process.argv[1], answer => answer.pipe(process.stdout))
  .on("error", error => { console.log(String(error)); process.exit(1) })
"""
TORNADO_CLIENT = """
import sys
from tornado import httpclient
print(httpclient.HTTPClient().fetch(sys.argv[1]).body.decode())
"""
CLIENTS = {
    "node": ["node", "-e", NODE_CLIENT],  # the proxy is such a one
    "tornado": [str(HUB / "python"), "-c", TORNADO_CLIENT],  # and the hub such
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("forward", ["relay", "native"])
@pytest.mark.parametrize("place", ["0.0.0.0", V4, V6, "localhost"])
def test_clients_that_are_given_a_name(
    portwrap: Portwrap, host: Host, names: list[str], forward: str, place: str, client: str
) -> None:
    """They try ::1 first. Where that is only reserved they are refused, and go on to 127.0.0.1."""
    needs("node")
    if not HUB.exists():
        cannot(f"not installed: {HUB}; tests/setup.sh installs it")
    address = V6 if place == V6 else V4
    command = [portwrap.python, "-m", "http.server", "--bind", address, "8888"]
    options: dict[str, Any] = {"account": "root", "before": names, "forward": forward}
    with Session(portwrap, command, host=place, **options) as session:
        session.wait_until_up()
        wait_until(lambda: is_served(address, session.port), what="the server")
        found = run_as("root", [*names, *CLIENTS[client], f"http://localhost:{session.port}"])
        assert "Directory listing" in found.stdout, found.stdout + found.stderr


def is_served(address: str, port: int) -> bool:
    connection = HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:  # a relay resets clients until the server listens
        return False
    finally:
        connection.close()


SERVERS = TEST_ROOT / "servers-venv" / "bin"
ENDS = ["shut", "shut-and-listen", "twisted"]
"""Servers that end their listening by shutdown(2) after each client, and listen again."""
CYCLES = 50


def server_that_ends(portwrap: Portwrap, way: str, address: str, port: int) -> list[str]:
    if way != "twisted":
        return portwrap.program("server.py", way, address, str(port))
    python = SERVERS / "python"
    if run_as(OWNER, [python, "-c", "import twisted"]).returncode != 0:
        cannot(f"not installed: Twisted in {SERVERS}; tests/setup.sh installs it")
    return [str(python), *portwrap.program("twisted_server.py", address, str(port))[3:]]


def asked(port: int, address: str = V4) -> Any:
    """What the server answers; None if it does not."""
    try:
        with socket.create_connection((address, port), timeout=10) as client:
            return json.loads(b"".join(iter(lambda: client.recv(4096), b"")))
    except (OSError, ValueError):  # refused, reset, or by the neighbour
        return None


def ask(port: int, address: str = V4) -> Any:
    """The same, once it does."""
    return wait_until(lambda: asked(port, address), what="an answer")


@pytest.mark.parametrize("place", [V4, "0.0.0.0"])
@pytest.mark.parametrize("way", ENDS)
def test_a_server_that_ends_its_listening(
    portwrap: Portwrap, host: Host, rival: Player, way: str, place: str
) -> None:
    server = server_that_ends(portwrap, way, V4, 8888)
    with Session(portwrap, server, forward="native", host=place) as session:
        session.wait_until_up()
        with in_a_loop(rival, session.port, V4, "0.0.0.0", NODE, V6, "::") as outcome:
            for _ in range(CYCLES):
                assert ask(session.port)["own"] == [V4, session.port]
        tried, got = outcome
        assert tried > 10 * CYCLES
        assert got is None


def test_a_server_that_keeps_what_it_has_shut(portwrap: Portwrap) -> None:
    """It may bind anew beside that, as it may without us."""
    server = portwrap.program("server.py", "shut-and-keep", V4, "8888")
    with Session(portwrap, server, forward="auto") as session:
        for _ in range(3):
            assert ask(session.port)["pid"] == session.pid


@pytest.mark.parametrize("way", ENDS)
def test_bare_he_gets_the_port(portwrap: Portwrap, host: Host, rival: Player, way: str) -> None:
    """The control."""
    port = port_without_a_past()
    server = as_user(OWNER, server_that_ends(portwrap, way, V4, port), stdout=None)
    try:
        wait_until(lambda: accepts(V4, port), what="the server")
        with in_a_loop(rival, port, V4) as outcome:
            while not rival.has_answered():
                asked(port)
        assert outcome[1] == V4
    finally:
        end(server)


def test_the_host_port_is_lost(portwrap: Portwrap) -> None:
    """Reported without being asked for."""
    server = portwrap.program("server.py", "shut", V4, "8888")
    with Session(portwrap, server, forward="native") as session:
        session.wait_until_up()
        process = session.process
        assert process.stdout and process.stderr
        assert process.stdout.readline() == f"listening {session.port}\n"
        assert ask(session.port)["pid"] == session.pid
        # Only now: what is to fail is the keeper's listen after the next end, no other one.
        assert process.stdout.readline() == f"listening {session.port}\n"
        with injected(session.keeper, "listen:error=EADDRINUSE"):
            accepts(V4, session.port)
            line = process.stderr.readline()
        assert line == f"portwrap: the host port is lost: {BUSY}\n"
