"""Native forwarding: which server gets the host's own socket, and that the others are relayed."""

from __future__ import annotations

import array
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest
import requests
from launches import as_owner_in
from networks import Host
from spawned import (
    GUEST,
    LIMIT,
    PIDFD_OPEN_CALL,
    Spawner,
    Started,
    ask,
    ask_until_answered,
    call_of,
    forward_of,
    held,
    links_of,
    listening_inodes,
    read,
    see_clients,
)

from portwrap.keeper.host_sockets import descriptors_of_others

from conftest import TEST_ROOT
from helpers import NEIGHBOUR, OWNER, as_user, cannot, end, needs, run_as, state_of, wait_until
from sessions import (
    Inside,
    Outside,
    Portwrap,
    Session,
    injected,
    kill,
    unused_port,
)

pytestmark = pytest.mark.namespaces


@pytest.fixture
def spawner(portwrap: Portwrap) -> Iterator[Spawner]:
    with Spawner(portwrap) as session:
        yield session


def ask_inside(session: Spawner, port: int = GUEST, address: str = "127.0.0.1") -> str:
    """What a client inside gets."""
    script = (
        "import socket, sys\n"
        f"try: made = socket.create_connection(({address!r}, {port}), timeout=10)\n"
        "except OSError as error: sys.exit(error.strerror)\n"
        "sys.stdout.write(made.makefile().read())"
    )
    return session.spawn(session.portwrap.python, "-I", "-c", script).all().strip()


SHARED = "the server shared or duplicated its socket before listen"
REGISTERED = "the server's socket could not be replaced: an io_uring may have registered it"
UNWATCHED = "the server listens by a call that the filter does not see"
OTHER_FAMILY = "the server listens on another address family than the host port"
SIGNALLED = "the server requests a signal for each client"

WAYS = [  # how server.py comes to its socket, why it is relayed (nothing: it is not)
    ("plain", ""),
    ("nonblocking", ""),
    ("reuseport", ""),
    ("settings", ""),
    ("mptcp", ""),
    ("twice", ""),
    ("again", ""),
    ("shut", ""),
    ("reexec", ""),
    ("child", ""),
    ("orphan", ""),
    ("sent", ""),
    ("thread", ""),
    ("prefork", ""),
    ("epoll-first", ""),
    ("epoll-first-edge", ""),
    ("epoll-first-twice", ""),
    ("epoll-first-with-data", ""),
    ("epoll-first-waiting", ""),
    ("epoll-first-exclusive", ""),
    ("uring-registered", REGISTERED),
    ("uring-listen", UNWATCHED),
    ("duplicate", SHARED),
    ("shared", SHARED),
    ("shared-unseen", SHARED),
    ("in-flight", SHARED),
    ("in-flight-unread", SHARED),
    ("in-flight-unaccepted", SHARED),
    ("signal-driven", SIGNALLED),
    ("unreadable", "the server's file descriptors cannot be read"),
]


UNSEEN = "shared-unseen", "in-flight-unaccepted"
"""Who else has the socket cannot be seen: so the caller has the host's, and does not serve it."""


@pytest.mark.parametrize("early", [False, True], ids=["", "asked-early"])
@pytest.mark.parametrize(("way", "why"), WAYS, ids=[way for way, _ in WAYS])
def test_a_server_of_every_kind_is_served(
    spawner: Spawner, way: str, why: str, early: bool
) -> None:
    """Clients of before it listened and after it; natively wherever that is sure to work."""
    most = 1 if way == "shut" else 3  # shutdown resets those that wait
    clients = [spawner.client() for _ in range(most)] if early else []
    server = spawner.serve(way)
    port = int(server.says("listening "))
    for client in clients:
        assert json.loads(read(client))["pid"] in spawner.alive()
    facts = [ask_until_answered(spawner) if way == "shut" else ask(spawner) for _ in range(4)]
    expected = "relay" if why else "native"
    if way not in ("again", "shut", *UNSEEN):  # whether it listens at this moment is chance
        assert forward_of(spawner) == expected
    assert see_clients(facts) == (expected == "native")
    assert port == (GUEST if why else spawner.port)
    said = spawner.said()
    if why:
        assert f"portwrap: forward: relay, because {why}\n" in said
        assert "forward: native" not in said
    else:
        assert "portwrap: forward: native" in said and "forward: relay" not in said


@pytest.mark.parametrize("way", ["plain", "thread"])
def test_a_kernel_before_pidfds_of_threads(portwrap: Portwrap, way: str) -> None:
    """EINVAL for PIDFD_THREAD, and without it only the first thread's number is a process's."""
    before = portwrap.program("without.py", "thread-pidfds")
    look = "import os; from portwrap.kernel import processes; "
    look += "processes.pidfd_open(os.getpid(), processes.PIDFD_THREAD)"
    control = run_as(OWNER, [*before, portwrap.python, "-c", look], cwd=portwrap.folder)
    assert "Invalid argument" in control.stderr
    with Spawner(portwrap, before=before) as session:
        server = session.served(way)
        assert ask(session)["pid"] == server.pid
        assert forward_of(session) == "native"


FAMILIES = [  # listens inside on, host address, asked through, way
    ("127.0.0.1", "0.0.0.0", "127.0.0.1", "native"),
    ("0.0.0.0", "0.0.0.0", "127.0.0.1", "native"),
    ("127.0.0.1", "127.0.0.2", "127.0.0.2", "native"),
    ("::1", "::1", "::1", "native"),
    ("127.0.0.1", "::", "127.0.0.1", "native"),
    ("127.0.0.1", "::", "::1", "through the keeper"),
    ("::1", "::", "::1", "native"),
    ("::1", "::", "127.0.0.1", "through the keeper"),
    ("::", "::", "::1", "native"),
    ("::1", "0.0.0.0", "127.0.0.1", "relay"),
    ("::", "0.0.0.0", "127.0.0.1", "relay"),
    ("127.0.0.1", "::1", "::1", "relay"),
]


@pytest.mark.parametrize(("listens", "host", "asked", "way"), FAMILIES)
def test_both_address_families(
    portwrap: Portwrap, listens: str, host: str, asked: str, way: str
) -> None:
    with Spawner(portwrap, host=host) as session:
        session.served("plain", listens)
        facts = [ask(session, asked) for _ in range(3)]
        assert forward_of(session) == ("relay" if way == "relay" else "native")
        assert see_clients(facts) == (way == "native")
        if way == "relay":
            assert f"forward: relay, because {OTHER_FAMILY}\n" in session.said()


@pytest.mark.parametrize("early", [False, True], ids=["", "asked-early"])
@pytest.mark.parametrize("listens", ["127.0.0.1+::1", "::1+127.0.0.1"])
def test_a_server_with_a_socket_of_each_family(spawner: Spawner, listens: str, early: bool) -> None:
    """The one of the host port's family is replaced, whichever comes first. A client that waits
    while they are made may be sooner than the second."""
    clients = [spawner.client()] if early else []
    spawner.served("both", listens)
    answers = [json.loads(read(client)) for client in clients] + [ask(spawner)]
    assert len({answer["pid"] for answer in answers}) == 1
    if not early:
        assert forward_of(spawner) == "native"
        assert ask_inside(spawner) and json.loads(ask_inside(spawner, address="::1"))


def test_a_server_that_moves_between_the_families(portwrap: Portwrap) -> None:
    """Each of the host's two sockets is handed over, taken back, relayed, and handed over again."""
    with Spawner(portwrap, host="::") as session:
        session.served("move")
        for number in range(6):
            facts = ask(session, "127.0.0.1" if number % 2 else "::1")
            assert facts["pid"] in session.alive()


def test_what_a_server_has_set_on_its_socket_holds_for_connections(spawner: Spawner) -> None:
    spawner.served("settings")
    facts = ask(spawner)
    assert (facts["keepalive"], facts["receive"]) == (1, 40000)
    assert facts["peer"] == facts["client"]


def test_what_a_server_has_not_set_is_as_on_the_host(
    portwrap: Portwrap, changing_host: Host
) -> None:
    """Defaults of a new network namespace may be others. Nor is it as the server before had it."""
    Path("/proc/sys/net/ipv4/tcp_keepalive_time").write_text("600")
    with Spawner(portwrap, network="none") as session:
        server = session.served("settings")
        facts = ask(session)
        assert (facts["keepalive"], facts["keepidle"]) == (1, 600)
        server.kill()
        wait_until(lambda: ask_inside(session) == "Connection refused", what="the port free")
        session.served()
        facts = ask(session)
        assert (facts["keepalive"], facts["keepidle"]) == (0, 600)
        assert forward_of(session) == "native"


FLAGS = [  # how server.py comes to its socket, flags that the socket has
    ("plain", os.O_CLOEXEC),
    ("inheritable", 0),
    ("nonblocking", os.O_CLOEXEC | os.O_NONBLOCK),
]


@pytest.mark.parametrize(("way", "expected"), FLAGS)
def test_the_flags_of_the_descriptor_stay(spawner: Spawner, way: str, expected: int) -> None:
    server = spawner.served(way)
    assert ask(spawner)["pid"] == server.pid
    host = listening_inodes(os.getpid(), spawner.port)
    folder = f"/proc/{server.pid}/fd"
    [number] = [name for name in os.listdir(folder) if os.readlink(f"{folder}/{name}") in host]
    lines = Path(f"/proc/{server.pid}/fdinfo/{number}").read_text().splitlines()
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    assert flags & (os.O_CLOEXEC | os.O_NONBLOCK) == expected


BAD_DESCRIPTORS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for number in (-1, 999, os.pipe()[0], os.open("/", 0)):
    assert libc.listen(number, 1) == -1
    print(os.strerror(ctypes.get_errno()), flush=True)
"""


@pytest.mark.parametrize("backlog", [7, 1_000_000])
def test_the_queue_is_as_long_as_the_server_asked_for(portwrap: Portwrap, backlog: int) -> None:
    """A longer one would let a neighbour keep more connections waiting than without us."""
    needs("ss")
    longest = int(Path("/proc/sys/net/core/somaxconn").read_text())
    with Inside(portwrap, forward="native") as session, session.serve(backlog=backlog) as listener:
        session.pair(listener)
        words = ["ss", "-H", "-l", "-t", "-n", "-4", f"sport = :{session.port}"]
        queue = subprocess.check_output(words, text=True).split()[2]
        assert int(queue) == min(backlog, longest, 4096)


def test_calls_that_cannot_work(spawner: Spawner) -> None:
    """The kernel's own answer is the caller's, and the keeper goes on."""
    started = spawner.spawn(spawner.portwrap.python, "-c", BAD_DESCRIPTORS)
    bad, no_socket = "Bad file descriptor\n", "Socket operation on non-socket\n"
    assert started.all() == 2 * bad + 2 * no_socket
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid


def test_the_keeper_has_no_part_in_it(spawner: Spawner) -> None:
    """Not one wake-up of the keeper for any number of clients; and it sleeps without a limit."""
    spawner.served()
    ask(spawner)
    keeper = spawner.keeper
    sleeping = wait_until(lambda: sleeps(keeper), what="the keeper asleep")
    for _ in range(100):
        ask(spawner)
    assert sleeps(keeper) == sleeping
    # epoll_wait(2): its time limit is -1
    limit = Path(f"/proc/{keeper}/syscall").read_text().split()[4]
    assert int(limit, 16) & 0xFFFFFFFF == 0xFFFFFFFF


def sleeps(pid: int) -> int:
    """How often a process that sleeps now has gone to sleep; 0 if it is awake."""
    if state_of(pid) != "S":
        return 0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def test_a_keeper_without_clients_sleeps(spawner: Spawner) -> None:
    """Nobody listens and nobody asks: nothing to look for."""
    keeper = spawner.keeper
    wait_until(lambda: sleeps(keeper), what="the keeper asleep")
    limit = wait_until(lambda: Path(f"/proc/{keeper}/syscall").read_text().split())[4]
    assert int(limit, 16) & 0xFFFFFFFF == 0xFFFFFFFF


# ---- real servers -------------------------------------------------------------------------------

NODE = """
require("http").createServer((_, answer) => answer.end("hello"))
  .listen(8888, process.argv[1], () => console.log("listening"))
"""
NODE_CLUSTER = """
const cluster = require("cluster");
if (cluster.isPrimary) { cluster.fork(); cluster.fork() }
else require("http").createServer((_, answer) => answer.end("hello")).listen(8888, "127.0.0.1")
"""
HTTP = "http.server", "--bind", "127.0.0.1", "8888"
ASYNCIO = """
import asyncio
async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nConnection: close\\r\\n\\r\\nhello")
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "localhost", 8888)
    await server.serve_forever()
asyncio.run(main())
"""
WSGI = """
def app(environ, start):
    start("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""
HUB = TEST_ROOT / "hub-venv" / "bin"
SERVERS = TEST_ROOT / "servers-venv" / "bin"

REAL_SERVERS: list[tuple[str, list[str | Path], str, str]] = [
    # name, words, path to ask for, way
    ("http.server", ["{python}", "-m", *HTTP], "/", "native"),
    ("asyncio", ["{python}", "-c", ASYNCIO], "/", "native"),
    ("node", ["node", "-e", NODE, "127.0.0.1"], "/", "native"),
    ("node-every-address", ["node", "-e", NODE, "::"], "/", "relay"),
    ("node-cluster", ["node", "{folder}/cluster.js"], "/", ""),  # wants its own port's number
    (
        "gunicorn",
        [SERVERS / "gunicorn", "--bind=127.0.0.1:8888", "--workers=3", "portwrap_wsgi:app"],
        "/",
        "native",
    ),
    (
        "gunicorn-reuse-port",
        [SERVERS / "gunicorn", "--bind=127.0.0.1:8888", "--reuse-port", "portwrap_wsgi:app"],
        "/",
        "native",
    ),
    ("jupyter_server", [HUB / "jupyter-server", "{options}", "--ip=localhost"], "/api", "native"),
    (
        "jupyter_server-at-all",
        [HUB / "jupyter-server", "{options}", "--ip=*"],
        "/api",
        "native",
    ),
    (
        "notebook-classic",
        [SERVERS / "jupyter-notebook", "{options}", "--ip=localhost"],
        "/api",
        "native",
    ),
    (
        "jupyverse",
        [SERVERS / "jupyverse", "--disable=auth", "--disable=login", "--port=8888"],
        "/lab",
        "native",
    ),
]
JUPYTER_OPTIONS = ["--port=8888", "--no-browser", "--port-retries=0"]


CASES = [
    pytest.param(
        forward,
        *row[1:],
        id=f"{row[0]}-{forward}",
        # ours is the same code for all of them: one is enough where other Pythons run it
        marks=[pytest.mark.slow] if row[0] != "jupyter_server" else [],
    )
    for row in REAL_SERVERS
    for forward in ("native", "relay")
    if row[3] or forward == "relay"
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("forward", "words", "path", "way"), CASES)
def test_real_servers(
    portwrap: Portwrap,
    world_dir: Path,
    forward: str,
    words: list[str | Path],
    path: str,
    way: str,
) -> None:
    if isinstance(words[0], Path) and not words[0].exists():
        cannot(f"not installed: {words[0]}; tests/setup.sh installs it")
    if words[0] == "node":
        needs("node")
    (world_dir / "portwrap_wsgi.py").write_text(WSGI)
    (world_dir / "cluster.js").write_text(NODE_CLUSTER)
    home = world_dir / "home"
    home.mkdir()
    shutil.chown(home, OWNER, OWNER)
    command: list[str] = []
    for word in map(str, words):
        command += JUPYTER_OPTIONS if word == "{options}" else [word]
    for name, value in (("{python}", portwrap.python), ("{folder}", str(world_dir))):
        command = [word.replace(name, value) for word in command]
    extra = {"HOME": str(home), "PYTHONPATH": str(world_dir)}
    output = subprocess.DEVNULL
    with Session(
        portwrap, command, forward=forward, extra_env=extra, stdout=output, stderr=output
    ) as session:
        answers = [get(session, path) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        assert forward_of(session) == (way if forward == "native" else "relay")


def get(session: Session, path: str) -> requests.Response:
    """A page through the host port. With the hand-over nobody is turned away; a relay resets
    clients until the server listens."""

    def answer() -> requests.Response | None:
        try:
            return requests.get(f"http://127.0.0.1:{session.port}{path}", timeout=60)
        except requests.ConnectionError:
            assert session.process.poll() is None, "the server has ended"
            return None

    found = wait_until(answer, 60, "an answer")
    assert found is not None
    return found


def test_a_server_that_compares_its_port(portwrap: Portwrap, world_dir: Path) -> None:
    """getsockname(2) tells the host port. Node's cluster module takes that for a failed bind(2),
    and says so: `--forward relay` is for such a server."""
    needs("node")
    (world_dir / "cluster.js").write_text(NODE_CLUSTER)
    command = ["node", str(world_dir / "cluster.js")]
    with Session(portwrap, command, forward="native") as session:
        assert session.process.wait(timeout=LIMIT) == 0
        session.wait_until_gone(LIMIT)
        assert "Error: bind EADDRINUSE 127.0.0.1:8888" in session.stderr()


def build_tiny_server(session: Spawner, folder: Path, *options: str) -> Path:
    """Compile tiny_server.c, which needs no C library."""
    needs("gcc")
    if os.uname().machine != "x86_64":
        cannot("the program knows the system calls of x86 only")
    program = folder / "tiny_server"
    source = session.portwrap.folder / "programs" / "tiny_server.c"
    freestanding = ["-nostdlib", "-static", "-O1", "-fno-stack-protector"]
    subprocess.run(["gcc", *options, *freestanding, "-o", program, source], check=True)
    return program


KINDS = [((), "native"), (("-m32",), "relay")]


@pytest.mark.parametrize(("options", "way"), KINDS, ids=["64-bit", "32-bit"])
def test_a_server_without_a_c_library(
    spawner: Spawner, world_dir: Path, options: tuple[str, ...], way: str
) -> None:
    """The 32-bit one asks the kernel through a table of system calls that is not watched."""
    program = build_tiny_server(spawner, world_dir, *options)
    early = spawner.client()
    spawner.spawn(program).says("listening")
    assert read(early) == read(spawner.client()) == b"hello\n"
    assert forward_of(spawner) == way
    if way == "relay":
        assert f"forward: relay, because {UNWATCHED}\n" in spawner.said()


# ---- inside -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "uring-listen"])
def test_clients_inside(spawner: Spawner, way: str) -> None:
    """They reach the server at the guest port, as they would without us; before, nobody."""
    assert ask_inside(spawner) == "Connection refused"
    spawner.served(way)
    ask(spawner)
    for _ in range(3):
        assert json.loads(ask_inside(spawner))["pid"] in spawner.alive()
    # what the system tells inside: one listener on the guest port
    [row] = [
        line.split()
        for line in Path(f"/proc/{spawner.pid}/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    assert row[1] == f"0100007F:{GUEST:04X}"


def test_the_guest_port_stays_taken_inside(spawner: Spawner) -> None:
    """A second server goes elsewhere, rather than to share the first one's clients."""
    first = spawner.served()
    assert "Address already in use" in spawner.serve().all()
    assert "Address already in use" in spawner.serve(address="0.0.0.0").all()
    assert {ask(spawner)["pid"] for _ in range(5)} == {first.pid}


def test_a_server_that_ends_and_is_started_again(spawner: Spawner) -> None:
    """Its clients wait for the next one; and so does the guest port."""
    for way in ("plain", "nonblocking", "prefork", "plain"):
        server = spawner.served(way)
        assert ask(spawner)["pid"] in spawner.alive()
        assert forward_of(spawner) == "native"
        for pid in spawner.alive() - {spawner.pid, spawner.keeper, spawner.driver}:
            kill(pid)
        server.kill()
        wait_until(lambda: ask_inside(spawner) == "Connection refused", what="the port free")
        waiting = spawner.client()
        server = spawner.served()
        assert json.loads(read(waiting))["pid"] == server.pid
        server.kill()


def test_a_server_that_ends_its_listening_and_itself(spawner: Spawner) -> None:
    """With shutdown(2), which is for the host's socket as such. Clients wait for the next one."""
    server = spawner.served("shut-down")
    server.channel.send(b"x")
    wait_until(lambda: state_of(server.pid) in ("", "Z"), what="its end")
    wait_until(lambda: ask_inside(spawner) == "Connection refused", what="the port free")
    waiting = spawner.client()
    server = spawner.served()
    assert json.loads(read(waiting))["pid"] == server.pid == ask(spawner)["pid"]
    assert forward_of(spawner) == "native"


def test_a_child_that_serves_on(spawner: Spawner) -> None:
    """Its parent's end is not the server's; its own is."""
    parent = spawner.served("orphan")
    wait_until(lambda: state_of(parent.pid) in ("", "Z"), what="end of the parent")
    child = int(ask(spawner)["pid"])
    assert child != parent.pid
    assert json.loads(ask_inside(spawner))["pid"] == child
    assert "Address already in use" in spawner.serve().all()
    kill(child)
    wait_until(lambda: ask_inside(spawner) == "Connection refused", what="the port free")
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "native"


def test_what_is_told_of_a_server_is_not_told_of_the_next(spawner: Spawner) -> None:
    server = spawner.served("both", "::1+127.0.0.1")
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "native"
    server.kill()
    wait_until(lambda: ask_inside(spawner) == "Connection refused", what="the port free")
    server = spawner.served("uring-listen")
    assert ask(spawner)["pid"] == server.pid
    assert f"forward: relay, because {UNWATCHED}\n" in spawner.said()


def test_a_server_whose_successor_must_be_relayed(spawner: Spawner) -> None:
    """With the guest port free again, even a listen that nobody is asked about works."""
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    server.kill()
    wait_until(lambda: ask_inside(spawner) == "Connection refused", what="the port free")
    waiting = spawner.client()
    server = spawner.served("uring-listen")
    assert json.loads(read(waiting))["pid"] == server.pid == ask(spawner)["pid"]
    assert forward_of(spawner) == "relay"
    # for good: this one's socket stays its own
    server.kill()
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "relay"


def test_servers_that_share_the_port_by_an_option(spawner: Spawner) -> None:
    """SO_REUSEPORT: the first one is given the host's socket, and when it ends the other is asked
    at its own."""
    first, second = spawner.served("reuseport"), spawner.serve("reuseport")
    assert second.says("listening ") == str(GUEST)
    assert {ask(spawner)["pid"] for _ in range(5)} == {first.pid}
    first.kill()
    assert ask(spawner)["pid"] == second.pid
    assert forward_of(spawner) == "relay"


@pytest.mark.parametrize("forward", ["native", "relay"])
def test_where_proc_shows_to_each_account_its_own(portwrap: Portwrap, forward: str) -> None:
    """hidepid (proc(5)), as sites mount it: it hides the numbers of the ports inside, too."""
    before = as_owner_in("mount -t proc -o hidepid=2 proc /proc")
    with Spawner(portwrap, forward, account="root", before=before) as session:
        server = session.served()
        assert ask_until_answered(session)["pid"] == server.pid
        assert forward_of(session) == forward
        look = ["cat", f"/proc/{session.pid}/net/tcp"]
        assert f":{GUEST:04X} " in run_as(NEIGHBOUR, look).stdout
        as_neighbour = ["setpriv", f"--reuid={NEIGHBOUR}", f"--regid={NEIGHBOUR}", "--clear-groups"]
        there = ["nsenter", "-t", str(session.pid), "-m", *as_neighbour]
        assert "No such file" in run_as("root", [*there, *look]).stderr


def test_the_guest_port_may_be_the_host_port(portwrap: Portwrap) -> None:
    """The host's own socket is on the guest port then: to listen twice is not to take it over."""
    port = unused_port()
    with Spawner(portwrap, port=port, guest_port=port) as session:
        server = session.served("twice", port=port)
        assert ask(session)["pid"] == server.pid
        assert forward_of(session) == "native"
        assert json.loads(ask_inside(session, port))["pid"] == server.pid
        assert session.said().count("forward: native") == 1


# ---- what is never replaced ---------------------------------------------------------------------

OWN_NAMESPACE = """
import ctypes, socket
assert ctypes.CDLL(None).unshare(0x50000000) == 0  # CLONE_NEWUSER | CLONE_NEWNET
made = socket.socket()
made.bind(("0.0.0.0", 8888))
made.listen()
print("listening", made.getsockname()[1], flush=True)
input()
"""
DATAGRAMS = """
import socket
made = socket.socket(type=socket.SOCK_DGRAM)
made.bind(("127.0.0.1", 8888))
try: made.listen()
except OSError as error: print(error.strerror)
print("listening", made.getsockname()[1], made.type.name, flush=True)
input()
"""
UNIX = """
import socket
made = socket.socket(socket.AF_UNIX)
made.bind("\\0portwrap-test-8888")
made.listen()
print("listening", made.getsockname(), flush=True)
input()
"""
NEVER = [  # name, program, what it says of its socket
    ("another namespace", OWN_NAMESPACE, "8888"),
    ("UDP", DATAGRAMS, "8888 SOCK_DGRAM"),
    ("Unix", UNIX, "b'\\x00portwrap-test-8888'"),
]


@pytest.mark.parametrize(("program", "said"), [row[1:] for row in NEVER], ids=lambda _: "")
def test_what_is_never_replaced(spawner: Spawner, program: str, said: str) -> None:
    other = spawner.spawn(spawner.portwrap.python, "-c", program)
    assert other.says("listening ") == said
    assert forward_of(spawner) == "relay"
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "native"


def test_a_datagram_socket_is_not_even_tried(spawner: Spawner) -> None:
    """Else its settings would be the host's now, and its failure the reason that is told."""
    spawner.spawn(spawner.portwrap.python, "-c", DATAGRAMS).says("listening ")
    server = spawner.served("uring-listen")
    assert ask(spawner)["pid"] == server.pid
    assert f"forward: relay, because {UNWATCHED}\n" in spawner.said()


def test_another_port_is_never_replaced(spawner: Spawner) -> None:
    other = spawner.serve(port=GUEST + 1)
    assert other.says("listening ") == str(GUEST + 1)
    assert json.loads(ask_inside(spawner, GUEST + 1))["pid"] == other.pid


AS_BEFORE = """
import socket
made = socket.socket()
made.bind(("127.0.0.1", 8888))
other = made.dup()
made.listen()
print("reuse", made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), flush=True)
while True: other.accept()[0].sendall(b"hello")
"""


def test_a_socket_that_is_put_back_is_as_it_was(spawner: Spawner) -> None:
    server = spawner.spawn(spawner.portwrap.python, "-c", AS_BEFORE)
    assert server.says("reuse ") == "0"
    assert read(spawner.client()) == b"hello"
    assert forward_of(spawner) == "relay"


V6ONLY = """
import socket, sys
made = socket.socket(socket.AF_INET6)
made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(sys.argv[1]))
made.bind(("::", 8888))
made.listen()
other = socket.socket()
try: other.bind(("0.0.0.0", 8888))
except OSError as error: print("other:", error.strerror, flush=True)
else: print("other: bound", flush=True)
while True: made.accept()[0].sendall(b"hello")
"""


@pytest.mark.parametrize(("only", "other"), [(1, "bound"), (0, "Address already in use")])
def test_the_other_family_of_the_guest_port(portwrap: Portwrap, only: int, other: str) -> None:
    """It is free in the sandbox where the server has left it free."""
    with Spawner(portwrap, host="::") as session:
        server = session.spawn(portwrap.python, "-c", V6ONLY, str(only))
        assert server.says("other: ") == other
        assert forward_of(session) == "native"
        assert ask_inside(session, address="::1") == "hello"


SECOND_SOCKET = """
import socket
first, second = socket.socket(), socket.socket()
for made in (first, second):
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 8888))
first.listen()
print("listening", first.getsockname()[1], flush=True)
input()
first.close()
second.listen()
print("listening", second.getsockname()[1], flush=True)
while True: second.accept()[0].sendall(b"second")
"""


def test_a_server_that_goes_on_with_a_socket_that_was_bound_before(spawner: Spawner) -> None:
    """There is no call of bind by which it would be known that it has closed the first one."""
    server = spawner.spawn(spawner.portwrap.python, "-c", SECOND_SOCKET)
    assert server.says("listening ") == str(spawner.port)
    server.channel.send(b"\n")
    server.says("listening ")
    assert read(spawner.client()) == b"second"
    assert forward_of(spawner) == "native"


@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
def test_a_second_program_on_the_guest_port(portwrap: Portwrap, address: str) -> None:
    """It keeps its own socket as long as another one serves the host's."""
    with Spawner(portwrap, host="::") as session:
        first = session.served()
        second = session.serve(address=address)
        assert second.says("listening ") == str(GUEST)
        for asked in ("127.0.0.1", "::1"):
            assert ask(session, asked)["pid"] == first.pid
        assert json.loads(ask_inside(session, address=address))["pid"] == second.pid


ADOPT = """
import array, socket
_, ancillary, _, _ = socket.socket(fileno=0).recvmsg(1, 64)
made = socket.socket(fileno=array.array("i", ancillary[0][2])[0])
made.listen()
print("listening", made.getsockname()[1], flush=True)
made.accept()[0].send(b"adopted")
"""


@pytest.mark.parametrize("outward", ["helper", "native"])
def test_a_socket_of_the_host_is_never_replaced(portwrap: Portwrap, outward: str) -> None:
    """One that a program inside was given, on a port with the guest port's number."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port = made.getsockname()[1]
        with Spawner(portwrap, guest_port=port, outward=outward) as session:
            started = session.spawn(portwrap.python, "-c", ADOPT)
            rights = array.array("i", [made.fileno()])
            message = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            started.channel.sendmsg([b"x"], message)
            assert started.says("listening ") == str(port)
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
                assert read(client) == b"adopted"
            assert forward_of(session) == "relay"


def test_a_process_outside_is_never_asked(portwrap: Portwrap) -> None:
    with Outside(portwrap) as outside:
        port = unused_port()
        with outside.listen("127.0.0.1", port) as made, Spawner(
            portwrap, guest_port=port
        ) as session:
            assert made.getsockname()[1] == port
            server = session.served(port=port)
            assert ask(session)["pid"] == server.pid


# ---- races --------------------------------------------------------------------------------------

STORM = """
import os, socket, sys
print("begin", flush=True)
for _ in range(10):
    if os.fork() == 0:
        kept = []
        for _ in range(50):
            made = socket.socket()
            made.bind(("127.0.0.1", 0))
            port = made.getsockname()[1]
            made.listen()
            assert made.getsockname()[1] == port
            with socket.create_connection(("127.0.0.1", port), 10):
                made.accept()[0].close()
            kept.append(made)
        os._exit(0)
print(sorted(os.wait()[1] for _ in range(10)), flush=True)
"""


def test_a_storm_of_other_servers_while_the_server_starts(spawner: Spawner) -> None:
    storm = spawner.spawn(spawner.portwrap.python, "-c", STORM)
    storm.says("begin")
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "native"
    assert storm.says("[") == "0, " * 9 + "0]"


def wait_for_question(started: Started, call: str) -> None:
    """Wait until the program is inside this system call, which waits for its answer."""
    place = Path(f"/proc/{started.pid}/syscall")
    wait_until(lambda: place.read_text().split()[0] == call, what="the system call")


@pytest.fixture
def stopped(spawner: Spawner) -> Iterator[Callable[[], None]]:
    """The keeper stopped; call it to have the keeper go on."""
    keeper = spawner.keeper
    os.kill(keeper, signal.SIGSTOP)
    wait_until(lambda: state_of(keeper) == "T", what="the keeper stopped")
    yield lambda: os.kill(keeper, signal.SIGCONT)


LISTEN_CALL = {"x86_64": "50", "aarch64": "201"}.get(os.uname().machine, "")
BIND_CALL = {"x86_64": "49", "aarch64": "200"}.get(os.uname().machine, "")
POLL_CALLS = {"x86_64": ("7", "271"), "aarch64": ("73",)}.get(os.uname().machine, ())
BOUND_BEFORE = """
import os, signal, socket
made = socket.socket()
made.bind(("127.0.0.1", 8888))
print("bound", flush=True)
input()
made.listen()
print("listening", flush=True)
while True: made.accept()[0].sendall(b"hello")
"""


def test_other_kinds_of_programs_are_never_asked(
    spawner: Spawner, world_dir: Path, stopped: Callable[[], None]
) -> None:
    """The numbers of their system calls mean others: nothing of theirs waits for the keeper."""
    spawner.spawn(build_tiny_server(spawner, world_dir, "-m32")).says("listening")
    stopped()
    assert read(spawner.client()) == b"hello\n"


def test_a_keeper_that_is_stopped_and_continued(
    spawner: Spawner, stopped: Callable[[], None]
) -> None:
    client = spawner.client()
    server = spawner.serve()
    wait_for_question(server, BIND_CALL)
    stopped()
    assert json.loads(read(client))["pid"] == server.pid
    assert forward_of(spawner) == "native"


def test_callers_that_die_before_they_are_answered(spawner: Spawner) -> None:
    keeper = spawner.keeper
    for _ in range(5):
        server = spawner.spawn(spawner.portwrap.python, "-c", BOUND_BEFORE)
        server.says("bound")
        os.kill(keeper, signal.SIGSTOP)
        wait_until(lambda: state_of(keeper) == "T", what="the keeper stopped")
        server.channel.send(b"\n")
        wait_for_question(server, LISTEN_CALL)
        server.kill()
        os.kill(keeper, signal.SIGCONT)
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "native"


def test_a_caller_that_dies_while_the_keeper_turns_to_it(spawner: Spawner) -> None:
    """Between the event and the look at the question: it is gone, and others will ask."""
    server = spawner.spawn(spawner.portwrap.python, "-c", BOUND_BEFORE)
    server.says("bound")
    keeper = spawner.keeper
    with held(keeper, "?poll,?ppoll"):
        server.channel.send(b"\n")
        wait_until(lambda: call_of(keeper) in POLL_CALLS, what="the keeper's poll")
        server.kill()
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "native"


INTERRUPTED = """
import os, signal, socket
signal.signal(signal.SIGUSR1, lambda *_: print("signal", flush=True))
made = socket.socket()
made.bind(("127.0.0.1", 8888))
print("bound", flush=True)
input()
try: made.listen()
except InterruptedError: print("interrupted", flush=True)
else: print("listening", flush=True)
while True: made.accept()[0].sendall(b"hello")
"""


def test_a_caller_that_a_signal_arrives_for(spawner: Spawner) -> None:
    """Its call goes on once the keeper has received it (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV):
    programs do not expect listen to be interrupted, nor that it has been done then."""
    if [int(word) for word in os.uname().release.split(".")[:2]] < [5, 19]:
        cannot("a kernel before Linux 5.19 does not have it")
    server = spawner.spawn(spawner.portwrap.python, "-c", INTERRUPTED)
    server.says("bound")
    keeper = spawner.keeper
    with held(keeper, "pidfd_open"):
        server.channel.send(b"\n")
        wait_until(lambda: call_of(keeper) == PIDFD_OPEN_CALL, what="the keeper's look")
        os.kill(server.pid, signal.SIGUSR1)
        wait_until(lambda: pending_of(server.pid) & 1 << signal.SIGUSR1 - 1, what="the signal")
    assert server.says("") == "signal"
    assert server.says("") == "listening"
    assert read(spawner.client()) == b"hello"
    assert forward_of(spawner) == "native"


def pending_of(pid: int) -> int:
    """The signals that wait for a process to take them, or that it has taken, as a mask."""
    return int(status_of(pid)["ShdPnd"], 16)


IMPOSTOR = """
import os, socket, sys
number = int(sys.argv[1])
made = socket.socket()
made.bind(("127.0.0.1", 8888))
if made.fileno() != number:
    os.dup2(made.fileno(), number)
    made.close()
    made = socket.socket(fileno=number)
print("bound", flush=True)
input()
print("listens:", made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
"""
TAKE = """
import socket, sys
from portwrap.kernel import processes
taken = socket.socket(fileno=processes.take_descriptor(int(sys.argv[1]), int(sys.argv[2])))
print(taken.getsockname()[1])
"""


def test_a_caller_whose_number_is_anothers_now(spawner: Spawner) -> None:
    """It died before the keeper looked, and a process in there has got its number: one whose
    socket of this number is on the guest port, too, but which has not called listen."""
    needs("nsenter", "setpriv")
    portwrap, keeper = spawner.portwrap, spawner.keeper
    server = spawner.spawn(portwrap.python, "-c", BOUND_BEFORE)
    server.says("bound")
    there = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--init-groups"]
    there += ["nsenter", "-t", str(spawner.pid), "-U", "-n", "--preserve-credentials"]
    with held(keeper, "pidfd_open"):
        server.channel.send(b"\n")
        wait_until(lambda: call_of(keeper) == PIDFD_OPEN_CALL, what="the keeper's look")
        words = Path(f"/proc/{server.pid}/syscall").read_text().split()
        assert words[0] == LISTEN_CALL
        number = str(int(words[1], 16))
        server.kill()
        wait_until(lambda: not state_of(server.pid), what="the number free")
        impostor = [*there, portwrap.python, "-c", IMPOSTOR, number]
        process = as_user(
            "root",
            [*portwrap.program("numbered.py", str(server.pid)), *impostor],
            stdin=subprocess.PIPE,
        )
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "bound\n"
    try:
        take = [portwrap.python, "-c", TAKE, str(server.pid), number]
        control = run_as(OWNER, take, cwd=portwrap.folder)
        assert control.stdout == f"{GUEST}\n", control
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.read() == "listens: 0\n"
    finally:
        end(process)
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "native"


KILLED_AT_RANDOM = """
import os, random, signal, socket, time
end = time.monotonic() + 15  # on a busy machine each takes a while
for _ in range(300):
    if time.monotonic() > end: break
    child = os.fork()
    if child == 0:
        made = socket.socket()
        made.bind(("127.0.0.1", random.choice([0, 8888])))
        os.write(1, b"")
        made.listen()
        os._exit(0)
    time.sleep(random.expovariate(1000))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print("done", flush=True)
"""


def test_callers_that_are_killed_at_random(spawner: Spawner) -> None:
    killers = [spawner.spawn(spawner.portwrap.python, "-c", KILLED_AT_RANDOM) for _ in range(3)]
    for killer in killers:
        killer.says("done")
    keeper = spawner.keeper
    assert keeper
    server = spawner.served()
    assert ask(spawner)["pid"] == server.pid
    assert forward_of(spawner) == "native"
    server.kill()
    wait_until(lambda: ask_inside(spawner) == "Connection refused", what="the port free")
    assert len(links_of(keeper)) < 20, "descriptors are left over"


# ---- programs with filters and namespaces of their own ------------------------------------------


def status_of(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_what_the_command_is_told_of_itself(spawner: Spawner) -> None:
    spawner.spawn("true")  # done, so the command has been executed by now
    inside, outside = status_of(spawner.pid), status_of("self")
    assert int(inside["Seccomp_filters"]) == int(outside["Seccomp_filters"]) + 1
    for name in ("NoNewPrivs", "Speculation_Store_Bypass", "SpeculationIndirectBranch"):
        assert inside[name] == outside[name]
    assert inside["NoNewPrivs"] == "0"
    assert int(inside["CapEff"], 16) == 0


def test_the_filter_asks_for_no_mitigations(portwrap: Portwrap, world_dir: Path) -> None:
    """Without SECCOMP_FILTER_FLAG_SPEC_ALLOW, kernels before 5.16 slow the session down."""
    needs("strace")
    log = world_dir / "strace"
    log.touch()
    log.chmod(0o666)
    before = ["strace", "-o", str(log), "-e", "trace=seccomp"]
    with Session(portwrap, ["true"], forward="native", before=before) as session:
        assert session.process.wait(timeout=LIMIT) == 0
        session.wait_until_gone(LIMIT)
    assert "SECCOMP_FILTER_FLAG_SPEC_ALLOW" in log.read_text()


OWN_FILTER = """
import ctypes, errno, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
flags = int(sys.argv[1])
refused = 140 if os.uname().machine == "x86_64" else 141  # getpriority(2)
words = [(0x20, 0, 0, 0), (0x15, 0, 1, refused), (6, 0, 0, 0x50000 | 93), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *word) for word in words))
program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
seccomp = 317 if os.uname().machine == "x86_64" else 277
if libc.syscall(seccomp, 1, flags, program) < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
try: os.getpriority(os.PRIO_PROCESS, 0)
except OSError as error: print("refused", error.errno)
"""


def test_a_filter_of_a_program_inside(spawner: Spawner) -> None:
    started = spawner.spawn(spawner.portwrap.python, "-c", OWN_FILTER, "0")
    assert started.all() == "refused 93\n"


@pytest.mark.parametrize(
    ("forward", "answer"), [("native", "Device or resource busy\n"), ("relay", "refused 93\n")]
)
def test_a_listener_of_a_program_inside(portwrap: Portwrap, forward: str, answer: str) -> None:
    """The kernel allows one: --forward relay is for such a program."""
    with Spawner(portwrap, forward) as session:
        started = session.spawn(portwrap.python, "-c", OWN_FILTER, "8")
        assert started.all() == answer


def test_namespaces_of_a_program_inside(spawner: Spawner) -> None:
    assert spawner.spawn("unshare", "-Urn", "id", "-u").all() == "0\n"
    words = ["unshare", "-Urnpf", "--mount-proc", "sh", "-c", "echo $$"]
    assert spawner.spawn(*words).all() == "1\n"


BUBBLES = [("--unshare-pid",), ("--unshare-user", "--unshare-pid"), ("--unshare-net",)]


@pytest.mark.parametrize("options", BUBBLES, ids="".join)
def test_a_server_in_bubblewrap(spawner: Spawner, options: tuple[str, ...]) -> None:
    """In namespaces of its own it is served if it is still in the sandbox's network."""
    needs("bwrap")
    words = spawner.portwrap.program("server.py", "plain", "127.0.0.1", str(GUEST))
    bubble = ["bwrap", "--dev-bind", "/", "/", "--die-with-parent", *options]
    started = spawner.spawn(*bubble, *words)
    port = int(started.says("listening "))
    if "--unshare-net" in options:
        assert (port, forward_of(spawner)) == (GUEST, "relay")
    else:
        assert ask(spawner)["peer"]
        assert forward_of(spawner) == "native"


# ---- where it cannot be had ---------------------------------------------------------------------

HINDER = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
seccomp = 317 if os.uname().machine == "x86_64" else 277
number, error, flags = int(sys.argv[1]) or seccomp, int(sys.argv[2]), int(sys.argv[3])
words = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50000 | error), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *word) for word in words))
program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
listener = libc.syscall(seccomp, 1, flags, program)
assert listener >= 0
if flags:
    os.set_inheritable(listener, True)
    if os.fork() == 0:  # holds it for as long as its standard input lasts
        os.read(int(sys.argv[4]), 1)
        os._exit(0)
    os.close(listener)
os.execvp(sys.argv[5], sys.argv[5:])
"""
HINDRANCES = [  # name, system call (0: seccomp), errno it gives, flags, what is said
    ("another-listener", 999, 1, 8, "the kernel gives no seccomp listener: Device or resource"),
    ("no-pidfd_getfd", 438, 1, 0, "pidfd_getfd: Operation not permitted"),
    ("old-pidfd_getfd", 438, 38, 0, "pidfd_getfd: Function not implemented"),
    ("old-seccomp", 0, 38, 0, "the kernel gives no seccomp listener: Function not implemented"),
    ("unknown-flags", 0, 22, 0, "the kernel gives no seccomp listener: Invalid argument"),
]


@pytest.mark.parametrize("hindrance", HINDRANCES, ids=[row[0] for row in HINDRANCES])
@pytest.mark.parametrize("forward", ["auto", "native"])
def test_where_it_cannot_be_had(
    portwrap: Portwrap, forward: str, hindrance: tuple[str, int, int, int, str]
) -> None:
    """Asked for, it fails in one line; else the relay serves, and says why where asked to."""
    _, call, error, flags, why = hindrance
    reading, writing = os.pipe()
    words = [str(word) for word in (call, error, flags, reading)]
    before = [portwrap.python, "-c", HINDER, *words]
    command = portwrap.program("server.py", "plain", "127.0.0.1", str(GUEST))
    extra = {"PORTWRAP_VERBOSE": "1"}
    try:
        with Session(
            portwrap, command, before=before, forward=forward, extra_env=extra, pass_fds=[reading]
        ) as session:
            if forward == "native":
                assert session.process.wait(timeout=LIMIT) == 125
                os.write(writing, b"x")
                session.wait_until_gone(LIMIT)
                *steps, message, hint = session.stderr().splitlines()
                assert message.startswith(f"portwrap: --forward native is not possible: {why}")
                assert hint.startswith("  ")
                assert all(re.match(r"portwrap: \d+ ms: ", step) for step in steps)
                return
            session.wait_until_up()
            facts = ask_until_answered(session)
            assert facts["pid"] == session.pid and facts["peer"] != facts["client"]
            session.end_processes()
            assert f" ms: forward: relay, because {why}" in session.stderr()
    finally:
        os.close(reading)
        os.close(writing)


def set_process_limit(pid: int, limit: int) -> None:
    """Set the soft limit of the processes of its account that this one of the owner's obeys."""
    text = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
    assert run_as(OWNER, ["prlimit", "--pid", str(pid), f"--nproc={text}:"]).returncode == 0


NO_PROCESS = "clients of the host port wait: it cannot be relayed now"
RELAYED = f"portwrap: forward: relay, because {UNWATCHED}\n"


def test_a_relay_that_there_is_no_process_for(portwrap: Portwrap) -> None:
    """With host services the keeper needs one in the sandbox. The account's are used up: clients
    wait, the session goes on, and it is tried again until there is one."""
    extra = {"PORTWRAP_HOST_SERVICE": str(unused_port())}
    with Spawner(portwrap, "auto", extra_env=extra) as session:
        keeper, before = session.keeper, resource.getrlimit(resource.RLIMIT_NPROC)[0]
        set_process_limit(keeper, 1)
        server = session.served("uring-listen")
        client = session.client()
        assert logged(session, NO_PROCESS).endswith(" (Resource temporarily unavailable)\n")
        assert not select.select([client], [], [], 0)[0]
        set_process_limit(keeper, before)
        assert json.loads(read(client))["pid"] == server.pid == ask(session)["pid"]
        assert session.process.poll() is None
        assert logged(session, "forward: ") == RELAYED


def test_a_relay_that_there_is_no_memory_for(portwrap: Portwrap) -> None:
    """The same where its process has begun and lacks something."""
    extra = {"PORTWRAP_HOST_SERVICE": str(unused_port())}
    with Spawner(portwrap, "auto", extra_env=extra) as session:
        keeper = session.keeper
        with injected(keeper, "setns:error=ENOMEM", children=True):
            server = session.served("uring-listen")
            client = session.client()
            assert logged(session, NO_PROCESS).endswith("failed: Cannot allocate memory)\n")
        assert json.loads(read(client))["pid"] == server.pid == ask(session)["pid"]
        assert logged(session, "forward: ") == RELAYED


def logged(session: Session, text: str) -> str:
    """The first line of the job's log that has this text in it."""
    assert session.process.stderr is not None
    return next(line for line in session.process.stderr if text in line)


def test_a_sandbox_that_the_keeper_may_not_enter(portwrap: Portwrap) -> None:
    with Spawner(portwrap, "auto") as session:
        with injected(session.keeper, "setns:error=EPERM"):
            session.served("uring-listen")
            session.client()
            assert session.process.wait(timeout=LIMIT) == -signal.SIGTERM
        why = "the keeper failed: setns: Operation not permitted"
        assert f"portwrap: {why}" in session.said()


def test_who_may_hold_a_socket_of_the_sandbox(portwrap: Portwrap) -> None:
    """Not who is in the host's user namespace: with many sessions that is too much to read."""
    with Session(portwrap, ["sleep", "600"], forward="auto") as session:
        session.wait_until_up()
        found = {process for process, _ in descriptors_of_others()}
        assert session.pid in found
        assert not {session.keeper, os.getpid()} & found


def test_the_relay_from_the_start_leaves_no_filter(portwrap: Portwrap) -> None:
    with Spawner(portwrap, "relay") as session:
        server = session.served()
        assert ask(session)["pid"] == server.pid
        assert status_of(session.pid)["Seccomp_filters"] == status_of("self")["Seccomp_filters"]
