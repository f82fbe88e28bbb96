"""--publish-ephemeral: programs that bind to port 0 get a published port."""

from __future__ import annotations

import json
import socket
from typing import Any, Iterator

import pytest
from launches import refusal_of, run_in_sandbox
from node import ADDRESS, ADDRESS6, PEER, PEER6, peer
from spawned import LIMIT, Spawner, Started, ask, forward_of

from sessions import Portwrap, unused_ports

pytestmark = pytest.mark.namespaces
V4, V6, ALL4, ALL6 = "127.0.0.1", "::1", "0.0.0.0", "::"
COUNT = 3
BINDS = """
import json, socket, sys
def bound(address="0.0.0.0", kind=socket.SOCK_STREAM, port=0, options=()):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    for level, option in options:
        made.setsockopt(level, option, 1)
    made.bind((address, port))
    return made
def port_of(made):
    return made.getsockname()[1]
def say(*facts):
    print(json.dumps(facts), flush=True)
"""
REUSE = "[(socket.SOL_SOCKET, socket.SO_REUSEADDR), (socket.SOL_SOCKET, socket.SO_REUSEPORT)]"


class Ephemeral(Spawner):
    """A session with a range of them, whose command starts programs."""

    def __init__(self, portwrap: Portwrap, count: int = COUNT, **options: Any) -> None:
        self.ports = unused_ports(count)
        published = {"PORTWRAP_PUBLISH_EPHEMERAL": f"{self.ports[0]}-{self.ports[-1]}"}
        extra = {**published, **options.pop("extra_env", {})}
        super().__init__(portwrap, extra_env=extra, **options)

    def __enter__(self) -> Ephemeral:
        super().__enter__()
        return self

    def run(self, text: str) -> Any:
        """What a program of Python's says inside."""
        return json.loads(self.start(text).all())

    def start(self, text: str) -> Started:
        """A program of Python's inside."""
        return self.spawn(self.portwrap.python, "-c", BINDS + text)


def read_at(port: int, address: str = ADDRESS) -> bytes:
    with socket.create_connection((address, port), LIMIT) as client:
        return client.recv(9)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server on another node."""
    with peer():
        made = socket.create_server((PEER, 0))
    with made:
        made.settimeout(LIMIT)
        yield made


@pytest.fixture
def session(portwrap: Portwrap) -> Iterator[Ephemeral]:
    with Ephemeral(portwrap) as made:
        yield made


@pytest.mark.parametrize(
    ("way", "address"),
    [("plain", ALL4), ("plain", ADDRESS), ("plain", ALL6), ("plain", ADDRESS6), ("mptcp", ALL4)],
)
def test_a_server_gets_a_published_port(portwrap: Portwrap, way: str, address: str) -> None:
    host = ALL6 if ":" in address else ALL4
    with Ephemeral(portwrap, host=host) as session:
        for wanted in session.ports[:2]:
            port = int(session.serve(way, address, 0).says("listening "))
            assert port == wanted
            with peer():
                facts = ask(session, ADDRESS6 if address == ADDRESS6 else ADDRESS, port)
            assert facts["peer"][0].replace("::ffff:", "") in (PEER, PEER6)
            assert forward_of(session, port) == "native"


def test_two_never_share_one(session: Ephemeral) -> None:
    """As with the kernel's own choice, whatever the options are: both can listen."""
    text = f"made = [bound(options={REUSE}) for _ in range(4)]\n"
    text += "for each in made: each.listen()\n"
    text += "say(*map(port_of, made))\n"
    *first, last = session.run(text)
    assert first == session.ports
    assert last not in session.ports


def test_the_options_are_the_callers(session: Ephemeral) -> None:
    text = f"options = {REUSE}\nmade = [bound(options=options), bound()]\n"
    text += "say(*[each.getsockopt(*option) for each in made for option in options])\n"
    assert session.run(text) == [1, 1, 0, 0]


NOT_FROM_IT = {
    "loopback": f"bound({V4!r})",
    "loopback6": f"bound({V6!r})",
    "udp": "bound(kind=socket.SOCK_DGRAM)",
    "no port": "bound(options=[(socket.IPPROTO_IP, 24)])",  # IP_BIND_ADDRESS_NO_PORT
    "no bind": "(lambda made: made.listen() or made)(socket.socket())",
}


@pytest.mark.parametrize("case", NOT_FROM_IT)
def test_what_is_left_to_the_kernel(session: Ephemeral, case: str) -> None:
    (port,) = session.run(f"say(port_of({NOT_FROM_IT[case]}))")
    assert port not in session.ports


def test_a_chosen_port_is_as_it_was(session: Ephemeral) -> None:
    wanted = unused_ports(1)[0]
    assert session.run(f"say(port_of(bound(port={wanted})))") == [wanted]


def test_a_socket_is_bound_once(session: Ephemeral) -> None:
    text = "made = bound()\nbefore = port_of(made)\n"
    text += "try: made.bind(('0.0.0.0', 0))\nexcept OSError as error: code = error.errno\n"
    text += "say(code, port_of(made) == before)\n"
    assert session.run(text) == [22, True]


def test_more_than_there_are(session: Ephemeral) -> None:
    """The kernel chooses then."""
    *first, last = session.run("made = [bound() for _ in range(4)]\nsay(*map(port_of, made))")
    assert first == session.ports
    assert last not in session.ports and last > 0


@pytest.mark.parametrize("forward", ["native", "relay"])
def test_a_port_that_is_free_again(portwrap: Portwrap, forward: str) -> None:
    """Of a server that has ended its listening, in a process that lives on."""
    text = "found = []\nfor _ in range(6):\n    with bound() as made:\n        made.listen()\n"
    text += "        found.append(port_of(made))\nsay(*found)\n"
    outward = "native" if forward == "relay" else "helper"  # one of the two has to be
    with Ephemeral(portwrap, forward=forward, outward=outward) as session:
        assert session.run(text) == 2 * session.ports


def test_a_client_that_is_bound_to_one(portwrap: Portwrap, listener: socket.socket) -> None:
    """It connects from there (Open MPI does), and a server can have the port next."""
    with Ephemeral(portwrap, count=1, outward="native", network="direct") as session:
        target = listener.getsockname()[:2]
        text = f"made = bound({ADDRESS!r})\nmade.connect({target!r})\n"
        text += "server = bound()\nserver.listen()\n"
        text += "say(port_of(made), port_of(server))\nserver.accept()[0].send(b'served')\n"
        program = session.start(text)
        client, place = listener.accept()
        with client:
            assert place == (ADDRESS, session.ports[0])
            assert json.loads(program.says("")) == 2 * session.ports
            with peer():
                assert read_at(session.ports[0]) == b"served"


@pytest.mark.parametrize("address", [V4, "127.0.0.2", V6, f"::ffff:{V4}"])
@pytest.mark.parametrize("forward", ["native", "relay"])
def test_a_free_port_for_the_loopback(portwrap: Portwrap, forward: str, address: str) -> None:
    """jupyter-server-proxy asks for a free port by port 0, and has its application listen there."""
    outward = "native" if forward == "relay" else "helper"
    with Ephemeral(portwrap, forward=forward, outward=outward) as session:
        text = f"with bound() as made: port = port_of(made)\nmade = bound({address!r}, port=port)\n"
        text += "made.listen()\nsay(port)\nfor _ in range(9): made.accept()[0].send(b'private')\n"
        program = session.start(text)
        (port,) = json.loads(program.says(""))
        assert port == session.ports[0]
        for place in (V4, ADDRESS):
            with pytest.raises(ConnectionError):
                assert read_at(port, place) == b"refused"
        ask_it = f"client = socket.create_connection(({address!r}, {port}))\n"
        assert session.run(ask_it + "say(client.recv(9).decode())\n") == ["private"]


@pytest.mark.parametrize("forward", ["native", "relay"])
def test_a_free_port_for_everybody(portwrap: Portwrap, forward: str) -> None:
    """What listens on a port that was found so at every address is for them."""
    outward = "native" if forward == "relay" else "helper"
    with Ephemeral(portwrap, forward=forward, outward=outward) as session:
        text = "with bound() as made: port = port_of(made)\nmade = bound(port=port)\n"
        text += "made.listen()\nsay(port)\nmade.accept()[0].send(b'public')\n"
        (port,) = json.loads(session.start(text).says(""))
        assert read_at(port) == b"public"


def test_the_port_is_free_for_the_next_session(portwrap: Portwrap, listener: socket.socket) -> None:
    """A client's connection from there may be in TIME_WAIT."""
    with Ephemeral(portwrap, count=1, outward="native", network="direct") as session:
        target = listener.getsockname()[:2]
        text = f"with bound({ADDRESS!r}) as made:\n    made.connect({target!r})\n"
        text += "    options = [(socket.SOL_SOCKET, socket.SO_REUSEPORT)]\n"
        text += "    say(*[made.getsockopt(*option) for option in options])\n"
        program = session.start(text)
        client, place = listener.accept()
        assert place == (ADDRESS, session.ports[0])
        assert json.loads(program.all()) == [0]
        with client:
            assert client.recv(1) == b""  # it has closed first
    words = [
        "--network",
        "direct",
        "--outward",
        "native",
        "--publish-ephemeral",
        f"{place[1]}-{place[1]}",
    ]
    assert run_in_sandbox(portwrap, *words, "true").returncode == 0


def test_an_address_of_others(portwrap: Portwrap) -> None:
    """Where the sandbox has every address, too."""
    text = "try: bound('10.77.0.99')\nexcept OSError as error: say(error.errno)\n"
    with Ephemeral(portwrap, outward="native", network="direct") as session:
        assert session.run(text) == [99]


def test_clients_may_be_limited(portwrap: Portwrap) -> None:
    """They are relayed then."""
    allowed = {"PORTWRAP_ALLOW_FROM": f"{V4},{ADDRESS}"}
    with Ephemeral(portwrap, forward="auto", outward="native", extra_env=allowed) as session:
        port = int(session.serve("plain", ALL4, 0).says("listening "))
        assert port == session.ports[0]
        # From one of the node's addresses: it may have one more, of another test's hub.
        assert not ask(session, ADDRESS, port)["peer"][0].startswith("127.")
        with peer(), pytest.raises(ConnectionResetError):
            read_at(port)


def test_nothing_is_native(portwrap: Portwrap) -> None:
    words = ["--forward", "relay", "--outward", "helper", "--publish-ephemeral", "61000-61003"]
    result = run_in_sandbox(portwrap, *words, "true")
    refusal_of(result, 125, "--publish-ephemeral is not possible: ", "Use --publish")
