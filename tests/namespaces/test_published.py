"""Published ports, natively: a server gets the host's own socket, clients are refused while there
is none, and the number is nobody else's all the time."""

from __future__ import annotations

import ast
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Iterator

import pytest
from networks import ip
from node import ADDRESS, ADDRESS6, PEER, peer
from rivals import Player, in_a_loop, taken
from spawned import (
    LIMIT,
    Spawner,
    address_of,
    ask,
    ask_until_answered,
    forward_of,
    links_of,
    see_clients,
)

from helpers import NEIGHBOUR, lives, wait_until
from sessions import Portwrap, holders_of, kill, settle, unused_port, unused_ports

pytestmark = pytest.mark.namespaces
V4, V6, ALL4, ALL6 = "127.0.0.1", "::1", "0.0.0.0", "::"
ADDRESSES = [ALL4, V4, ADDRESS, ALL6, V6, ADDRESS6, f"::ffff:{V4}", f"::ffff:{ALL4}"]
"""Where a neighbour tries to have the port."""
CYCLES = 30
SHARED = "the server shared or duplicated its socket before listen"
REGISTERED = "the server's socket could not be replaced: an io_uring may have registered it"
SIGNALLED = "the server requests a signal for each client"
OTHER_FAMILY = "the server listens on another address family than the published port"


class Published(Spawner):
    """A session with a published port, whose command starts servers."""

    def __init__(self, portwrap: Portwrap, port: int = 0, **options: Any) -> None:
        self.published = port or unused_port()
        extra = {"PORTWRAP_PUBLISH": str(self.published), **options.pop("extra_env", {})}
        super().__init__(portwrap, extra_env=extra, **options)

    def __enter__(self) -> Published:
        super().__enter__()
        return self

    def is_refused(self, address: str = V4) -> bool:
        return is_refused(self.published, address)

    def wait_until_refused(self) -> None:
        wait_until(self.is_refused, LIMIT, "an end of the server")


def is_logged(session: Published, text: str) -> bool:
    """Wait until a line of the job's log ends with this: clients may be served before."""
    assert session.process.stderr
    return any(line.endswith(text) for line in session.process.stderr)


def is_refused(port: int, address: str = V4) -> bool:
    """Whether a client there is refused at once, which is not: reset, or left waiting."""
    try:
        socket.create_connection((address, port), timeout=LIMIT).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the listener was closed just after it had connected
        return False
    return False


@pytest.fixture
def session(portwrap: Portwrap) -> Iterator[Published]:
    with Published(portwrap) as made:
        yield made


@pytest.fixture
def rival(portwrap: Portwrap) -> Iterator[Player]:
    with Player(NEIGHBOUR, portwrap.program("rival.py")) as player:
        yield player


# ---- who serves ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "mptcp", "twice", "reuseport", "epoll-first", "prefork"])
def test_a_server_has_the_hosts_socket(session: Published, way: str) -> None:
    session.served(way, port=session.published)
    for _ in range(3):
        facts = ask(session, port=session.published)
        assert facts["peer"] == facts["client"]
    assert forward_of(session, session.published) == "native"
    assert "the server has the published port's own socket" in session.said()


FAMILIES = [  # listens inside on, host address, asked through, way
    (V4, ALL4, V4, "native"),
    (ALL4, ALL4, V4, "native"),
    (ADDRESS, ALL4, ADDRESS, "native"),
    (ADDRESS, ALL4, V4, "through the keeper"),
    (ADDRESS6, ALL6, ADDRESS6, "native"),
    (ADDRESS6, ALL6, ADDRESS, "through the keeper"),
    (ALL6, ALL4, V4, "native"),
    (ALL6, "127.0.0.2", "127.0.0.2", "native"),
    (ALL6, ALL6, V4, "native"),
    (ALL6, ALL6, V6, "native"),
    (V6, ALL6, V6, "native"),
    (V4, ALL6, V4, "native"),
    (V4, ALL6, V6, "through the keeper"),
    (V6, ALL6, V4, "through the keeper"),
    (V6, ALL4, V4, "relay"),
    (V4, V6, V6, "relay"),
]


@pytest.mark.parametrize(("listens", "host", "asked", "way"), FAMILIES)
def test_both_address_families(
    portwrap: Portwrap, listens: str, host: str, asked: str, way: str
) -> None:
    """One for both serves those of either, whatever the host port is."""
    with Published(portwrap, host=host) as session:
        session.served("plain", listens, session.published)
        facts = [ask_until_answered(session, asked, session.published) for _ in range(3)]
        assert see_clients(facts) == (way == "native")
        assert forward_of(session, session.published) == ("relay" if way == "relay" else "native")
        relayed = f"published port {session.published}: relay, because {OTHER_FAMILY}\n"
        if way == "relay":
            assert is_logged(session, relayed)
        else:
            assert relayed not in session.said()


@pytest.mark.parametrize("first", ["127.0.0.1+::1", "::1+127.0.0.1"])
def test_a_server_with_a_socket_of_each_family(session: Published, first: str) -> None:
    """The one that is of the published port's is replaced, whichever comes first."""
    session.served("both", first, session.published)
    facts = ask(session, port=session.published)
    assert facts["peer"] == facts["client"]


@pytest.mark.parametrize("host", [ALL4, ALL6, ADDRESS])
def test_a_server_knows_its_address(portwrap: Portwrap, host: str) -> None:
    """Dask tells other nodes where its socket is bound, if that is not everywhere."""
    with Published(portwrap, host=host) as session:
        for _ in range(2):
            assert announced(session, ADDRESS) == ADDRESS


def test_a_server_at_an_address_that_is_written_like_the_loopbacks(portwrap: Portwrap) -> None:
    address = "::1:0:0:2"
    ip(f"addr add {address}/128 dev eth0 nodad")
    try:
        with Published(portwrap, host=ALL6) as session:
            assert announced(session, address) == address
            assert announced(session, V6) == ALL6  # control
    finally:
        ip(f"addr del {address}/128 dev eth0")


def announced(session: Published, address: str) -> str:
    """Where the socket of a server is bound that asks for this address."""
    text = "import socket, sys; host, port = sys.argv[1], int(sys.argv[2]); "
    text += "family = socket.AF_INET6 if ':' in host else socket.AF_INET; "
    text += "print(socket.create_server((host, port), family=family).getsockname()[:2])"
    words = [session.portwrap.python, "-c", text, address, str(session.published)]
    name, port = ast.literal_eval(session.spawn(*words).all())
    assert port == session.published
    return str(name)


def test_who_comes_from_another_node(session: Published) -> None:
    session.served("plain", ALL4, session.published)
    with peer():
        facts = ask(session, ADDRESS, session.published)
    assert facts["peer"][0] == PEER


@pytest.mark.parametrize(
    ("way", "why"),
    [("duplicate", SHARED), ("signal-driven", SIGNALLED), ("uring-registered", REGISTERED)],
)
def test_one_that_cannot_have_it_is_relayed(session: Published, way: str, why: str) -> None:
    server = session.served(way, port=session.published)
    for _ in range(3):
        facts = ask_until_answered(session, port=session.published)
        assert facts["pid"] == server.pid
        assert facts["peer"] != facts["client"]
    assert is_logged(session, f"published port {session.published}: relay, because {why}\n")


def test_one_that_shares_its_socket_is_relayed(session: Published) -> None:
    """Its parent has it, too, and never serves."""
    parent = session.served("shared", port=session.published)
    for _ in range(3):
        facts = ask_until_answered(session, port=session.published)
        assert facts["pid"] != parent.pid and facts["pid"] in session.alive()
        assert facts["peer"] != facts["client"]
    assert is_logged(session, f"published port {session.published}: relay, because {SHARED}\n")


def test_one_that_listened_while_another_served(session: Published) -> None:
    """It calls listen no more, so that nothing reports it when the other one ends."""
    first = session.served("plain", V4, session.published)
    second = session.served("plain", V6, session.published)
    assert ask(session, port=session.published)["pid"] == first.pid
    first.kill()
    facts = ask_until_answered(session, port=session.published)
    assert facts["pid"] == second.pid


def test_a_link_local_host_address(portwrap: Portwrap) -> None:
    """Without its interface it is the address of nothing."""
    with Published(portwrap, host=f"{link_local()}%eth0") as session:
        session.served("plain", ALL6, session.published)
        facts = ask_until_answered(session, f"{link_local()}%eth0", session.published)
        assert facts["peer"][0].partition("%")[0] == link_local()


def link_local() -> str:
    """The link-local address of the node's interface (proc_net(5), if_inet6)."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, _, _, scope, _, name = line.split()
        if (scope, name) == ("20", "eth0"):
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    raise AssertionError("eth0 has no link-local address")


def test_two_ports_that_lead_to_one(portwrap: Portwrap) -> None:
    """The server has one socket: the other port's clients are relayed to it."""
    one, two, inner = unused_ports(3)
    extra = {"PORTWRAP_PUBLISH": f"{one}:{inner},{two}:{inner},{inner}:8888"}
    with Published(portwrap, one, extra_env=extra) as session:
        server = session.served(port=inner)
        main = session.served()
        for port in (one, two):
            assert ask(session, port=port)["pid"] == server.pid
        for port in (session.port, inner):
            assert ask(session, port=port)["pid"] == main.pid


# ---- nobody serves ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", [ALL4, ALL6])
def test_clients_are_refused_while_nobody_listens(portwrap: Portwrap, host: str) -> None:
    """As without us: neither left waiting, nor connected and then reset."""
    with Published(portwrap, host=host) as session:
        for address in (V4, V6, ADDRESS, ADDRESS6):
            assert session.is_refused(address)
        with peer():
            assert session.is_refused(ADDRESS)


@pytest.mark.parametrize("listens", [V4, ALL6])
def test_servers_that_end_one_after_the_other(session: Published, listens: str) -> None:
    for _ in range(CYCLES):
        server = session.served("plain", listens, session.published)
        facts = ask(session, port=session.published)
        assert facts["pid"] == server.pid
        assert address_of(facts["peer"]) == tuple(facts["client"])
        server.kill()
        session.wait_until_refused()


CLOSES = """
import socket, sys
port = int(sys.argv[1])
for line in sys.stdin:
    server = socket.create_server(("127.0.0.1", port))
    print("listening", flush=True)
    server.accept()[0].sendall(b"hello")
    server.close()
    print("closed", flush=True)
"""


def test_a_process_that_closes_its_socket_and_lives_on(session: Published) -> None:
    """A notebook does so with a scheduler: its clients must not wait at a port without a server."""
    process = session.spawn(session.portwrap.python, "-c", CLOSES, str(session.published))
    for _ in range(CYCLES):
        process.channel.sendall(b"\n")
        process.says("listening")
        with socket.create_connection((V4, session.published), timeout=LIMIT) as client:
            assert client.recv(9) == b"hello"
        process.says("closed")
        assert session.is_refused()


def test_clients_that_wait_when_the_server_ends(session: Published) -> None:
    """Those whom it has not accepted are reset, as they are without us."""
    text = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
    text += "print('listening', flush=True); sys.stdin.read()"
    server = session.spawn(session.portwrap.python, "-c", text, str(session.published))
    server.says("listening")
    with socket.create_connection((V4, session.published), timeout=LIMIT) as client:
        server.kill()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    session.wait_until_refused()


def test_a_server_that_outlives_its_session(session: Published) -> None:
    """It serves on, as it does without us: what it has is a socket of the host's. With it the port
    is free."""
    server, keeper = session.served(port=session.published), session.keeper
    assert ask(session, port=session.published)["pid"] == server.pid
    kill(session.pid)
    wait_until(lambda: not lives(keeper), LIMIT, "the end of the keeper")
    facts = ask(session, port=session.published)
    assert (facts["pid"], facts["peer"]) == (server.pid, facts["client"])
    server.kill()
    wait_until(lambda: not holders_of(session.published), LIMIT, "the port free")


def test_a_range_costs_descriptors_only(portwrap: Portwrap) -> None:
    """No thread, no process, and no event at the keeper when clients ask in vain."""
    ports = unused_ports(200)
    with Published(portwrap, ports[0], extra_env={"PORTWRAP_PUBLISH": ranges(ports)}) as session:
        session.spawn("true").all()
        settle(session.keeper)
        keeper = Path(f"/proc/{session.keeper}")
        before = switches(keeper)
        for port in ports:
            assert is_refused(port)
        assert switches(keeper) == before
        assert len(os.listdir(keeper / "task")) == 1
        others, before_any = session.others(), sockets_of(session.keeper)
        servers = {port: session.served(port=port) for port in ports[::20]}
        for port, server in servers.items():
            facts = ask(session, port=port)
            assert (facts["pid"], facts["peer"]) == (server.pid, facts["client"])
            server.kill()
            wait_until(lambda: is_refused(port), LIMIT, "its end")  # noqa: B023
        assert switches(keeper) != before  # the control
        assert session.others() == others
        wait_until(lambda: sockets_of(session.keeper) == before_any, what="no socket left over")


def sockets_of(pid: int) -> set[str]:
    return {link for link in links_of(pid) if link.startswith("socket:")}


def ranges(ports: list[int]) -> str:
    return ",".join(map(str, ports))


def switches(process: Path) -> str:
    """How often it has waited for something."""
    lines = (process / "status").read_text().splitlines()
    return next(line for line in lines if line.startswith("voluntary_ctxt_switches"))


# ---- a neighbour who wants the port ----------------------------------------------------------


def test_nobody_else_can_have_it(portwrap: Portwrap, session: Published) -> None:
    port = session.published
    assert taken(portwrap, port, ADDRESSES) == set()  # nobody has listened yet
    for way, listens in (("plain", V4), ("plain", ALL6), ("shut", V4), ("duplicate", V4)):
        server = session.served(way, listens, port)
        assert taken(portwrap, port, ADDRESSES) == set(), way
        os.kill(server.pid, signal.SIGSTOP)
        assert taken(portwrap, port, ADDRESSES) == set(), way
        server.kill()
        assert taken(portwrap, port, ADDRESSES) == set(), f"after {way}"
    os.kill(session.keeper, signal.SIGSTOP)
    assert taken(portwrap, port, ADDRESSES) == set()
    os.kill(session.keeper, signal.SIGCONT)
    session.process.terminate()
    free = set(ADDRESSES)  # the control
    wait_until(lambda: taken(portwrap, port, ADDRESSES) == free, what="the port free")


@pytest.mark.parametrize("way", ["shut", "shut-and-listen"])
def test_nor_between_two_listens(session: Published, rival: Player, way: str) -> None:
    """It ends its listening by shutdown(2) after each client, and listens again."""
    session.served(way, port=session.published)
    with in_a_loop(rival, session.published, V4, ALL4, ADDRESS, V6, ALL6) as outcome:
        for _ in range(CYCLES):
            facts = ask_until_answered(session, port=session.published)
            assert facts["own"] == [V4, session.published]
    tried, got = outcome
    assert tried > 10 * CYCLES
    assert got is None


def test_nor_between_two_servers(session: Published, rival: Player) -> None:
    with in_a_loop(rival, session.published, V4, ALL4, ADDRESS, V6, ALL6) as outcome:
        for listens in (V4, ALL6) * (CYCLES // 2):
            server = session.served("plain", listens, session.published)
            assert ask(session, port=session.published)["pid"] == server.pid
            server.kill()
    tried, got = outcome
    assert tried > 10 * CYCLES
    assert got is None


def test_bare_he_gets_it_between_two_servers(portwrap: Portwrap, rival: Player) -> None:
    """The control."""
    port = unused_port()
    with ExitStack() as stack, in_a_loop(rival, port, V4) as outcome:
        while not rival.has_answered():
            try:
                with socket.create_server((V4, port)):
                    pass
            except OSError:  # he has it
                stack.callback(lambda: None)
    assert outcome[1] == V4


@pytest.mark.parametrize("outward", ["helper", "native"])
def test_the_own_address_leads_to_the_own_server(portwrap: Portwrap, outward: str) -> None:
    """From inside, at the address that other nodes use: with a server, and refused without."""
    with Published(portwrap, outward=outward) as session:
        port, python = str(session.published), portwrap.python
        text = "import socket, sys; s = socket.socket(); "
        text += "e = s.connect_ex((sys.argv[1], int(sys.argv[2]))); "
        text += "sys.stdout.write(str(e) if e else s.makefile().read())"
        refused = session.spawn(python, "-c", text, ADDRESS, port)
        assert refused.all() == "111"
        for listens in (ALL4, ADDRESS):
            server = session.served("plain", listens, session.published)
            answer = session.spawn(python, "-c", text, ADDRESS, port).all()
            assert f'"pid": {server.pid}' in answer
            server.kill()
            session.wait_until_refused()
