"""What programs do with connect(2), case by case: connect_cases.py SETTINGS [CASE ...].

Each case runs in a process of its own and prints one JSON line: its name, what it saw, whether the
socket is of another network namespace than the process, and whether the server saw the socket's own
address.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from typing import Any, Callable, NoReturn

SETTINGS: dict[str, Any] = json.loads(sys.argv[1])
SERVER, SERVER6, HOST = SETTINGS["server"], SETTINGS["server6"], SETTINGS["host"]
SECOND = SETTINGS["second"]
ECHO, FULL, REFUSED = SETTINGS["echo"], SETTINGS["full"], SETTINGS["refused"]
UNREACHABLE = SETTINGS["unreachable"]
LIMIT = 10
AT_ONCE = 8
SO_NETNS_COOKIE, MPTCP, MSG_FASTOPEN, TCP_FASTOPEN_CONNECT = 71, 262, 0x20000000, 30
IP_BIND_ADDRESS_NO_PORT, PR_SET_DUMPABLE = 24, 4
TCP_SYN_SENT = b"\2"  # what TCP_INFO begins with
CLONE_FILES, CLONE_NEWUSER, CLONE_NEWNET = 0x400, 0x10000000, 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
Case = Callable[[], Any]
CASES: dict[str, Case] = {}
sockets: list[socket.socket] = []
natives: list[bool] = []  # of those that have talked
names: list[bool] = []  # whether the server saw the address that they have


def case(function: Case) -> Case:
    CASES[function.__name__.replace("_", "-")] = function
    return function


# ---- helpers -----------------------------------------------------------------------------------


def new(family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM, protocol)
    sockets.append(made)
    return made


def attempt(action: Callable[..., Any], *arguments: Any) -> str:
    """The name of the error, or "ok"."""
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


def connect(made: socket.socket, address: str = SERVER, port: int = ECHO) -> str:
    return attempt(made.connect, (address, port))


def talk(made: socket.socket) -> str:
    """What the server sends back, or the error."""
    try:
        return exchange(made)
    except OSError as error:
        if error.errno is None:  # it took too long
            raise
        return errno.errorcode[error.errno]


def exchange(made: socket.socket) -> str:
    """Bytes go to and fro. The server sends first what it sees of us."""
    made.settimeout(LIMIT)
    line = b""
    while not line.endswith(b"\n"):
        line += made.recv(1) or b"[]\n"
    natives.append(is_native(made))
    address, port = made.getsockname()[:2]
    names.append(json.loads(line) == [address.replace("::ffff:", ""), port])
    made.sendall(b"hello")
    return made.recv(5, socket.MSG_WAITALL).decode()


def own_server(address: str = "127.0.0.1", family: int = socket.AF_INET) -> int:
    """The port of a server in this process, which answers as the one outside."""
    listener = new(family)
    listener.bind((address, 0))
    listener.listen()

    def serve() -> None:
        while True:
            made, peer = listener.accept()
            made.sendall(json.dumps(peer[:2]).encode() + b"\n")
            made.sendall(made.recv(5, socket.MSG_WAITALL))

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def peer(made: socket.socket) -> list[Any]:
    """The address that it is connected to, and whether that has the server's port."""
    address, port = made.getpeername()
    return [address, port == ECHO]


def cookie(made: socket.socket) -> bytes:
    return made.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)


def is_native(made: socket.socket) -> bool:
    with socket.socket() as other:
        return cookie(made) != cookie(other)


def wait_for(made: socket.socket, events: int) -> list[str]:
    """The events of poll(2), by name."""
    poll = select.poll()
    poll.register(made, events)
    return names_of(dict(poll.poll(1000 * LIMIT)).get(made.fileno(), 0))


def names_of(events: int) -> list[str]:
    names = {"IN": 1, "OUT": 4, "ERR": 8, "HUP": 16, "RDHUP": 0x2000}
    return [name for name, bit in names.items() if events & bit]


def raw_connect(number: int, address: Any, length: int) -> str:
    if libc.connect(number, address, length) == 0:
        return "ok"
    return errno.errorcode[ctypes.get_errno()]


def sockaddr(address: str = SERVER, port: int = ECHO) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(address)


# ---- addresses ---------------------------------------------------------------------------------


@case
def outside() -> Any:
    made = new()
    return [connect(made), talk(made)]


@case
def outside_ipv6() -> Any:
    made = new(socket.AF_INET6)
    return [connect(made, SERVER6), talk(made)]


@case
def outside_mapped() -> Any:
    made = new(socket.AF_INET6)
    return [connect(made, f"::ffff:{SERVER}"), talk(made)]


@case
def mapped_on_a_socket_of_ipv6_only() -> Any:
    made = new(socket.AF_INET6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return connect(made, f"::ffff:{SERVER}")


@case
def the_hosts_own_address() -> Any:
    made = new()
    return [connect(made, HOST, SETTINGS["at_host"]), talk(made)]


@case
def loopback() -> Any:
    made = new()
    return [connect(made, "127.0.0.1", own_server()), talk(made)]


@case
def loopback_ipv6() -> Any:
    made = new(socket.AF_INET6)
    return [connect(made, "::1", own_server("::1", socket.AF_INET6)), talk(made)]


@case
def loopback_mapped() -> Any:
    made = new(socket.AF_INET6)
    return [connect(made, "::ffff:127.0.0.1", own_server()), talk(made)]


@case
def every_address() -> Any:
    made = new()
    return [connect(made, "0.0.0.0", own_server()), talk(made)]


@case
def every_address_ipv6() -> Any:
    made = new(socket.AF_INET6)
    return [connect(made, "::", own_server("::", socket.AF_INET6)), talk(made)]


@case
def a_group() -> Any:
    return connect(new(), "224.0.0.1")


@case
def unreachable() -> Any:
    return connect(new(), UNREACHABLE)


@case
def names_before_and_after() -> Any:
    made = new()
    before = made.getsockname(), attempt(made.getpeername)
    connect(made)
    return [before, made.getsockname()[1] != 0, peer(made), talk(made)]


# ---- refused -----------------------------------------------------------------------------------


def refused(made: socket.socket) -> str:
    return connect(made, port=REFUSED)


@case
def refused_once() -> Any:
    made = new()
    return [refused(made), made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]


@case
def refused_then_outside() -> Any:
    made = new()
    return [refused(made), connect(made), talk(made)]


@case
def refused_then_loopback() -> Any:
    made = new()
    return [refused(made), connect(made, "127.0.0.1", own_server()), talk(made)]


@case
def refused_then_listen() -> Any:
    made = new()
    return [refused(made), attempt(made.listen), made.getsockname()[0], reaches(made)]


@case
def refused_then_bind_and_listen() -> Any:
    made = new()
    told = [refused(made), attempt(made.bind, ("127.0.0.1", 0)), attempt(made.listen)]
    return [*told, made.getsockname()[0], reaches(made)]


def reaches(listener: socket.socket) -> str:
    """Whether a client of this process gets to this socket of it."""
    return connect(new(), "127.0.0.1", listener.getsockname()[1])


def refused_later() -> tuple[socket.socket, list[Any]]:
    """A socket whose connection was refused while nobody waited for it."""
    made = new()
    made.setblocking(False)
    told = [refused(made) in ("EINPROGRESS", "ECONNREFUSED"), wait_for(made, select.POLLOUT)]
    made.settimeout(None)
    return made, told


@case
def refused_later_then_outside() -> Any:
    made, told = refused_later()
    return [told, settle(made), connect(made), talk(made)]


def settle(made: socket.socket) -> str:
    """Connect until the error of the last attempt has been reported."""
    return str(made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED)) + (
        attempt(made.connect, (SERVER, REFUSED))
    )


@case
def refused_later_then_loopback() -> Any:
    made, told = refused_later()
    made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    port = own_server()
    first = connect(made, "127.0.0.1", port)
    if first != "ok":
        connect(made, "127.0.0.1", port)
    return [told, talk(made)]


@case
def refused_later_then_loopback_at_once() -> Any:
    """Nobody has asked what came of it: the next call is told."""
    made, told = refused_later()
    port = own_server()
    told.append(connect(made, "127.0.0.1", port))
    return [*told, connect(made, "127.0.0.1", port), talk(made)]


@case
def inside_refused_later_then_outside() -> Any:
    made, closed = new(), new()
    closed.bind(("127.0.0.1", 0))
    made.setblocking(False)
    told = [connect(made, "127.0.0.1", closed.getsockname()[1]) in ("EINPROGRESS", "ECONNREFUSED")]
    told.append(bool(wait_for(made, select.POLLOUT)))
    made.settimeout(None)
    return [*told, connect(made), connect(made), talk(made)]


@case
def refused_later_then_listen() -> Any:
    made, told = refused_later()
    return [told, attempt(made.listen), reaches(made)]


# ---- in progress -------------------------------------------------------------------------------


@case
def in_progress() -> Any:
    made = new()
    made.setblocking(False)
    told = [connect(made, port=FULL), connect(made, port=FULL), connect(made)]
    return [*told, attempt(made.getpeername), attempt(made.send, b"x"), attempt(made.listen)]


@case
def not_blocking() -> Any:
    made = new()
    made.setblocking(False)
    told = [connect(made) in ("EINPROGRESS", "ok"), wait_for(made, select.POLLOUT)]
    told += [made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
    finished = connect(made) in ("ok", "EISCONN")
    return [*told, finished, connect(made), made.getblocking(), talk(made)]


@case
def connected_twice() -> Any:
    made = new()
    return [connect(made), connect(made), connect(made, "127.0.0.1", 1), talk(made)]


@case
def loopback_in_progress_then_outside() -> Any:
    listener = new()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    for _ in range(3):
        made = new()
        made.setblocking(False)
        connect(made, "127.0.0.1", port)
    return connect(made)


@case
def in_progress_while_others_connect() -> Any:
    """Who waits for a connection within the sandbox holds up nobody."""
    made, address = slow_connection()
    threading.Thread(target=connect, args=[made], daemon=True).start()
    others = [new() for _ in range(20)]
    return [address, {connect(each) for each in others} == {"ok"}, talk(others[-1])]


def slow_connection() -> tuple[socket.socket, str]:
    """A blocking socket whose connection to the loopback is in progress, as the queue is full."""
    listener = new()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(3):
        made = new()
        made.setblocking(False)
        connect(made, "127.0.0.1", listener.getsockname()[1])
    made.settimeout(None)
    return made, made.getsockname()[0]


@case
def a_listening_socket() -> Any:
    made = new()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return [connect(made), reaches(made)]


@case
def send_timeout() -> Any:
    made = new()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 300000))
    begun = time.monotonic()
    said = connect(made, port=FULL)
    return [said in ("EINPROGRESS", "EALREADY"), 0.25 < time.monotonic() - begun < LIMIT]


@case
def disconnected_then_outside_then_loopback() -> Any:
    made = new()
    told = [connect(made), talk(made), raw_connect(made.fileno(), bytes(16), 16)]
    told += [attempt(made.getpeername), connect(made), talk(made)]
    told += [raw_connect(made.fileno(), bytes(16), 16)]
    return [*told, connect(made, "127.0.0.1", own_server()), talk(made)]


@case
def loopback_then_outside() -> Any:
    """What the first connection has left, such as the size of its segments, is no setting."""
    made = new()
    told = [connect(made, "127.0.0.1", own_server()), talk(made)]
    told += [raw_connect(made.fileno(), bytes(16), 16)]
    return [*told, connect(made), talk(made)]


@case
def disconnected_then_listening() -> Any:
    made = new()
    told = [connect(made), raw_connect(made.fileno(), bytes(16), 16), attempt(made.listen)]
    return [*told, reaches(made)]


def set_before_and_after(made: socket.socket) -> list[int]:
    """Options that were set before connecting, and since."""
    options = (socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)
    return [made.getsockopt(socket.IPPROTO_TCP, option) for option in options]


@case
def disconnected_with_settings() -> Any:
    made = new()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    told = [connect(made), raw_connect(made.fileno(), bytes(16), 16)]
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 11)
    told += [connect(made, "127.0.0.1", own_server()), talk(made)]
    return [*told, set_before_and_after(made)]


@case
def disconnected_that_does_not_block() -> Any:
    made = new()
    told: list[Any] = [connect(made), raw_connect(made.fileno(), bytes(16), 16)]
    made.setblocking(False)
    told += [begin(made, "127.0.0.1", own_server()), os.get_blocking(made.fileno())]
    return [*told, wait_for(made, select.POLLOUT), talk(made)]


@case
def disconnected_that_was_bound() -> Any:
    """It keeps its port, and is a server there."""
    made, port = new(), SETTINGS["own_ports"][0]
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    told = [connect(made), raw_connect(made.fileno(), bytes(16), 16), attempt(made.listen)]
    return [*told, made.getsockname()[1] == port, reaches(made)]


@case
def bound_while_connected() -> Any:
    made = new()
    return [connect(made), attempt(made.bind, ("127.0.0.1", 0)), talk(made)]


@case
def listening_while_connected() -> Any:
    made = new()
    return [connect(made), attempt(made.listen), talk(made)]


@case
def in_progress_outside_while_others_connect() -> Any:
    """Who waits for it, or asks for another connection meanwhile, holds up nobody."""
    made = new()
    for address, port in ((SERVER, FULL), ("127.0.0.1", 1)):
        threading.Thread(target=connect, args=[made, address, port], daemon=True).start()
        time.sleep(0.1)  # whichever comes first
    others = [new() for _ in range(20)]
    return [{connect(each) for each in others} == {"ok"}, talk(others[-1])]


@case
def many_threads_one_socket() -> Any:
    made = new()
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(connect(made))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = {"ok", "EISCONN", "EALREADY", "EINPROGRESS"}
    return ["ok" in said, not set(said) - known, talk(made)]


# ---- signals -----------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt_when_in_progress(made: socket.socket) -> None:
    """Send SIGALRM to this thread as soon as it has begun to connect this socket."""
    caller = threading.get_ident()

    def interrupt() -> None:
        while made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != TCP_SYN_SENT:
            time.sleep(0.01)
        signal.pthread_kill(caller, signal.SIGALRM)

    threading.Thread(target=interrupt, daemon=True).start()


@case
def interrupted() -> Any:
    """A handler that raises ends the wait."""
    made = new()

    def handler(*_: Any) -> NoReturn:
        raise Interrupted

    signal.signal(signal.SIGALRM, handler)
    interrupt_when_in_progress(made)
    try:
        made.connect((SERVER, FULL))
    except Interrupted:
        return ["interrupted", connect_at_once(made)]
    return "not interrupted"


def connect_at_once(made: socket.socket) -> str:
    made.setblocking(False)
    return connect(made, port=FULL)


@case
def interrupted_without_a_restart() -> Any:
    made = new()
    signal.signal(signal.SIGALRM, lambda *_: None)
    libc.siginterrupt(signal.SIGALRM, 1)
    interrupt_when_in_progress(made)
    address = sockaddr(port=FULL) + bytes(8)
    return [raw_connect(made.fileno(), address, 16), connect_at_once(made)]


@case
def interrupted_with_a_restart() -> Any:
    """The call goes on, and the server answers later."""
    made = new()
    caught = []
    signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
    libc.siginterrupt(signal.SIGALRM, 0)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 400000))
    address = sockaddr(port=FULL) + bytes(8)
    said = raw_connect(made.fileno(), address, 16)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return said in ("EINTR", "EINPROGRESS", "EALREADY")


# ---- bound before ------------------------------------------------------------------------------


@case
def bound_to_any() -> Any:
    made = new()
    made.bind(("0.0.0.0", 0))
    port = made.getsockname()[1]
    return [connect(made), made.getsockname()[1] == port, talk(made)]


@case
def bound_to_a_port() -> Any:
    made, port = new(), SETTINGS["own_ports"][1]
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    return [connect(made), made.getsockname()[1] == port, talk(made)]


@case
def bound_without_a_port() -> Any:
    made = new()
    made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    made.bind(("0.0.0.0", 0))
    return [made.getsockname(), connect(made), talk(made)]


@case
def bound_to_an_address_without_a_port() -> Any:
    """As `curl --interface ADDRESS` does it. No answer comes to this one."""
    made = new()
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    made.bind((SECOND, 0))
    return [connect(made), made.getsockname()[0]]


@case
def bound_to_the_loopback() -> Any:
    made = new()
    made.bind(("127.0.0.1", 0))
    return connect(made)


# ---- settings ----------------------------------------------------------------------------------

OPTIONS: list[tuple[int, int, Any]] = [
    # level, option, value
    (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
    (socket.IPPROTO_IP, socket.IP_TTL, 33),
    (socket.IPPROTO_IP, 10, 1),  # IP_MTU_DISCOVER
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
    (socket.SOL_SOCKET, socket.SO_PRIORITY, 3),
    (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
    (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 3),
    (socket.SOL_SOCKET, 60, 1),  # SO_ZEROCOPY
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 11),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_LINGER2, 20),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000),
    (socket.IPPROTO_TCP, 25, 16384),  # TCP_NOTSENT_LOWAT
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 30000),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 40000),
    (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 7)),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 5, 0)),
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 6, 0)),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
]


def values_of(made: socket.socket) -> list[Any]:
    found: list[Any] = []
    for level, option, value in OPTIONS:
        if isinstance(value, bytes):
            found.append(made.getsockopt(level, option, 16).hex())
        else:
            found.append(made.getsockopt(level, option))
    return found


@case
def options() -> Any:
    made = new()
    for option in OPTIONS:
        made.setsockopt(*option)
    before = values_of(made)
    said = connect(made)
    return [said, before, values_of(made) == before, made.getsockopt(socket.SOL_SOCKET, 72)]


@case
def options_that_nobody_set() -> Any:
    """As the host's own settings have them."""
    made = new()
    connect(made)
    return values_of(made)


@case
def options_ipv6() -> Any:
    made = new(socket.AF_INET6)
    rows = [(socket.IPV6_UNICAST_HOPS, 44), (socket.IPV6_TCLASS, 0x20), (socket.IPV6_DONTFRAG, 1)]
    for option, value in rows:
        made.setsockopt(socket.IPPROTO_IPV6, option, value)
    said = connect(made, SERVER6)
    return [said, [made.getsockopt(socket.IPPROTO_IPV6, option) for option, _ in rows]]


@case
def the_largest_segment() -> Any:
    made = new()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
    return [connect(made), made.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)]


@case
def time_stamps() -> Any:
    made = new()
    made.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
    return [connect(made), made.getsockopt(socket.SOL_SOCKET, 29), talk(made)]


@case
def another_mark() -> Any:
    made = new()
    return [attempt(made.setsockopt, socket.SOL_SOCKET, 36, 0), connect(made), talk(made)]


@case
def flags() -> Any:
    made = new()
    told = []
    for inheritable in (False, True):
        made = new()
        made.set_inheritable(inheritable)
        connect(made)
        told += [made.get_inheritable(), fcntl.fcntl(made, fcntl.F_GETFL), talk(made)]
    return told


@case
def connect_with_the_first_data() -> Any:
    """TCP_FASTOPEN_CONNECT: the connection begins with the first bytes, if the server agrees."""
    made = new()
    made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    return [connect(made), talk(made)]


@case
def mptcp() -> Any:
    made = new(protocol=MPTCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    told = [connect(made), made.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)]
    return [*told, made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), talk(made)]


@case
def mptcp_not_blocking() -> Any:
    made = new(protocol=MPTCP)
    made.setblocking(False)
    told = [connect(made) in ("EINPROGRESS", "ok"), wait_for(made, select.POLLOUT)]
    return [*told, talk(made)]


@case
def signal_driven() -> Any:
    made = new()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    fcntl.fcntl(made, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(made, fcntl.F_SETFL, fcntl.fcntl(made, fcntl.F_GETFL) | os.O_ASYNC)
    said = connect(made)
    return [said, signal.sigtimedwait([signal.SIGIO], LIMIT) is not None, talk(made)]


@case
def a_socket_filter() -> Any:
    made = new()
    code = ctypes.create_string_buffer(4 * struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF))
    program = struct.pack("@HP", 4, ctypes.addressof(code))
    told = attempt(made.setsockopt, socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
    return [told, connect(made), talk(made)]


# ---- who holds it ------------------------------------------------------------------------------


@case
def duplicated() -> Any:
    made = new()
    other = socket.socket(fileno=os.dup(made.fileno()))
    return [connect(made), attempt(other.getpeername), talk(other)]


@case
def shared_with_a_child() -> Any:
    made = new()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0 if talk(made) == "hello" else 1)
    said = connect(made)
    os.write(writing, b"x")
    return [said, os.waitpid(child, 0)[1]]


@case
def sent_to_itself() -> Any:
    """The other holder is a message."""
    made = new()
    ours, theirs = socket.socketpair()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", made.fileno()))
    ours.sendmsg([b"x"], [rights])
    said = connect(made)
    _, [(_, _, received)], _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
    [number] = struct.unpack("i", received)
    other = socket.socket(fileno=number)
    return [said, attempt(other.getpeername), talk(other)]


@case
def a_high_number() -> Any:
    made = new()
    os.dup2(made.fileno(), 950)
    made.close()
    sockets[-1] = made = socket.socket(fileno=950)
    return [connect(made), talk(made)]


@case
def standard_input() -> Any:
    made = new()
    os.dup2(made.fileno(), 0)
    made.close()
    sockets[-1] = made = socket.socket(fileno=0)
    return [connect(made), talk(made)]


@case
def of_another_thread() -> Any:
    made = new()
    said: list[Any] = []

    def run() -> None:
        said.extend([connect(made), talk(made)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return said


@case
def thread_with_descriptors_of_its_own() -> Any:
    said: list[Any] = []

    def run() -> None:
        libc.unshare(CLONE_FILES)
        made = new()
        epoll = select.epoll()
        made.setblocking(False)
        epoll.register(made, select.EPOLLOUT | select.EPOLLET)
        epoll.poll(0)
        said.append(connect(made) in ("EINPROGRESS", "ok"))
        said.append([names_of(event) for _, event in epoll.poll(LIMIT)])
        said.append(talk(made))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return said


@case
def epolls_of_threads_with_descriptors_of_their_own() -> Any:
    """Each has another one under the same number."""
    said: list[Any] = []
    turns = [threading.Event() for _ in range(3)]

    def one(epoll: select.epoll) -> None:
        made = new()
        made.setblocking(False)
        epoll.register(made, OUT | EDGE)
        epoll.poll(0)
        said.extend([begin(made), events_of(epoll), talk(made)])
        made.close()

    def run() -> None:
        libc.unshare(CLONE_FILES)
        epoll = select.epoll()
        one(epoll)
        turns[0].set()
        turns[1].wait(LIMIT)
        one(epoll)

    spare = [os.dup(0) for _ in range(20)]
    for each in spare:
        os.close(each)
    thread = threading.Thread(target=run)
    thread.start()
    turns[0].wait(LIMIT)
    for _ in range(5):
        os.dup(0)  # so that this one's number is another
    mine = select.epoll()
    one(mine)
    one(mine)
    turns[1].set()
    thread.join()
    return said


@case
def after_exec() -> Any:
    """A program that was started with vfork(2) or the like."""
    text = (
        "import socket, sys; made = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "sys.stdout.write(made.makefile().readline())"
    )
    reading, writing = os.pipe()
    words = [sys.executable, "-I", "-S", "-c", text, SERVER, str(ECHO)]
    child = os.posix_spawn(
        sys.executable, words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)]
    )
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    return [status, len(json.loads(os.read(reading, 1000)))]


@case
def unreadable() -> Any:
    """As a program is that has held secrets: /proc shows its descriptors to root only."""
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    made = new()
    return [connect(made), talk(made)]


@case
def in_namespaces_of_its_own() -> Any:
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return "no namespaces"
    return connect(new())


@case
def marked_in_namespaces_of_its_own() -> Any:
    """The mark by which we know our sockets is no secret."""
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return "no namespaces"
    made = new()
    os.fchmod(made.fileno(), 0o1777)
    told = [attempt(made.bind, ("0.0.0.0", 0)), attempt(made.listen)]
    natives.append(is_native(made))
    return [*told, natives[-1]]


@case
def in_a_user_namespace_of_its_own() -> Any:
    if libc.unshare(CLONE_NEWUSER) != 0:
        return "no namespace"
    made = new()
    return [connect(made), talk(made)]


# ---- epolls ------------------------------------------------------------------------------------

EDGE, ONESHOT = select.EPOLLET, select.EPOLLONESHOT
IN, OUT, RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP


def watched(events: int, data: int | None = None) -> tuple[socket.socket, select.epoll]:
    """A socket that is in an epoll before it connects."""
    made, epoll = new(), select.epoll()
    made.setblocking(False)
    event = struct.pack("=IQ" if os.uname().machine == "x86_64" else "=I4xQ", events, data or 0)
    if data is None:
        epoll.register(made, events)
    else:
        assert libc.epoll_ctl(epoll.fileno(), 1, made.fileno(), event) == 0
    return made, epoll


def begin(made: socket.socket, address: str = SERVER, port: int = ECHO) -> bool:
    return connect(made, address, port) in ("EINPROGRESS", "ok")


def events_of(epoll: select.epoll) -> list[list[str]]:
    return [names_of(events) for _, events in epoll.poll(LIMIT)]


@case
def epoll_level() -> Any:
    made, epoll = watched(OUT)
    told = [events_of(epoll), begin(made), events_of(epoll), events_of(epoll)]
    epoll.modify(made, IN)
    told.append(events_of(epoll))
    epoll.unregister(made)
    return [*told, talk(made)]


@case
def epoll_after_a_way_back() -> Any:
    """One entry, though somebody else has the socket that it had before."""
    made, epoll = watched(OUT)
    told = [begin(made), events_of(epoll), talk(made)]
    with made.dup():
        told += [raw_connect(made.fileno(), bytes(16), 16)]
        told += [begin(made, "127.0.0.1", own_server()), wait_for(made, select.POLLOUT)]
        told += [len(epoll.poll(0)), talk(made)]
    return told


@case
def epoll_edge() -> Any:
    made, epoll = watched(IN | OUT | RDHUP | EDGE)
    told = [events_of(epoll), epoll.poll(0) == [], begin(made)]
    seen: set[str] = set()
    while not {"IN", "OUT"} <= seen:
        seen.update(*events_of(epoll))
    return [*told, sorted(seen), talk(made)]


@case
def epoll_edge_that_nobody_has_looked_at() -> Any:
    made, epoll = watched(OUT | EDGE)
    return [begin(made), events_of(epoll), talk(made)]


@case
def epoll_with_data_of_its_own() -> Any:
    made, epoll = watched(OUT, 0x1234567890ABCDEF)
    told = [begin(made)]
    buffer = ctypes.create_string_buffer(16)
    told.append(libc.epoll_wait(epoll.fileno(), buffer, 1, 1000 * LIMIT) == 1)
    packed = "=IQ" if os.uname().machine == "x86_64" else "=I4xQ"
    return [*told, hex(struct.unpack_from(packed, buffer.raw)[1]), talk(made)]


@case
def epoll_oneshot() -> Any:
    made, epoll = watched(OUT | ONESHOT)
    told = [begin(made), events_of(epoll), epoll.poll(0) == []]
    epoll.modify(made, IN | ONESHOT)
    return [*told, events_of(epoll), epoll.poll(0) == [], talk(made)]


@case
def epoll_oneshot_used_up() -> Any:
    made, epoll = watched(OUT | ONESHOT)
    told = [events_of(epoll), begin(made), epoll.poll(0.2) == []]
    epoll.modify(made, OUT | ONESHOT)
    return [*told, events_of(epoll), talk(made)]


@case
def two_epolls() -> Any:
    made, epoll = watched(OUT)
    other = select.epoll()
    other.register(made, IN)
    return [begin(made), events_of(epoll), events_of(other), talk(made)]


@case
def many_epolls() -> Any:
    epolls = [select.epoll() for _ in range(20)]
    made, epoll = watched(OUT | EDGE)
    return [begin(made), events_of(epoll), talk(made), len(epolls)]


@case
def epoll_in_an_epoll() -> Any:
    made, epoll = watched(OUT)
    outer = select.epoll()
    outer.register(epoll, IN)
    return [begin(made), events_of(outer), events_of(epoll), talk(made)]


@case
def epoll_that_is_newer() -> Any:
    """The keeper has looked at this process before it made it."""
    first = new()
    told = [connect(first), talk(first)]
    made, epoll = watched(OUT | EDGE)
    return [*told, events_of(epoll), begin(made), events_of(epoll), talk(made)]


@case
def epoll_of_another_thread() -> Any:
    """One that waits in it, and never makes a call that anybody is told of."""
    found: list[Any] = []
    epoll = select.epoll()
    made = new()
    made.setblocking(False)
    epoll.register(made, OUT | EDGE)
    epoll.poll(0)

    def wait() -> None:
        found.append(events_of(epoll))

    thread = threading.Thread(target=wait)
    thread.start()
    said = begin(made)
    thread.join()
    return [said, found, talk(made)]


@case
def epoll_made_by_another_thread() -> Any:
    epolls: list[select.epoll] = []
    first = new()
    told = [connect(first), talk(first)]
    thread = threading.Thread(target=lambda: epolls.append(select.epoll()))
    thread.start()
    thread.join()
    made = new()
    made.setblocking(False)
    epolls[0].register(made, OUT | EDGE)
    epolls[0].poll(0)
    return [*told, begin(made), events_of(epolls[0]), talk(made)]


@case
def epoll_after_fork() -> Any:
    """A child has its parent's epoll, under the same number."""
    epoll = select.epoll()
    child = os.fork()
    if child == 0:
        made = new()
        made.setblocking(False)
        epoll.register(made, OUT | EDGE)
        epoll.poll(0)
        begin(made)
        fine = events_of(epoll) == [["OUT"]] and talk(made) == "hello"
        os._exit(0 if fine else 1)
    return os.waitpid(child, 0)[1]


@case
def epoll_and_refused() -> Any:
    made, epoll = watched(OUT | EDGE)
    epoll.poll(0)
    said = connect(made, port=REFUSED)
    seen = events_of(epoll) if said == "EINPROGRESS" else [["OUT", "ERR", "HUP"]]
    return [said in ("EINPROGRESS", "ECONNREFUSED"), seen]


@case
def poll_and_select() -> Any:
    made = new()
    made.setblocking(False)
    told = [wait_for(made, select.POLLOUT), begin(made), wait_for(made, select.POLLOUT)]
    return [*told, select.select([], [made], [], LIMIT)[1] == [made], talk(made)]


# ---- arguments ---------------------------------------------------------------------------------


@case
def a_long_address() -> Any:
    made = new()
    return [raw_connect(made.fileno(), sockaddr().ljust(128, b"\0"), 128), talk(made)]


@case
def an_address_of_odd_length() -> Any:
    made = new()
    return [raw_connect(made.fileno(), sockaddr().ljust(100, b"\0"), 100), talk(made)]


@case
def a_length_with_a_higher_half() -> Any:
    """The kernel takes an int."""
    made = new()
    number = {"x86_64": 42, "aarch64": 203}[os.uname().machine]
    address = ctypes.create_string_buffer(sockaddr() + bytes(8))
    words = [number, made.fileno(), ctypes.addressof(address), 16 | 1 << 40]
    return [libc.syscall(*map(ctypes.c_long, words)), talk(made)]


@case
def bad_lengths() -> Any:
    made = new()
    lengths = (-1, 0, 1, 2, 15, 129, 0x7FFFFFFF)
    return [raw_connect(made.fileno(), sockaddr().ljust(128, b"\0"), each) for each in lengths]


@case
def bad_pointers() -> Any:
    made = new()
    return [
        raw_connect(made.fileno(), None, 16),
        raw_connect(made.fileno(), ctypes.c_void_p(1), 16),
    ]


@case
def bad_descriptors() -> Any:
    numbers = [-1, 999, os.pipe()[0], os.open("/", os.O_PATH), os.open("/dev/null", os.O_RDWR)]
    return [raw_connect(number, sockaddr().ljust(16, b"\0"), 16) for number in numbers]


@case
def an_address_of_another_family() -> Any:
    four, six = new(), new(socket.AF_INET6)
    told = [attempt(raw_connect, four.fileno(), struct.pack("=H", 77).ljust(16, b"\0"), 16)]
    address = struct.pack("=HHI", 10, 0, 0) + socket.inet_pton(socket.AF_INET6, SERVER6) + bytes(4)
    told.append(raw_connect(four.fileno(), address, 28))
    told.append(raw_connect(six.fileno(), sockaddr().ljust(16, b"\0"), 16))
    return [*told, raw_connect(six.fileno(), sockaddr().ljust(28, b"\0"), 28)]


@case
def unix_sockets() -> Any:
    """Paths of every length, among them those of the lengths that are looked at."""
    told = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for length in (1, 13, 14, 15, 25, 26, 27, 107):
            listener, made = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            listener.bind("x" * length)
            listener.listen()
            told.append(attempt(made.connect, "x" * length))
    return told


@case
def datagrams() -> Any:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sockets.append(made)
    return [connect(made), peer(made), connect(made, "127.0.0.1"), peer(made)]


# ---- all of them -------------------------------------------------------------------------------


def run(name: str) -> None:
    """One case, in a child."""
    signal.alarm(2 * LIMIT)
    try:
        result = CASES[name]()
    except Exception:
        result = traceback.format_exc()
    if not natives and sockets:
        natives.append(is_native(sockets[-1]))
    native = natives[-1] if natives else None
    os.write(1, json.dumps([name, result, native, all(names)]).encode() + b"\n")


def main() -> None:
    """Some at a time: most of them wait."""
    waiting = list(sys.argv[2:] or CASES)
    running: dict[int, str] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = waiting.pop(0)
            child = os.fork()
            if child == 0:
                run(name)
                os._exit(0)
            running[child] = name
        child, status = os.wait()
        name = running.pop(child)
        if status:
            os.write(
                1, json.dumps([name, f"ended with status {status}", None, True]).encode() + b"\n"
            )


main()
