"""What a neighbour on the host reaches of a session, and what the session reaches."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Iterator

import pytest

from helpers import NEIGHBOUR, OWNER, as_user, end, needs, run_as, wait_until
from sessions import Inside, Maker, Outside, Portwrap, port_without_a_past, unused_port

pytestmark = pytest.mark.namespaces
both_forwards = pytest.mark.parametrize("forward", ["relay", "native"], indirect=True)

LISTEN_CALL = {"x86_64": "50", "aarch64": "201"}.get(os.uname().machine, "")
LISTENS = ["127.0.0.1", "0.0.0.0", "::1", "::"]
Endpoint = tuple[str, str, int]


def host_addresses() -> list[str]:
    """Every address of the host, those of the loopback interface among them."""
    result = subprocess.run(["ip", "-j", "address"], capture_output=True, check=True)
    found = []
    for interface in json.loads(result.stdout):
        for entry in interface["addr_info"]:
            scope = f"%{interface['ifname']}" if entry["scope"] == "link" else ""
            found.append(entry["local"] + scope)
    assert {"127.0.0.1", "::1"} <= set(found)
    return found


def knock(portwrap: Portwrap, endpoints: list[Endpoint]) -> dict[Endpoint, str]:
    """What a neighbour gets at each of these endpoints."""
    words = portwrap.program("knock.py", json.dumps(endpoints))
    result = run_as(NEIGHBOUR, words)
    assert result.returncode == 0, result.stderr
    return dict(zip(endpoints, json.loads(result.stdout)))


class Endpoints:
    """Sockets of every kind, opened by a maker, and the endpoints at which a neighbour tries."""

    def __init__(self, maker: Maker, stack: ExitStack) -> None:
        self.endpoints: list[Endpoint] = []
        self.leaks: set[Endpoint] = set()
        addresses = host_addresses()
        for address in LISTENS:
            for kind, request in (("tcp", "listen"), ("udp", "bind_udp")):
                port = unused_port()
                stack.enter_context(maker.make(do=request, address=address, port=port))
                for asked in addresses:
                    self.endpoints.append((kind, asked, port))
                    if reaches(asked, address):
                        self.leaks.add((kind, asked, port))
        name = f"portwrap-test-{secrets.token_hex(8)}"
        stack.enter_context(maker.make(do="listen_unix", path=f"@{name}"))
        self.endpoints.append(("unix", name, 0))
        self.leaks.add(("unix", name, 0))


def reaches(asked: str, listens: str) -> bool:
    """Whether a connection to one address arrives at a socket bound to the other, on one host."""
    same_family = (":" in asked) == (":" in listens)
    return asked == listens or (same_family and listens in ("0.0.0.0", "::"))


def test_without_the_sandbox_every_port_is_open_to_neighbours(portwrap: Portwrap) -> None:
    """The control: the same sockets, the same questions."""
    with Outside(portwrap) as maker, ExitStack() as stack:
        endpoints = Endpoints(maker, stack)
        answers = knock(portwrap, endpoints.endpoints)
        assert {
            endpoint for endpoint, answer in answers.items() if answer == "open"
        } == endpoints.leaks
        assert len(endpoints.leaks) >= 9


@pytest.mark.parametrize("forward", ["relay", "auto"])
def test_a_neighbour_reaches_no_port_of_the_sandbox(portwrap: Portwrap, forward: str) -> None:
    with Inside(portwrap, forward=forward) as session, ExitStack() as stack:
        stack.enter_context(session.serve())
        endpoints = Endpoints(session, stack)
        guest = [("tcp", address, session.guest_port) for address in host_addresses()]
        answers = knock(portwrap, endpoints.endpoints + guest)
        assert set(answers.values()) == {"ECONNREFUSED"}, answers
        # and the host port is open
        [answer] = knock(portwrap, [("tcp", "127.0.0.1", session.port)]).values()
        assert answer == "open"


INTRUSIONS = [
    ("ls", "/proc/{pid}/fd"),
    ("cat", "/proc/{pid}/fd/0"),
    ("readlink", "-v", "/proc/{pid}/ns/net"),
    ("cat", "/proc/{pid}/environ"),
    ("nsenter", "-t", "{pid}", "-n", "true"),
    ("nsenter", "-t", "{pid}", "-U", "true"),
    ("nsenter", "-t", "{pid}", "-U", "-n", "--preserve-credentials", "true"),
]


@both_forwards
@pytest.mark.parametrize("words", INTRUSIONS, ids=lambda words: "-".join(words[:1] + words[3:-1]))
def test_a_neighbour_cannot_get_in(inside: Inside, words: tuple[str, ...]) -> None:
    for pid in (inside.pid, inside.keeper, inside.driver):
        result = run_as(NEIGHBOUR, [word.format(pid=pid) for word in words])
        assert result.returncode != 0
        assert "ermission denied" in result.stderr or "not permitted" in result.stderr


@both_forwards
def test_the_owner_can_get_in(inside: Inside) -> None:
    """The control: these questions are not refused for a reason of their own."""
    words = ["nsenter", "-t", str(inside.pid), "-U", "-n", "--preserve-credentials"]
    result = run_as(OWNER, [*words, "readlink", "/proc/self/ns/net"])
    assert result.stdout.strip() == os.readlink(f"/proc/{inside.pid}/ns/net")
    assert result.stdout.strip() != os.readlink("/proc/self/ns/net")
    assert run_as(OWNER, ["ls", f"/proc/{inside.pid}/fd"]).returncode == 0


# ---- the host port ------------------------------------------------------------------------------


def squat(portwrap: Portwrap, port: int) -> list[object]:
    """The ways in which a neighbour can take this port of the host."""
    addresses = ["0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"]
    addresses += [address for address in host_addresses() if "%" not in address]
    result = run_as(NEIGHBOUR, portwrap.program("squat.py", str(port), *addresses))
    assert result.returncode == 0, result.stderr
    ways = json.loads(result.stdout)
    assert isinstance(ways, list)
    return ways


def test_a_free_port_can_be_taken(portwrap: Portwrap) -> None:
    """The control."""
    assert len(squat(portwrap, unused_port())) >= 4 * 2 * 3


@pytest.mark.parametrize("forward", ["relay", "auto"])
@pytest.mark.parametrize("host", ["", "::"])
def test_nobody_can_take_the_host_port(portwrap: Portwrap, host: str, forward: str) -> None:
    with Inside(portwrap, forward=forward, host=host) as session:
        session.wait_until_up()
        assert squat(portwrap, session.port) == []
        with session.serve() as listener:
            session.pair(listener)
            assert squat(portwrap, session.port) == []
        assert squat(portwrap, session.port) == []


@pytest.mark.parametrize("forward", ["relay", "auto"])
def test_nobody_can_take_a_published_port(portwrap: Portwrap, forward: str) -> None:
    """Before a server listens on it, while one does, and after that."""
    port = unused_port()
    environ = {"PORTWRAP_PUBLISH": str(port)}
    with Inside(portwrap, forward=forward, extra_env=environ) as session:
        session.wait_until_up()
        assert squat(portwrap, port) == []
        with session.listen("127.0.0.1", port) as listener:
            session.keep(socket.create_connection(("127.0.0.1", port), timeout=10))
            session.keep(listener.accept()[0])
            assert squat(portwrap, port) == []
        assert squat(portwrap, port) == []


def test_nobody_slips_in_between_bind_and_listen(portwrap: Portwrap) -> None:
    """Nor does a rival who has SO_REUSEADDR, by which two may bind as long as none listens."""
    needs("strace")
    slow = ["strace", "-D", "-qq", "-o", "/dev/null", "-e", "inject=listen:delay_enter=60000000"]
    with Inside(portwrap, before=slow, port=port_without_a_past()) as session:
        call = Path(f"/proc/{session.pid}/syscall")
        wait_until(lambda: call.read_text().split()[0] == LISTEN_CALL, what="the call of listen")
        ways = squat(portwrap, session.port)
        assert [way for way in ways if isinstance(way, list) and ":" not in way[0]] == []


def remember_connections(port: int, address: str) -> None:
    """Leave a closed connection in TIME_WAIT on this port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        with socket.create_connection((address, port)) as client:
            server, _ = listener.accept()
            server.close()  # the side that closes first remembers
            assert client.recv(1) == b""


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("remembered", [["127.0.0.1"], ["::1"], ["127.0.0.1", "::1"]])
def test_a_port_with_connections_in_time_wait(
    portwrap: Portwrap, remembered: list[str], host: str
) -> None:
    port = unused_port()
    for address in remembered:
        remember_connections(port, address)
    with Inside(portwrap, port=port, host=host) as session, session.serve() as listener:
        session.pair(listener)
        assert squat(portwrap, port) == []
        with pytest.raises(ConnectionError):  # held, not served
            session.client("::1").recv(1)


# ---- outward ------------------------------------------------------------------------------------


def test_the_loopback_services_of_the_host_are_out_of_reach(
    portwrap: Portwrap, inside: Inside
) -> None:
    name = f"\0portwrap-test-{secrets.token_hex(8)}"
    with Outside(portwrap) as outside, ExitStack() as stack:
        port = unused_port()
        listeners = [
            stack.enter_context(outside.listen(address, port)) for address in ("0.0.0.0", "::")
        ]
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(name)
        abstract.listen()
        request = {"do": "connect_unix", "path": "@" + name[1:]}
        for address in ("198.18.2.2", "127.0.0.1", "::1", "fd00::2"):
            with pytest.raises(OSError):
                inside.connect(address, port)
        with pytest.raises(ConnectionRefusedError):
            inside.make(**request)
        for listener in [*listeners, abstract]:
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
        # the control: the same questions from outside are answered
        for address in ("127.0.0.1", "::1"):
            outside.connect(address, port).close()
        outside.make(**request).close()


class Network:
    """Two hosts of our own, each a network namespace, with a cable between them."""

    here_address, there_address = "198.18.7.1", "198.18.7.2"

    def __init__(self) -> None:
        self.here, self.there = self.hold(), self.hold()
        try:
            self.connect()
        except BaseException:
            self.close()
            raise

    def hold(self) -> subprocess.Popen[str]:
        """A process that keeps a new network namespace."""
        holder = as_user("root", ["unshare", "--net", "sleep", "600"])
        ours = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != ours, what="a namespace")
        return holder

    def connect(self) -> None:
        here, there = self.here.pid, self.there.pid
        ip(here, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", str(there))
        for pid, address in ((here, self.here_address), (there, self.there_address)):
            ip(pid, "address", "add", f"{address}/24", "dev", "cable")
            ip(pid, "link", "set", "cable", "up")
            ip(pid, "link", "set", "lo", "up")

    def close(self) -> None:
        end(self.here)
        end(self.there)


def ip(pid: int, *words: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *words], check=True)


@pytest.fixture
def network() -> Iterator[Network]:
    needs("ip", "nsenter", "setpriv")
    made = Network()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("forward", ["relay", "auto"])
def test_other_hosts_reach_the_port_and_are_reached(
    portwrap: Portwrap, network: Network, forward: str
) -> None:
    port = unused_port()
    as_owner = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--init-groups"]
    here = ["nsenter", "-t", str(network.here.pid), "-n", *as_owner]
    there = ["nsenter", "-t", str(network.there.pid), "-n"]
    with ExitStack() as stack:
        stranger = stack.enter_context(Outside(portwrap, "root", before=there))
        session = stack.enter_context(
            Inside(portwrap, account="root", before=here, forward=forward)
        )
        listener = stack.enter_context(stranger.listen("0.0.0.0", port))
        server = stack.enter_context(session.serve())
        assert Path(f"/proc/{session.pid}").owner() == OWNER
        with session.connect(network.there_address, port), listener.accept()[0]:
            pass
        with stranger.connect(network.here_address, session.port), server.accept()[0]:
            pass
        with session.listen("0.0.0.0", port), pytest.raises(ConnectionRefusedError):
            stranger.connect(network.here_address, port)


@both_forwards
def test_the_session_is_in_namespaces_of_its_own(inside: Inside) -> None:
    for kind in ("user", "net"):
        theirs = os.readlink(f"/proc/{inside.pid}/ns/{kind}")
        assert theirs != os.readlink(f"/proc/self/ns/{kind}")


@both_forwards
def test_two_sessions_of_one_owner_do_not_meet(portwrap: Portwrap, inside: Inside) -> None:
    with Inside(portwrap) as other, other.serve(), pytest.raises(ConnectionRefusedError):
        inside.connect("127.0.0.1", other.guest_port)
