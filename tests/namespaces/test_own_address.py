"""The node's own addresses in the sandbox: what is bound to them, and who answers at them."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import Any, Iterator

import pytest
from launches import as_owner_in, in_sandbox, run_in_sandbox
from network_drivers import ChosenDriver
from networks import HOST, HOST6, HOST_ON_SECOND, SERVER, SERVER6, Host, ip
from outbound import is_native, native

from portwrap.kernel.addresses import IPPROTO_MPTCP
from portwrap.launch.own_address import MAX_ADDRESSES, MAX_RULES, own_addresses

from helpers import NEIGHBOUR, OWNER, as_user, cannot, end, run_as
from sessions import Inside, Outside, Portwrap, unused_port

pytestmark = pytest.mark.namespaces

OWN = [HOST, HOST6, HOST_ON_SECOND]


@contextmanager
def answering(listener: socket.socket, word: bytes) -> Iterator[None]:
    """Whoever connects meanwhile, which is one client, gets this word."""

    def answer() -> None:
        try:
            with listener.accept()[0] as server:
                server.sendall(word)
        except OSError:
            pass  # nobody came

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def word_at(maker: Inside | Outside, address: str, port: int) -> bytes:
    with maker.connect(address, port) as client:
        return client.recv(99)


def at(account: str, address: str, port: int) -> list[str]:
    """A program that listens there and answers each client with its name."""
    text = (
        "import socket, sys\n"
        "family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
        "server = socket.socket(family)\n"
        "server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "server.bind((sys.argv[1], int(sys.argv[2]))); server.listen()\n"
        "print('up', flush=True)\n"
        "while True:\n"
        "    client, _ = server.accept(); client.sendall(sys.argv[3].encode()); client.close()\n"
    )
    return ["/usr/bin/python3", "-c", text, address, str(port), account]


@contextmanager
def server_of(account: str, address: str, port: int) -> Iterator[None]:
    """A server of this account on the node."""
    process = as_user(account, at(account, address, port))
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        yield
    finally:
        end(process)


@pytest.mark.parametrize("address", OWN)
def test_a_server_at_the_own_address(portwrap: Portwrap, host: Host, address: str) -> None:
    with Inside(portwrap, network="none") as session:
        session.wait_until_up()
        with session.listen(address, 0) as listener, answering(listener, b"inside"):
            assert word_at(session, address, listener.getsockname()[1]) == b"inside"
        with pytest.raises(OSError) as caught:  # the control
            session.listen(SERVER, 0)
        assert caught.value.errno == errno.EADDRNOTAVAIL


GIVE_MANY = """
import errno, socket
from portwrap.kernel.rtnetlink import Netlink
netlink, places = Netlink(), [f"2001:2:0:1::{number:x}" for number in range(1, 51)]
netlink.set_up(1)
for place in places:
    netlink.add_address(1, socket.inet_pton(socket.AF_INET6, place))
    with socket.socket(socket.AF_INET6) as made:
        print(errno.errorcode[made.connect_ex((place, 9))])
"""


def test_an_own_address_is_there_at_once(portwrap: Portwrap, host: Host) -> None:
    """Else a program that connects to it would find the neighbour's server, or no way."""
    words = ["unshare", "-Urn", portwrap.python, "-c", GIVE_MANY]
    result = run_as(OWNER, words, cwd=portwrap.folder)
    assert (result.stdout, result.stderr) == ("ECONNREFUSED\n" * 50, "")


def test_interfaces_have_the_nodes_names(portwrap: Portwrap, host: Host) -> None:
    result = run_in_sandbox(portwrap, "ip", "-br", "addr")
    rows = {line.split()[0]: line.split()[2:] for line in result.stdout.splitlines()}
    assert f"{HOST}/32" in rows["h0"] and f"{HOST6}/128" in rows["h0"], result
    assert f"{HOST_ON_SECOND}/32" in rows["h1"], result


def test_without_a_tun_device_lo_has_them(portwrap: Portwrap, host: Host) -> None:
    hidden = as_owner_in("mount -t tmpfs tmpfs /dev/net")
    environ = {"PORTWRAP_NETWORK": "none"}
    result = run_as(
        "root", [*hidden, *in_sandbox(portwrap, "ip", "-br", "addr")], extra_env=environ
    )
    rows = {line.split()[0]: line.split()[2:] for line in result.stdout.splitlines()}
    assert {f"{HOST}/32", f"{HOST6}/128"} <= set(rows["lo"]), result


@pytest.mark.parametrize("address", [HOST, HOST6])
def test_a_neighbour_does_not_answer_at_the_own_address(
    portwrap: Portwrap, host: Host, driver: ChosenDriver, address: str
) -> None:
    """A server of the owner's is found in the sandbox; where there is none, nobody answers."""
    port = unused_port()
    with ExitStack() as stack:
        stack.enter_context(server_of(NEIGHBOUR, address, port))
        bare = stack.enter_context(Outside(portwrap))
        assert word_at(bare, address, port) == NEIGHBOUR.encode()  # the control
        session = stack.enter_context(driver.inside(portwrap))
        with pytest.raises(OSError) as caught:
            session.connect(address, port)
        assert caught.value.errno == errno.ECONNREFUSED
        own = stack.enter_context(session.listen("::" if ":" in address else "0.0.0.0", port))
        with answering(own, b"inside"):
            assert word_at(session, address, port) == b"inside"


@pytest.mark.parametrize("bound", [f"::ffff:{HOST}", "::ffff:0.0.0.0"])
def test_an_own_server_at_an_ipv4_address_written_as_an_ipv6_one(
    portwrap: Portwrap, host: Host, bound: str
) -> None:
    """As Java's servers are bound. A client of the own address finds it, and not the neighbour's
    server at the same port."""
    port = unused_port()
    with server_of(NEIGHBOUR, "0.0.0.0", port), native(portwrap, network="direct") as session:
        assert word_at(session, HOST, port) == NEIGHBOUR.encode()  # the control
        for address in (HOST, f"::ffff:{HOST}"):
            with own_server(session, bound, port):
                assert word_at(session, address, port) == b"inside"


LATER = ["198.18.9.9", "2001:2::9:9"]


@pytest.mark.parametrize("address", LATER)
@pytest.mark.parametrize("network", ["slirp4netns", "direct"])
def test_an_address_that_the_node_gets_during_the_session(
    portwrap: Portwrap, changing_host: Host, network: str, address: str
) -> None:
    """The sandbox lacks it, so a client of an own server for every address is refused: the
    neighbour's server does not stand in for it."""
    port = unused_port()
    with native(portwrap, network=network) as session:
        with pytest.raises(OSError):
            session.connect(address, port)
        bits = "128 nodad" if ":" in address else "32"
        ip(f"addr add {address}/{bits} dev h0")
        with server_of(NEIGHBOUR, address, port):
            assert word_at(session, address, port) == NEIGHBOUR.encode()  # the control
            with own_server(session, "::" if ":" in address else "0.0.0.0", port):
                with pytest.raises(ConnectionRefusedError):
                    session.connect(address, port)
                far = SERVER6 if ":" in address else SERVER
                with changing_host.listen(far, port=port), pytest.raises(ConnectionRefusedError):
                    session.make(do="connect_twice", address=far, port=port, other=address)


def test_addresses_of_every_scope(portwrap: Portwrap, changing_host: Host) -> None:
    scopes = {"169.254.7.7": "link", "198.18.7.7": "host"}
    ip(*[f"addr add {each}/32 scope {scope} dev h0" for each, scope in scopes.items()])
    result = run_in_sandbox(portwrap, "ip", "-br", "addr")
    rows = {line.split()[0]: line.split()[2:] for line in result.stdout.splitlines()}
    assert {f"{each}/32" for each in scopes} <= set(rows["h0"]), result
    assert rows["lo"] == ["127.0.0.1/8", "::1/128"]


def test_the_named_address_is_among_those_of_a_node_with_many(changing_host: Host) -> None:
    places = [f"198.18.8.{number}" for number in range(1, MAX_ADDRESSES + 10)]
    ip(*[f"addr add {each}/32 dev h0" for each in places])
    known = {os.uname().nodename.lower(): [places[-1]]}
    found, unnamed = ({str(each) for each in own_addresses(names)} for names in (known, {}))
    assert len(found) == len(unnamed) == MAX_ADDRESSES
    assert places[-1] in found and places[-1] not in unnamed


MOVES = """
import ctypes, os, select, socket, sys
address, port = sys.argv[1], int(sys.argv[2])
server = socket.create_server(("", port))
ready, go = os.pipe()
child = os.fork()
if child:
    assert ctypes.CDLL(None).unshare(0x50000000) == 0  # CLONE_NEWUSER, CLONE_NEWNET
    os.write(go, b"!")
    sys.exit(os.waitpid(child, 0)[1])
os.read(ready, 1)
client = socket.create_connection((address, port), timeout=10)
print("inside" if server in select.select([server, client], [], [], 10)[0] else client.recv(99))
"""


def test_a_command_that_goes_on_to_another_network_namespace(
    portwrap: Portwrap, host: Host
) -> None:
    """What it has started finds the session's own server at the own address all the same."""
    port = unused_port()
    with server_of(NEIGHBOUR, HOST, port):
        words = ["/usr/bin/python3", "-c", MOVES, HOST, str(port)]
        extra = {"PORTWRAP_OUTWARD": "native", "PORTWRAP_NETWORK": "direct"}
        result = run_in_sandbox(portwrap, *words, extra_env=extra)
        assert (result.stdout, result.stderr.count("Traceback")) == ("inside\n", 0), result


def test_services_of_system_accounts_answer_at_the_own_address(
    portwrap: Portwrap, host: Host, driver: ChosenDriver
) -> None:
    """sshd, slurmd, a hub: what listens when the session starts, at one address or at all."""
    with ExitStack() as stack:
        ports = {"0.0.0.0": unused_port(), HOST: unused_port(), "::": unused_port()}
        for address, port in ports.items():
            stack.enter_context(server_of("root", address, port))
        session = stack.enter_context(driver.inside(portwrap))
        for port in ports.values():
            assert word_at(session, HOST, port) == b"root"


WILDCARD = {HOST: "0.0.0.0", HOST6: "::"}


@contextmanager
def beside_services(
    portwrap: Portwrap, forward: str, **options: Any
) -> Iterator[tuple[Inside, int]]:
    """A session on a node with services of root at a port of its addresses; the port."""
    port = unused_port()
    with ExitStack() as stack:
        for address in WILDCARD:
            stack.enter_context(server_of("root", address, port))
        yield stack.enter_context(native(portwrap, forward, **options)), port


@contextmanager
def own_server(session: Inside, address: str, port: int) -> Iterator[None]:
    """A server of the session, for one client."""
    with session.listen(address, port) as listener, answering(listener, b"inside"):
        yield


@pytest.mark.parametrize("forward", ["native", "relay"])
@pytest.mark.parametrize("network", ["slirp4netns", "pasta", "direct"])
def test_an_own_server_on_the_port_of_a_system_service(
    portwrap: Portwrap, host: Host, forward: str, network: str
) -> None:
    """It is found as long as it listens, at whichever address: the node's own or every one."""
    with beside_services(portwrap, forward, network=network) as (session, port):
        for address, wildcard in WILDCARD.items():
            for bound in (address, wildcard):
                assert word_at(session, address, port) == b"root"
                with own_server(session, bound, port):
                    assert word_at(session, address, port) == b"inside"
            assert word_at(session, address, port) == b"root"


def test_an_own_server_on_the_port_of_a_system_service_where_outbound_is_not_native(
    portwrap: Portwrap, host: Host
) -> None:
    """A rule leads to the service, whatever listens in the sandbox; never to another user's, which
    has no rule."""
    beside = beside_services(portwrap, "auto", outward="helper", network="slirp4netns")
    with beside as (session, port), own_server(session, "0.0.0.0", port):
        assert word_at(session, HOST, port) == b"root"


def mark_of(made: socket.socket) -> int:
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)


@pytest.mark.parametrize("address", [HOST, HOST6])
def test_a_socket_of_the_hosts_that_turns_to_an_own_server(
    portwrap: Portwrap, host: Host, address: str
) -> None:
    """It is replaced by one of the sandbox's, which finds that server."""
    far = SERVER6 if address == HOST6 else SERVER
    beside = beside_services(portwrap, "native", network="pasta")
    with beside as (session, port), own_server(session, address, port):
        with host.listen(far, port=port):
            made = session.make(do="connect_twice", address=far, port=port, other=address)
        assert session.keep(made).recv(99) == b"inside"


def test_a_socket_that_was_connected_to_an_own_server_can_leave(
    portwrap: Portwrap, host: Host
) -> None:
    beside = beside_services(portwrap, "native", network="slirp4netns")
    with beside as (session, port), own_server(session, HOST, port):
        with host.listen(SERVER, port=port) as far:
            made = session.make(do="connect_twice", address=HOST, port=port, other=SERVER)
            session.keep(made)
            far.accept()[0].close()
        assert is_native(made) and mark_of(made) == 0


def test_a_socket_of_mptcp_finds_an_own_server(portwrap: Portwrap, host: Host) -> None:
    try:
        socket.socket(proto=IPPROTO_MPTCP).close()
    except OSError as error:
        cannot(f"no MPTCP: {error.strerror}")
    beside = beside_services(portwrap, "native", network="slirp4netns")
    with beside as (session, port), own_server(session, HOST, port):
        made = session.make(do="connect", address=HOST, port=port, protocol=IPPROTO_MPTCP)
        assert session.keep(made).recv(99) == b"inside"


def test_what_cannot_be_native_finds_the_service(portwrap: Portwrap, host: Host) -> None:
    """By the rule, through the network driver; the mark is for sockets that need it alone."""
    with beside_services(portwrap, "native", network="slirp4netns") as (session, port):
        with session.make(do="connect_duplicated", address=HOST, port=port) as made:
            assert (made.recv(99), mark_of(made), is_native(made)) == (b"root", 0, False)
        for number in (port, unused_port()):
            with own_server(session, HOST, number):
                with session.connect(HOST, number) as made:
                    assert (made.recv(99), mark_of(made) != 0) == (b"inside", number == port)
                with session.make(do="connect_udp", address=HOST, port=number) as made:
                    assert mark_of(made) == 0


@pytest.mark.parametrize("forward", ["relay", "auto"])
@pytest.mark.parametrize("address", [HOST, HOST6])
def test_a_server_that_is_bound_to_the_own_address_is_forwarded_to(
    portwrap: Portwrap, host: Host, forward: str, address: str
) -> None:
    with Inside(portwrap, forward=forward, network="none", host="::") as session:
        session.wait_until_up()
        listener = session.keep(session.listen(address, session.guest_port))
        place = (address, session.port)
        with answering(listener, b"inside"), socket.create_connection(place, timeout=10) as client:
            assert client.recv(99) == b"inside"


def test_a_node_with_many_system_services(portwrap: Portwrap, host: Host) -> None:
    """Still a start, and those that there is room for are reached."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(host.listen("0.0.0.0", at=host.host)) for _ in range(400)]
        result = run_in_sandbox(portwrap, "true")
        assert (result.returncode, result.stderr) == (0, "")
        assert len(listeners) == 400 and os.geteuid() == 0
        rules = run_in_sandbox(portwrap, "ip", "rule").stdout.splitlines()
        assert MAX_RULES - 100 < len(rules) < MAX_RULES + 10


def test_an_interface_that_is_down(portwrap: Portwrap, changing_host: Host) -> None:
    """Its addresses are not those of the node."""
    ip("link set h1 down")
    result = run_in_sandbox(portwrap, "ip", "-o", "address")
    assert HOST in result.stdout
    assert HOST_ON_SECOND not in result.stdout


def test_an_interface_with_the_name_of_the_drivers(
    portwrap: Portwrap, changing_host: Host, driver: ChosenDriver
) -> None:
    """A bridge of virtual machines has such names. lo has its address."""
    ip("link set h1 down", "link set h1 name tap0", "link set tap0 up")
    with driver.inside(portwrap) as session, changing_host.listen(SERVER) as far:
        session.keep(session.listen(HOST_ON_SECOND, 0))
        session.keep(session.connect(*far.getsockname()))


@pytest.mark.parametrize("network", ["none", "slirp4netns"])
def test_where_they_cannot_be_given(portwrap: Portwrap, network: str) -> None:
    """As by a kernel that knows no rules by port: the session does without them."""
    extra = {"PORTWRAP_VERBOSE": "1", "PORTWRAP_NETWORK": network}
    without = portwrap.program("without.py", "netlink")
    result = run_in_sandbox(portwrap, "echo", "ran", before=without, extra_env=extra)
    assert (result.returncode, result.stdout) == (0, "ran\n"), result
    assert "without the node's own addresses: Address family not supported" in result.stderr
    control = run_in_sandbox(portwrap, "echo", "ran", extra_env=extra)
    assert "ms: the node's own addresses: " in control.stderr


GIVE_ONE = """
import socket, sys
from portwrap.kernel.rtnetlink import Netlink, Port
from portwrap.launch import own_address
address = own_address.OwnAddress("lo", socket.inet_aton("198.18.0.1"))
service = Port(address.packed, socket.IPPROTO_TCP, int(sys.argv[1]))
try:
    own_address.give(own_address.Node([address], [service]), with_rules=True)
except OSError as error:
    print(error.strerror)
print(address.packed in [each.packed for each in Netlink().addresses()])
"""


@pytest.mark.parametrize(("port", "said"), [("0", "Invalid argument\nFalse\n"), ("22", "True\n")])
def test_no_address_without_the_rules_of_its_services(
    portwrap: Portwrap, port: str, said: str
) -> None:
    """It would hide them. The kernel takes no rule for port 0; the other one is the control."""
    words = ["unshare", "-Urn", portwrap.python, "-c", GIVE_ONE, port]
    result = run_as(OWNER, words, cwd=portwrap.folder)
    assert (result.stdout, result.stderr) == (said, "")
