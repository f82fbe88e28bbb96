"""Native outbound: whose socket a connection has, whatever goes wrong, and who cannot abuse it.

What programs do with connect(2), case by case, is in test_connect_cases.py.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Iterator

import pytest
from launches import in_sandbox
from networks import HOST, HOST6, SERVER, SERVER6, Host
from outbound import echoing, is_native, native, talks, whose
from spawned import PIDFD_GETFD_CALL, PIDFD_OPEN_CALL, Spawner, call_of, held

from helpers import NEIGHBOUR, OWNER, as_user, end, needs, run_as, state_of, wait_until
from sessions import Inside, Outside, Portwrap, Session, injected, kill, unused_port

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(120)]
LIMIT = 20.0
TCP_CLOSE = 7


@pytest.fixture
def server(host: Host) -> Iterator[int]:
    """The port of a server outside."""
    with echoing(host.listen(SERVER)) as port:
        yield port


@pytest.fixture
def session(portwrap: Portwrap, host: Host) -> Iterator[Inside]:
    with native(portwrap) as made:
        yield made


# ---- options -----------------------------------------------------------------------------------

CHOICES = [  # --forward, --outward, --network, whose socket it is
    ("native", "native", "slirp4netns", "native"),
    ("native", "auto", "slirp4netns", "native"),
    ("native", "helper", "slirp4netns", "driver"),
    ("relay", "native", "slirp4netns", "native"),
    ("relay", "auto", "pasta", "native"),
    ("relay", "helper", "pasta", "driver"),
]


@pytest.mark.parametrize(("forward", "outward", "network", "expected"), CHOICES)
def test_by_whose_socket(
    portwrap: Portwrap, server: int, forward: str, outward: str, network: str, expected: str
) -> None:
    """Also where the host port is relayed, for which the keeper need not stay outside."""
    with native(portwrap, forward, outward=outward, network=network) as session:
        assert whose(session, server) == expected
        with session.serve() as listener:
            client, inner = session.pair(listener)
            client.sendall(b"x")
            assert inner.recv(1) == b"x"
        assert whose(session, server) == expected


def test_with_allow_from(portwrap: Portwrap, server: int) -> None:
    with native(portwrap, "auto", extra_env={"PORTWRAP_ALLOW_FROM": HOST}) as session:
        assert whose(session, server) == "native"
        with session.serve() as listener:
            client = session.keep(socket.create_connection((HOST, session.port)))
            inner = session.keep(listener.accept()[0])
            client.sendall(b"x")
            assert inner.recv(1) == b"x"


def test_none_is_none(portwrap: Portwrap, server: int) -> None:
    with native(portwrap, network="none") as session, pytest.raises(OSError) as caught:
        session.connect(SERVER, server)
    assert caught.value.errno == errno.ENETUNREACH


def test_once_relayed_outbound_stays(portwrap: Portwrap, server: int) -> None:
    """A server on another address family than the host port is relayed, by a worker."""
    with native(portwrap, "auto") as session, session.serve("::1") as listener:
        client, inner = session.pair(listener)
        client.sendall(b"x")
        assert inner.recv(1) == b"x"
        assert whose(session, server) == "native"


def test_ipv6_beside_slirp4netns(portwrap: Portwrap, host: Host) -> None:
    """Which has none."""
    with echoing(host.listen(SERVER6)) as port:
        with native(portwrap, network="slirp4netns") as session:
            assert whose(session, port, SERVER6) == "native"
        with native(portwrap, network="slirp4netns", outward="helper") as control:
            with pytest.raises(OSError) as caught:
                control.connect(SERVER6, port)
            assert caught.value.errno == errno.ENETUNREACH


def test_the_nodes_own_settings(portwrap: Portwrap, changing_host: Host) -> None:
    """What a program has not set is as the node has it, not as a new network namespace does."""
    Path("/proc/sys/net/ipv4/tcp_keepalive_time").write_text("600")
    with echoing(changing_host.listen(SERVER)) as port, native(portwrap) as session:
        option = socket.IPPROTO_TCP, socket.TCP_KEEPIDLE
        with session.connect(SERVER, port) as made:
            assert made.getsockopt(*option) == 600
        with session.listen("127.0.0.1", 0) as own:
            assert own.getsockopt(*option) == 7200  # the control


# ---- the host's services, and the sandbox's own ------------------------------------------------


def test_host_services_are_reached_natively(portwrap: Portwrap, host: Host) -> None:
    """The one that is offered, and no other port of the host's loopback."""
    with ExitStack() as stack:
        ports = [
            stack.enter_context(echoing(host.listen("127.0.0.1", host.host))) for _ in range(2)
        ]
        extra = {"PORTWRAP_HOST_SERVICE": str(ports[0])}
        session = stack.enter_context(native(portwrap, extra_env=extra))
        assert whose(session, ports[0], "127.0.0.1") == "native"
        with pytest.raises(OSError) as caught:
            session.connect("127.0.0.1", ports[1])
        assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.parametrize("address", [HOST, HOST6])
def test_at_the_nodes_own_address(portwrap: Portwrap, host: Host, address: str) -> None:
    """What listens in the sandbox is found there; else that of another user of the node."""
    with ExitStack() as stack:
        neighbour = stack.enter_context(Outside(portwrap, NEIGHBOUR))
        port = stack.enter_context(echoing(neighbour.listen(address, 0)))
        session = stack.enter_context(native(portwrap))
        assert whose(session, port, address) == "native"
        wildcard = "::" if ":" in address else "0.0.0.0"
        own = stack.enter_context(session.listen(wildcard, port))
        inner = stack.enter_context(session.connect(address, port))
        accepted = stack.enter_context(own.accept()[0])
        assert not is_native(inner) and accepted.getpeername() == inner.getsockname()


def test_a_listener_of_another_port_does_not_hide_the_nodes(
    portwrap: Portwrap, session: Inside
) -> None:
    with ExitStack() as stack:
        neighbour = stack.enter_context(Outside(portwrap, NEIGHBOUR))
        port = stack.enter_context(echoing(neighbour.listen(HOST, 0)))
        stack.enter_context(session.listen("0.0.0.0", 0))
        stack.enter_context(session.listen("127.0.0.1", port))
        assert whose(session, port, HOST) == "native"


# ---- who cannot abuse it -----------------------------------------------------------------------


def build(program: str, folder: Path, source: Path) -> Path:
    needs("gcc")
    made = folder / program
    command = ["gcc", "-O2", "-o", str(made), str(source), "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return made


@pytest.fixture
def secret(host: Host, server: int) -> Iterator[int]:
    """A service of the host's loopback, on the port that the server has."""
    with echoing(host.listen("127.0.0.1", host.host, server)) as port:
        yield port


@pytest.mark.parametrize("how", [[], ["nonblocking"]], ids=["blocking", "nonblocking"])
def test_an_address_that_changes_meanwhile(
    portwrap: Portwrap, world_dir: Path, secret: int, how: list[str]
) -> None:
    """A thread writes the host's loopback into the address that is looked at, and back."""
    program = build("flip", world_dir, portwrap.folder / "programs" / "flipping_connect.c")
    words = [str(program), SERVER, str(secret), "3000", *how]
    result = run_as(OWNER, [*in_sandbox(portwrap), "--outward", "native", *words], seconds=100)
    assert result.stderr == ""
    reached, left, failed = map(int, result.stdout.split())
    assert reached == 0
    assert left > 100 and failed > 100  # it has seen both addresses
    if not how:
        keeper = portwrap.folder / "programs" / "continuing_keeper.py"
        extra = {"PYTHONPATH": str(portwrap.folder)}
        control = run_as(
            OWNER, [portwrap.python, keeper, SERVER, *words], extra_env=extra, seconds=100
        )
        assert control.stderr == ""
        assert int(control.stdout.split()[0]) > 0


def listening(process: int | str, port: int) -> list[str]:
    """The listening TCP sockets on this port, in the network namespace of the process."""
    rows = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[1].endswith(f":{port:04X}") and words[3] == "0A":
                rows.append(words[1])
    return rows


def test_a_socket_of_the_host_never_listens_for_the_sandbox(
    session: Inside, host: Host, server: int
) -> None:
    """One that was connected natively, and then is to be a server: it is the sandbox's again."""
    for how in ("disconnected", "refused"):
        made = session.make(do="connect_and_listen", address=SERVER, port=server, how=how)
        with made:
            port = made.getsockname()[1]
            assert not is_native(made)
            assert listening("thread-self", port) == []
            assert len(listening(session.pid, port)) == 1
            with session.connect("127.0.0.1", port):
                made.accept()[0].close()


def test_if_it_cannot_be_the_sandboxs_again_the_call_fails(session: Inside, server: int) -> None:
    """And the socket of the host's does not listen."""
    with injected(session.keeper, "accept4:error=EMFILE"), pytest.raises(OSError) as caught:
        session.make(do="connect_and_listen", address=SERVER, port=server, how="disconnected")
    assert caught.value.errno == errno.ENOBUFS


def test_a_connection_that_fails_at_once_leaves_the_programs_own_socket(session: Inside) -> None:
    """To everybody on the cable, which it may not."""
    with session.make(do="connect_anyway", address="198.18.0.255", port=9) as made:
        assert not is_native(made)


def test_nobody_of_the_sandbox_has_the_hosts_loopback_as_its_address(
    session: Inside, host: Host
) -> None:
    """Services at the node's address may trust it."""
    with echoing(host.listen(HOST, host.host)) as port:
        request = {"do": "connect_anyway", "address": HOST, "port": port}
        with session.make(**request, source="127.0.0.1") as made:
            assert not is_native(made)
        with session.make(**request) as control:
            assert is_native(control) and talks(control)


def test_nor_where_the_kernel_has_no_cookies(portwrap: Portwrap, host: Host, server: int) -> None:
    """Whose a socket is takes rights that the keeper does not have over the host's."""
    before = portwrap.program("without.py", "cookies")
    with native(portwrap, "auto", before=before) as session:
        request = {"address": SERVER, "port": server, "how": "disconnected"}
        with session.make(do="connect_and_listen", **request) as made:
            port = made.getsockname()[1]
            assert listening("thread-self", port) == []
            assert len(listening(session.pid, port)) == 1


def test_a_socket_of_the_host_never_binds_for_the_sandbox(session: Inside, server: int) -> None:
    port = unused_port()
    request = {"address": SERVER, "port": server, "how": "disconnected"}
    with session.make(do="connect_and_bind", own=port, **request) as made:
        assert not is_native(made)
        assert made.getsockname() == ("127.0.0.1", port)


def test_a_socket_of_the_host_never_connects_to_the_loopback(session: Inside, secret: int) -> None:
    """The host's answers at that port; the sandbox's does not."""
    with pytest.raises(OSError) as caught:
        session.make(do="connect_twice", address=SERVER, port=secret, other="127.0.0.1")
    assert caught.value.errno == errno.ECONNREFUSED


CALLER = """
import socket, sys
native = socket.create_connection((sys.argv[2], int(sys.argv[3])))  # else none is looked for
made = socket.socket()
print("made", flush=True)
input()
if sys.argv[1] == "connect": made.connect((sys.argv[2], int(sys.argv[3])))
else: made.listen()
"""
IMPOSTOR = """
import os, socket, sys
from portwrap.kernel.sockets import mark, state_of
number, made = int(sys.argv[2]), socket.socket()
mark(made)
os.dup2(made.fileno(), number)
if sys.argv[1] == "listen":
    made.setblocking(False)
    try: made.connect(("127.0.0.1", 1))
    except BlockingIOError: pass
print("marked", flush=True)
input()
print(state_of(made), made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
"""
TAKE = """
import sys
from portwrap.kernel import processes, sockets
print(sockets.is_marked(processes.take_descriptor(int(sys.argv[1]), int(sys.argv[2]))))
"""
LOOK_CALLS = (PIDFD_OPEN_CALL, PIDFD_GETFD_CALL)
CONNECT_CALL = {"x86_64": "42", "aarch64": "203"}.get(os.uname().machine, "")
LISTEN_CALL = {"x86_64": "50", "aarch64": "201"}.get(os.uname().machine, "")


@pytest.mark.parametrize(
    ("call", "number_of_call", "left"),
    [
        ("connect", CONNECT_CALL, f"{TCP_CLOSE} 0\n"),
        ("listen", LISTEN_CALL, f"{TCP_CLOSE} {errno.ECONNREFUSED}\n"),
    ],
    ids=["connect", "listen"],
)
def test_a_caller_whose_number_is_anothers_now(
    portwrap: Portwrap, server: int, call: str, number_of_call: str, left: str
) -> None:
    """It died before the keeper looked, and another process has got its number: one with a socket
    of the host's, which has not made this call. That is not connected, and a result that its own
    program has not seen stays."""
    needs("setpriv")
    with Spawner(portwrap, outward="native") as session:
        caller = session.spawn(portwrap.python, "-c", CALLER, call, SERVER, str(server))
        caller.says("made")
        with held(session.keeper, "pidfd_open,pidfd_getfd"):  # it may know the caller
            caller.channel.send(b"\n")
            wait_until(lambda: call_of(session.keeper) in LOOK_CALLS, what="the keeper's look")
            words = Path(f"/proc/{caller.pid}/syscall").read_text().split()
            assert words[0] == number_of_call
            number = str(int(words[1], 16))
            caller.kill()
            wait_until(lambda: not state_of(caller.pid), what="the number free")
            owner = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--init-groups"]
            impostor = [*owner, portwrap.python, "-c", IMPOSTOR, call, number]
            process = as_user(
                "root",
                [*portwrap.program("numbered.py", str(caller.pid)), *impostor],
                stdin=subprocess.PIPE,
                cwd=portwrap.folder,
            )
            assert process.stdin and process.stdout
            assert process.stdout.readline() == "marked\n"
        try:
            take = [portwrap.python, "-c", TAKE, str(caller.pid), number]
            control = run_as(OWNER, take, cwd=portwrap.folder)
            assert control.stdout == "True\n", control
            assert process.communicate("\n")[0] == left
        finally:
            end(process)


def test_a_neighbour_reaches_nothing(session: Inside, portwrap: Portwrap, server: int) -> None:
    """A native connection's own port is no server's."""
    with session.connect(SERVER, server) as made, Outside(portwrap, NEIGHBOUR) as neighbour:
        for address in (HOST, "127.0.0.1"):
            with pytest.raises(OSError) as caught:
                neighbour.connect(address, made.getsockname()[1])
            assert caught.value.errno == errno.ECONNREFUSED


# ---- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", ["0", "1"])
def test_a_storm_of_signals(portwrap: Portwrap, session: Inside, server: int, restart: str) -> None:
    words = portwrap.program("signalled.py", SERVER, str(server), "500", restart)
    control = run_as(OWNER, words, seconds=60)
    assert control.stdout.split()[0] == "500", control
    result = run_as(OWNER, [*in_sandbox(portwrap), "--outward", "native", *words], seconds=60)
    assert result.stdout.split()[0] == "500", result


# ---- whatever goes wrong -----------------------------------------------------------------------

REFUSED = [  # what the kernel refuses the keeper, and by whose socket a connection leaves then
    ("process_vm_readv:error=EPERM", "native"),
    ("process_vm_readv:error=ENOSYS", "native"),
    ("process_vm_readv,pread64:error=EPERM", "driver"),
    ("process_vm_readv:error=EFAULT", "driver"),
    ("kcmp:error=ENOSYS", "native"),
    ("kcmp:error=EPERM", "native"),
    ("pidfd_getfd:error=EPERM", "driver"),
    ("pidfd_getfd:error=EMFILE", "driver"),
    ("pidfd_open:error=EMFILE", "native"),  # this caller is known
    ("pidfd_send_signal:error=EPERM", "native"),
    ("socket:error=EMFILE", "driver"),
    ("socket:error=EACCES", "driver"),
    ("getsockopt:error=ENOPROTOOPT", "driver"),
    ("setsockopt:error=EPERM", "driver"),
    ("fchmod:error=EPERM", "driver"),
    ("epoll_create1:error=EMFILE", "native"),  # it has the one that it needs
    ("epoll_ctl:error=ENOSPC", "driver"),
    ("epoll_ctl:error=ENOSPC:when=1", "native"),
    ("epoll_ctl:error=ENOSPC:when=3", "driver"),  # the program's own entry
    ("openat:error=EMFILE", "driver"),
    ("openat:error=EACCES", "driver"),
    ("fcntl:error=EBADF", "driver"),
    ("dup2,dup3:error=EMFILE", "driver"),
]


@pytest.mark.parametrize(("what", "expected"), REFUSED)
def test_a_system_call_that_is_refused(
    session: Inside, server: int, what: str, expected: str
) -> None:
    """In the middle of a session: the connection comes about all the same, with the settings and
    the entry in an epoll that its program has given it; and afterwards all is as before."""
    assert whose(session, server) == "native"
    with injected(session.keeper, what):
        made = session.make(do="connect_watched", address=SERVER, port=server)
    with made:
        assert talks(made)
        assert ("native" if is_native(made) else "driver") == expected
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert whose(session, server) == "native"


LACKING = [  # what a kernel may not have, and whose socket it is then, for auto and for native
    ("thread-pidfds", "native", "native"),
    ("cookies", "native", "native"),
    ("kcmp", "native", "native"),
    ("process_vm_readv", "native", "native"),
    ("killable-wait", "driver", "native"),
    ("addfd", "driver", "driver"),
]


@pytest.mark.parametrize("outward", ["auto", "native"])
@pytest.mark.parametrize(("lacking", "auto", "insisted"), LACKING)
def test_a_kernel_that_lacks_something(
    portwrap: Portwrap, server: int, lacking: str, auto: str, insisted: str, outward: str
) -> None:
    before = portwrap.program("without.py", lacking)
    with native(portwrap, "auto", before=before, outward=outward) as session:
        assert whose(session, server) == (auto if outward == "auto" else insisted)


def test_a_kernel_that_gives_nothing(portwrap: Portwrap, server: int) -> None:
    before = portwrap.program("without.py", "pidfds")
    with native(portwrap, "auto", before=before, outward="auto") as session:
        assert whose(session, server) == "driver"
    words = [*before, *in_sandbox(portwrap), "--outward", "native", "true"]
    result = run_as(OWNER, words)
    assert result.returncode == 125
    message, remedy = result.stderr.splitlines()
    assert message.startswith("portwrap: --outward native is not possible: pidfd_getfd: ")
    assert remedy.startswith("  ")


def test_a_descriptor_that_the_caller_may_not_have_any_more(session: Inside, server: int) -> None:
    """Above its own limit the kernel puts nothing (EBADF)."""
    with session.make(do="connect_beyond_limit", address=SERVER, port=server) as made:
        assert talks(made) and not is_native(made)
    assert whose(session, server) == "native"


def test_a_keeper_out_of_descriptors(session: Inside, server: int) -> None:
    """It cannot even take the caller's socket."""
    keeper = session.keeper
    limit = len(os.listdir(f"/proc/{keeper}/fd"))
    before = run_as(
        OWNER, ["prlimit", "--pid", str(keeper), "--nofile", "-o", "SOFT,HARD", "--noheadings"]
    )
    soft, hard = before.stdout.split()
    for number, expected in ((f"{limit}:{hard}", "driver"), (f"{soft}:{hard}", "native")):
        words = ["prlimit", "--pid", str(keeper), f"--nofile={number}"]
        assert run_as(OWNER, words).returncode == 0
        assert whose(session, server) == expected


def test_a_keeper_that_is_stopped_and_continued(session: Inside, server: int) -> None:
    """Whoever connects waits; nothing is lost."""
    keeper = session.keeper
    os.kill(keeper, signal.SIGSTOP)
    wait_until(lambda: state_of(keeper) == "T", what="the keeper stopped")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(whose_from(session, server)))
    thread.start()
    try:
        with pytest.raises(AssertionError):
            wait_until(lambda: found, 0.5)
    finally:
        os.kill(keeper, signal.SIGCONT)
        thread.join()
    assert found == ["driver or native"]


def whose_from(session: Inside, port: int) -> str:
    with session.connect(SERVER, port) as made:
        assert talks(made)
    return "driver or native"


def test_connections_outlive_the_keeper(session: Inside, server: int) -> None:
    """Nothing of ours is in their way."""
    with session.connect(SERVER, server) as made:
        assert talks(made) and is_native(made)
        kill(session.keeper)
        assert session.process.wait(timeout=LIMIT) == -signal.SIGTERM
        assert talks(made)


KILLED_AT_RANDOM = """
import os, random, signal, socket, sys, time
place = sys.argv[1], int(sys.argv[2])
end = time.monotonic() + 15  # on a busy machine each takes a while
for _ in range(200):
    if time.monotonic() > end: break
    child = os.fork()
    if child == 0:
        while True: socket.create_connection(place).close()
    time.sleep(random.expovariate(500))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
made, other = socket.create_connection(place), socket.socket()
cookies = [each.getsockopt(socket.SOL_SOCKET, 71, 8) for each in (made, other)]
print("native" if cookies[0] != cookies[1] else "driver", flush=True)
input()
"""


def test_callers_that_are_killed_at_random(portwrap: Portwrap, server: int) -> None:
    words = [portwrap.python, "-c", KILLED_AT_RANDOM, SERVER, str(server)]
    with Session(
        portwrap, words, forward="native", outward="native", stdin=subprocess.PIPE
    ) as session:
        assert session.process.stdout is not None
        assert session.process.stdout.readline() == "native\n"
        # callers and processes are remembered, and no more than so many
        assert len(os.listdir(f"/proc/{session.keeper}/fd")) < 180


def test_many_at_once(portwrap: Portwrap, session: Inside, server: int) -> None:
    """300 connections of one program, not waited for one by one, and none is lost."""
    text = (
        "import asyncio, sys\n"
        "async def one():\n"
        "    reader, writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))\n"
        "    writer.write(b'hello')\n"
        "    assert await reader.readexactly(5) == b'hello'\n"
        "    writer.close()\n"
        "async def main(): await asyncio.gather(*(one() for _ in range(300)))\n"
        "asyncio.run(main())\n"
        "print('done')"
    )
    words = [portwrap.python, "-c", text, SERVER, str(server)]
    result = run_as(OWNER, [*in_sandbox(portwrap), "--outward", "native", *words], seconds=60)
    assert (result.stdout, result.stderr) == ("done\n", "")
