"""Ports that lead in besides the host port (--publish), and ports of the host's loopback that
answer inside (--host-service). They are asked for through the environment, as a site does."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Iterator

import pytest

from helpers import NEIGHBOUR, OWNER, run_as, wait_until
from sessions import (
    Inside,
    Maker,
    Outside,
    Portwrap,
    Session,
    holders_of,
    kill,
    last_words,
    unused_port,
    unused_ports,
)

pytestmark = pytest.mark.namespaces
WORKER = "portwrap-relay"
LIMIT = 3.0
"""Seconds within which nothing may be left; without pidfds the keeper looks every two."""


@pytest.fixture(params=["relay", "native"])
def forward(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Stage:
    """A sandbox, the host's other sockets of its owner and of a neighbour, and what they open."""

    def __init__(self, portwrap: Portwrap, forward: str, stack: ExitStack) -> None:
        self.portwrap = portwrap
        self.forward = forward
        self.stack = stack
        self.owner = stack.enter_context(Outside(portwrap))
        self.neighbour = stack.enter_context(Outside(portwrap, NEIGHBOUR))

    def session(self, **options: Any) -> Inside:
        """A sandbox with these PORTWRAP_… settings, and others of Inside."""
        names = [name for name in ("publish", "host_service") if name in options]
        extra = {f"PORTWRAP_{name.upper()}": str(options.pop(name)) for name in names}
        options.setdefault("forward", self.forward)
        made = Inside(self.portwrap, extra_env=extra, **options)
        return self.stack.enter_context(made)

    def listen(self, maker: Maker, port: int, address: str = "127.0.0.1") -> socket.socket:
        """A socket that listens where the maker is."""
        made = maker.make(do="listen", address=address, port=port)
        return self.stack.enter_context(made)


@pytest.fixture
def stage(portwrap: Portwrap, forward: str) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(portwrap, forward, stack)


def connect(port: int, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((address, port), timeout=10)


def assert_connected(client: socket.socket, listener: socket.socket) -> None:
    """Fail unless this client has reached this listener, in both directions."""
    listener.settimeout(10)
    with client, listener.accept()[0] as server:
        client.settimeout(10)
        server.settimeout(10)
        client.sendall(b"ping")
        assert server.recv(9) == b"ping"
        server.sendall(b"pong")
        assert client.recv(9) == b"pong"


def assert_hung_up(maker: Maker, port: int, native: bool = False) -> None:
    """Fail unless somebody takes a connection and has nowhere to lead it; natively nobody does."""
    refusal = ConnectionRefusedError if native else ConnectionResetError
    with pytest.raises(refusal), maker.connect("127.0.0.1", port) as client:
        client.recv(1)


def refuses(port: int, native: bool) -> bool:
    """Whether nobody serves there: see `assert_hung_up`."""
    try:
        with connect(port) as client:
            return not native and client.recv(1) == b""
    except ConnectionRefusedError:
        return native
    except ConnectionResetError:
        return not native


# ---- published ports ----------------------------------------------------------------------------


def test_published_ports_lead_to_their_ports_inside(stage: Stage) -> None:
    first, second, third, other = unused_ports(4)
    session = stage.session(publish=f"{first}-{second},{third}:{other}")
    for asked, inner in ((first, first), (second, second), (third, other)):
        listener = stage.listen(session, inner)
        assert_connected(connect(asked), listener)
    main = stage.listen(session, session.guest_port)
    assert_connected(session.client(), main)
    assert len(session.others()) == 2


def test_more_of_them_than_one_message_carries(stage: Stage) -> None:
    """253 descriptors (SCM_MAX_FD, unix(7)); each port has two here."""
    ports = unused_ports(300)
    session = stage.session(publish=",".join(map(str, ports)))
    for port in (ports[0], ports[150], ports[-1]):
        listener = stage.listen(session, port)
        assert_connected(connect(port), listener)


@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_where_a_server_listens_behind_a_published_port(stage: Stage, listens: str) -> None:
    port = unused_port()
    session = stage.session(publish=port, host="::")
    listener = stage.listen(session, port, listens)
    for asked in ("127.0.0.1", "::1"):
        assert_connected(connect(port, asked), listener)


def test_a_published_port_leads_nowhere_yet(stage: Stage) -> None:
    port = unused_port()
    session = stage.session(publish=port)
    session.wait_until_up()
    native = stage.forward == "native"
    assert_hung_up(stage.owner, port, native)
    with stage.listen(session, port) as listener:
        assert_connected(connect(port), listener)
    wait_until(lambda: refuses(port, native), what="an end of the published port's server")


def test_nothing_else_is_published(stage: Stage) -> None:
    published, inner, other = unused_ports(3)
    session = stage.session(publish=f"{published}:{inner}")
    for port in (inner, other, published):
        stage.listen(session, port, "0.0.0.0")
    for port in (inner, other, session.guest_port):
        for address in ("127.0.0.1", "::1"):
            with pytest.raises(ConnectionRefusedError):
                stage.neighbour.connect(address, port)
    stage.neighbour.connect("127.0.0.1", published).close()


def test_nobody_else_can_take_a_published_port(stage: Stage) -> None:
    port = unused_port()
    stage.session(publish=port).wait_until_up()
    for address in ("0.0.0.0", "127.0.0.1", "::", "::1"):
        with pytest.raises(OSError, match="Address already in use"):
            stage.listen(stage.neighbour, port, address)


def test_a_published_port_is_on_the_address_of_the_host_port(stage: Stage) -> None:
    port = unused_port()
    session = stage.session(publish=port, host="127.0.0.2")
    listener = stage.listen(session, port)
    assert_connected(connect(port, "127.0.0.2"), listener)
    with pytest.raises(ConnectionRefusedError):
        connect(port, "127.0.0.1")


def test_a_published_port_that_is_taken(stage: Stage) -> None:
    free, taken = unused_ports(2)
    stage.listen(stage.neighbour, taken)
    options = ["-p", str(unused_port()), "--forward", stage.forward]
    words = [*stage.portwrap.words, *options, "--publish", f"{free}-{taken}", "echo", "ran"]
    result = run_as(OWNER, words)
    assert (result.returncode, result.stdout) == (125, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0] == f"portwrap: published port 0.0.0.0:{taken}: Address already in use"
    assert not holders_of(free)


# ---- host services ------------------------------------------------------------------------------


def test_a_host_service_answers_inside(stage: Stage) -> None:
    port = unused_port()
    service = stage.listen(stage.owner, port)
    session = stage.session(host_service=port)
    server = stage.listen(session, session.guest_port)
    assert_connected(session.connect("127.0.0.1", port), service)
    assert_connected(session.client(), server)
    assert len(session.others()) == (3 if stage.forward == "relay" else 2)


@pytest.mark.parametrize("both", [True, False])
def test_the_ipv6_side_answers_where_the_host_has_one(stage: Stage, both: bool) -> None:
    """A client that asks "localhost" tries ::1 first, and goes on only if it is refused there."""
    port = unused_port()
    service = stage.listen(stage.owner, port)
    other = stage.listen(stage.owner, port, "::1") if both else None
    session = stage.session(host_service=port)
    assert_connected(session.connect("127.0.0.1", port), service)
    if other is not None:
        assert_connected(session.connect("::1", port), other)
    else:
        with pytest.raises(ConnectionRefusedError):
            session.connect("::1", port)


def test_a_host_service_of_both_families_where_the_sandbox_has_one(stage: Stage) -> None:
    port = unused_port()
    service = stage.listen(stage.owner, port)
    stage.listen(stage.owner, port, "::1")
    before = stage.portwrap.program("without.py", "ipv6")
    session = stage.session(host_service=port, before=before)
    assert_connected(session.connect("127.0.0.1", port), service)


def test_no_other_service_of_the_host_answers_inside(stage: Stage) -> None:
    port, other = unused_ports(2)
    service = stage.listen(stage.owner, port, "0.0.0.0")
    secret = stage.listen(stage.owner, other, "0.0.0.0")
    session = stage.session(host_service=port)
    endpoints = [("127.0.0.1", other), ("::1", other), ("::1", port), ("127.0.0.2", port)]
    endpoints += [("198.18.2.2", port), ("198.18.2.2", other), ("198.18.2.100", port)]
    for address, asked in endpoints:
        with pytest.raises(OSError):
            session.connect(address, asked)
    for listener in (service, secret):
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert_connected(session.connect("127.0.0.1", port), service)
    # the control: from outside, all that the host has is reached
    assert_connected(connect(other), secret)
    assert_connected(connect(port, "127.0.0.2"), service)


def test_a_host_service_lets_no_neighbour_in(stage: Stage) -> None:
    port, inner = unused_ports(2)
    session = stage.session(host_service=port)
    stage.listen(session, inner, "0.0.0.0")
    for asked in (port, inner, session.guest_port):
        for address in ("127.0.0.1", "::1"):
            with pytest.raises(ConnectionRefusedError):
                stage.neighbour.connect(address, asked)


def test_a_host_service_that_comes_and_goes(stage: Stage) -> None:
    port = unused_port()
    session = stage.session(host_service=port)
    for _ in range(2):
        # Who made the service's socket closes its own descriptor of it some time later.
        wait_until(lambda: not holders_of(port), what="a port that nobody holds")
        assert_hung_up(session, port, native=stage.forward == "native")
        with stage.listen(stage.owner, port) as service:
            assert_connected(session.connect("127.0.0.1", port), service)


def test_many_connections_in_both_directions(stage: Stage) -> None:
    published, offered = unused_ports(2)
    service = stage.listen(stage.owner, offered)
    session = stage.session(publish=published, host_service=offered)
    server = stage.listen(session, published)
    pairs = []
    for _ in range(100):
        for maker, port, listener in (
            (session, offered, service),
            (stage.owner, published, server),
        ):
            client = stage.stack.enter_context(maker.connect("127.0.0.1", port))
            accepted = stage.stack.enter_context(listener.accept()[0])
            accepted.settimeout(10)
            pairs.append((client, accepted))
    for number, (client, _) in enumerate(pairs):
        client.sendall(b"%d" % number)
    for number, (_, accepted) in enumerate(pairs):
        assert accepted.recv(9) == b"%d" % number


def test_a_service_that_would_be_published_is_refused(stage: Stage) -> None:
    port = unused_port()
    stage.listen(stage.owner, port)
    for wish in (["--publish", f"{unused_port()}:{port}"], ["-P", str(port)]):
        options = ["-p", str(unused_port()), "--host-service", str(port), *wish]
        result = run_as(OWNER, [*stage.portwrap.words, *options, "echo", "ran"])
        assert (result.returncode, result.stdout) == (125, "")
        assert (
            f"sandbox port {port} cannot be both a host service and a forwarding target"
            in result.stderr
        )


@pytest.mark.parametrize("forward", ["native"])
def test_a_server_that_cannot_be_handed_the_socket(stage: Stage) -> None:
    """Then the port is relayed, by a process inside; what leads out goes on leading out."""
    one, two, native, offered = unused_ports(4)
    service = stage.listen(stage.owner, offered)
    publish = f"{one},{two},{native}"
    session = stage.session(publish=publish, host_service=offered, host="127.0.0.1")
    # of another address family than the host port
    server = stage.listen(session, session.guest_port, "::1")
    others = {port: stage.listen(session, port, "::1") for port in (one, two)}
    others[native] = stage.listen(session, native)
    assert_connected(session.client(), server)
    for port, other in others.items():
        wait_until(lambda: not refuses(port, native=True), what="a relay")  # noqa: B023
        other.accept()[0].close()
        assert_connected(connect(port), other)
    assert_connected(session.connect("127.0.0.1", offered), service)
    assert len(session.others()) == 4  # one worker for what is published, one for the host port


# ---- the start-up line --------------------------------------------------------------------------


def test_what_leads_in_and_out_is_said(portwrap: Portwrap) -> None:
    host, first, second, third, offered = unused_ports(5)
    options = ["-p", str(host), "--publish", f"{first}-{second}", "--publish", f"{third}:80"]
    options += ["--host-service", str(offered)]
    for more in ([], ["-v"]):
        result = run_as(OWNER, [*portwrap.words, *options, *more, "true"])
        assert result.returncode == 0
        *_, line = result.stderr.splitlines()
        assert f": forwarding 0.0.0.0:{host} -> 8888 (" in line
        assert f", published {first}-{second}, {third}:80, " in line
        assert f", host services 127.0.0.1:{offered}, " in line
    result = run_as(OWNER, [*portwrap.words, "-p", str(host), "true"])
    assert (result.returncode, result.stderr) == (0, "")


# ---- who ends when somebody else does -----------------------------------------------------------


SAYS_WHEN_TOLD = """
import signal, socket, sys
# of another address family than the published port: relayed by a worker, whatever is native
server = socket.create_server(("::1", int(sys.argv[1])), family=socket.AF_INET6)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # waited for: none is missed
print("ready", flush=True)
while True:
    signal.sigwait({signal.SIGTERM})
    print("told", flush=True)
"""


@pytest.fixture(params=["relay", "native", "relay, no pidfd"])
def busy(portwrap: Portwrap, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A session with routes of both directions, whose command says when it is told to end."""
    forward, _, without = request.param.partition(",")
    before = portwrap.program("without.py", "pidfds") if without else []
    published, offered = unused_ports(2)
    words = [portwrap.python, "-c", SAYS_WHEN_TOLD, str(published)]
    extra = {"PORTWRAP_PUBLISH": str(published), "PORTWRAP_HOST_SERVICE": str(offered)}
    with Session(portwrap, words, forward=forward, extra_env=extra, before=before) as session:
        assert session.process.stdout is not None
        assert session.process.stdout.readline() == "ready\n"
        wait_until(lambda: session.keeper and session.driver and session.named(WORKER))
        session.wait_until_served()
        yield session
    for port in (published, session.port):
        wait_until(lambda: not holders_of(port), LIMIT, f"port {port} free")  # noqa: B023


def helpers_of(session: Session) -> set[int]:
    """The processes of ours that serve the session."""
    found = {session.keeper, session.driver, session.named(WORKER)}
    return found - {0}


@pytest.mark.parametrize("victim", ["worker", "keeper", "helper"])
def test_a_process_of_ours_is_killed(busy: Session, victim: str) -> None:
    """The command is told, once, and nothing of ours is left."""
    pid = {"worker": busy.named(WORKER), "keeper": busy.keeper, "helper": busy.driver}[victim]
    os.kill(pid, signal.SIGKILL)
    assert busy.process.stdout is not None
    assert busy.process.stdout.readline() == "told\n"
    wait_until(lambda: not helpers_of(busy), LIMIT, "our processes gone")
    assert busy.process.poll() is None
    for left in busy.alive():
        kill(left)
    assert busy.process.stdout.read() == ""
    said = busy.stderr().splitlines()[1:]  # after the start-up line
    # what a network driver said last stands in the middle
    said = [line.replace(": sent tapfd=5 for tap0; received tapfd=5", "") for line in said]
    ending = "ended by signal 9; ending the command (SIGTERM)"
    assert (
        said
        == {
            "worker": [f"portwrap: the relay in the sandbox {ending}"],
            "keeper": [],
            "helper": [f"portwrap: slirp4netns {ending}"],
        }[victim]
    )
    busy.process.wait()


def test_the_command_ends(busy: Session) -> None:
    kill(busy.pid)
    busy.process.wait()
    wait_until(lambda: not helpers_of(busy), LIMIT, "our processes gone")


def test_signals_to_every_process_of_the_job(busy: Session) -> None:
    """Only the command acts on them."""
    helpers = helpers_of(busy)
    assert len(helpers) == 3
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for pid in helpers:
            os.kill(pid, number)
    for pid in helpers:
        pending = Path(f"/proc/{pid}/status").read_text()
        assert "ShdPnd:\t0000000000000000" not in pending
    assert helpers_of(busy) == helpers


@pytest.mark.parametrize("size", [1, 100_000, 8_000_000])
def test_the_last_words_of_the_command_arrive(portwrap: Portwrap, forward: str, size: int) -> None:
    """Those that it sends to a client of a published port, relayed by the worker, too."""
    published, inner = unused_ports(2)
    extra = {"PORTWRAP_PUBLISH": f"{published}:{inner}", "PORTWRAP_HOST_SERVICE": "1"}
    words = portwrap.program("speak_and_end.py", str(inner), str(size))
    with Session(portwrap, words, forward=forward, extra_env=extra) as session:
        assert session.process.stdout is not None
        assert session.process.stdout.readline() == "ready\n"
        client = session.keep(connect(published))
        client.sendall(b"x")
        sent = int(session.process.stdout.readline())
        got = last_words(session, client)
        assert got == (bytes(range(256)) * (size // 256 + 1))[:sent]
        session.wait_until_gone(LIMIT)


@pytest.mark.parametrize("before", ["true", "sleep 0.01", "sleep 0.3"])
@pytest.mark.parametrize("after", ["true", "sleep 0.01"])
def test_the_last_words_of_a_short_command_to_a_host_service(
    portwrap: Portwrap, forward: str, before: str, after: str
) -> None:
    """It may end before the keeper serves, or before the keeper has looked."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(LIMIT)
        port = service.getsockname()[1]
        words = ["-p", str(unused_port()), "--network", "none", "--forward", forward]
        words += ["--host-service", str(port), "bash", "-c"]
        text = f"{before}; echo hello >/dev/tcp/127.0.0.1/{port}; {after}"
        result = run_as(OWNER, [*portwrap.words, *words, text])
        assert result.returncode == 0
        assert result.stderr.count("\n") == 1, result.stderr  # the start-up line
        with service.accept()[0] as connection:
            connection.settimeout(LIMIT)
            assert b"".join(iter(lambda: connection.recv(100), b"")) == b"hello\n"


def test_the_worker_holds_nothing_of_the_keeper(busy: Session) -> None:
    """Above all not its end of the lifeline: by its closing the command learns of its end."""

    def sockets(pid: int) -> set[str]:
        folder = Path(f"/proc/{pid}/fd")
        links = {os.readlink(path) for path in folder.iterdir()}
        return {link for link in links if link.startswith(("socket:", "pipe:"))}

    error = os.readlink(f"/proc/{busy.keeper}/fd/2")
    assert sockets(busy.named(WORKER)) & sockets(busy.keeper) <= {error}
