"""A server that comes to its listening socket in one of many ways: server.py WAY ADDRESS PORT.

It says "listening PORT" on standard output, with the port that its socket tells, and answers each
client with one JSON object: who serves, and what addresses the connection has.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from typing import NoReturn

WAY, ADDRESS, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
GAP = 0.002
"""Seconds in which a server that has ended its listening does something else."""
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def bound(port: int = PORT) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, ADDRESS != "::")
    if WAY == "reuseport":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((ADDRESS, port))
    return made


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def serve_one(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    answer(connection)


def answer(connection: socket.socket) -> None:
    with connection:
        facts = {
            "pid": os.getpid(),
            "peer": connection.getpeername()[:2],
            "own": connection.getsockname()[:2],
            "keepalive": connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            "keepidle": connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            "nodelay": connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            "receive": connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        }
        connection.sendall(json.dumps(facts).encode())


def serve(listener: socket.socket) -> NoReturn:
    say(f"listening {listener.getsockname()[1]}")
    while True:
        serve_one(listener)


# ---- ways that end with a socket to serve from ------------------------------------------------


def plain() -> socket.socket:
    made = bound()
    made.listen()
    return made


def settings() -> socket.socket:
    made = bound()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20000)
    made.listen()
    return made


def inheritable() -> socket.socket:
    made = bound()
    made.set_inheritable(True)
    made.listen()
    return made


def mptcp() -> socket.socket:
    """As Go's servers do: MPTCP, which serves plain TCP, too."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
    made.bind((ADDRESS, PORT))
    made.listen()
    return made


def twice() -> socket.socket:
    made = plain()
    made.listen(7)
    return made


def reexec() -> socket.socket:
    if "REEXEC" in os.environ:
        return socket.socket(fileno=int(os.environ["REEXEC"]))
    made = plain()
    made.set_inheritable(True)
    os.environ["REEXEC"] = str(made.fileno())
    os.execv(sys.executable, [sys.executable, "-I", "-S", *sys.argv])


def child() -> socket.socket:
    made = plain()
    if os.fork() > 0:
        signal.pause()
    return made


def orphan() -> socket.socket:
    """The process that called listen ends; its child serves on."""
    made = plain()
    if os.fork() > 0:
        os._exit(0)
    return made


def sent() -> socket.socket:
    """Handed to an unrelated process in a message, and closed here."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        return received(theirs)
    with plain() as made:
        send(ours, made)
    signal.pause()
    raise AssertionError


def send(channel: socket.socket, made: socket.socket) -> None:
    rights = array.array("i", [made.fileno()])
    channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def received(channel: socket.socket) -> socket.socket:
    _, ancillary, _, _ = channel.recvmsg(1, 64)
    return socket.socket(fileno=array.array("i", ancillary[0][2])[0])


def in_flight() -> socket.socket:
    """In a message while listen is called; who receives it serves, the sender does not."""
    ours, theirs = socket.socketpair()
    made = bound()
    send(ours, made)
    made.listen()
    if os.fork() > 0:
        signal.pause()
    made.close()
    return received(theirs)


def in_flight_unread() -> socket.socket:
    """In a message that nobody receives; the sender serves."""
    kept.extend(socket.socketpair())
    made = bound()
    send(kept[0], made)
    made.listen()
    return made


def in_flight_unaccepted() -> socket.socket:
    """In a message on a connection that has not been accepted."""
    channel, ours = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    channel.bind("")
    channel.listen()
    ours.connect(channel.getsockname())
    made = bound()
    send(ours, made)
    made.listen()
    if os.fork() > 0:
        signal.pause()
    made.close()
    return received(channel.accept()[0])


kept: list[socket.socket] = []


def thread() -> socket.socket:
    """The thread that called listen ends."""
    made = bound()
    starter = threading.Thread(target=made.listen)
    starter.start()
    starter.join()
    return made


def unreadable() -> socket.socket:
    """As a program is that has held secrets: /proc shows its descriptors to root only."""
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    return plain()


def duplicate() -> socket.socket:
    made = bound()
    other = made.dup()
    made.listen()
    return other


def shared() -> socket.socket:
    made = bound()
    if os.fork() > 0:
        signal.pause()
    made.listen()
    return made


def shared_unseen() -> socket.socket:
    """As `shared`, with a process whose descriptors /proc shows to root only."""
    made = bound()
    ready, ready_end = socket.socketpair()
    if os.fork() > 0:
        ready.recv(1)
        made.listen()
        ready.send(b"x")
        signal.pause()
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    ready_end.send(b"x")
    ready_end.recv(1)
    return made


def unlistened() -> socket.socket:
    """Bound, and never listening."""
    bound()
    say("bound")
    signal.pause()
    raise AssertionError


# ---- ways with a loop of their own --------------------------------------------------------------


def nonblocking() -> None:
    made = bound()
    made.setblocking(False)
    made.listen()
    say(f"listening {made.getsockname()[1]}")
    while True:
        select.select([made], [], [])
        try:
            while True:  # would wait here for ever if it blocked
                serve_one(made)
        except BlockingIOError:
            pass


def again() -> None:
    """A new socket after each client, as a server that is reloaded."""
    while True:
        with plain() as made:
            say(f"listening {made.getsockname()[1]}")
            serve_one(made)


def shut() -> None:
    """As `again`, by shutdown(2), which ends the listening of every holder."""
    while True:
        with plain() as made:
            say(f"listening {made.getsockname()[1]}")
            serve_one(made)
            made.shutdown(socket.SHUT_RDWR)
        time.sleep(GAP)


def shut_and_listen() -> None:
    """On the same socket again, which is still bound."""
    made = plain()
    while True:
        say(f"listening {made.getsockname()[1]}")
        serve_one(made)
        made.shutdown(socket.SHUT_RDWR)
        time.sleep(GAP)
        made.listen()


def shut_and_keep() -> None:
    """On a new socket, beside the old one, which is shut but not closed."""
    kept = []
    while True:
        kept.append(plain())
        say(f"listening {kept[-1].getsockname()[1]}")
        serve_one(kept[-1])
        kept[-1].shutdown(socket.SHUT_RDWR)


def shut_down() -> None:
    """Its listening is over, and so is it."""
    made = plain()
    say(f"listening {made.getsockname()[1]}")
    sys.stdin.read(1)
    made.shutdown(socket.SHUT_RDWR)


def move() -> None:
    """From one address family to the other after each client."""
    global ADDRESS
    while True:
        with plain() as made:
            say(f"listening {made.getsockname()[1]}")
            serve_one(made)
        ADDRESS = "::1" if ADDRESS == "127.0.0.1" else "127.0.0.1"


def prefork() -> None:
    made = plain()
    for _ in range(3):
        if os.fork() == 0:
            serve(made)
    signal.pause()


def both() -> None:
    """Two sockets, as most servers that are told a name such as localhost."""
    global ADDRESS
    listeners = []
    for address in ADDRESS.split("+"):
        ADDRESS = address
        listeners.append(plain())
    say(f"listening {listeners[0].getsockname()[1]}")
    while True:
        for listener in select.select(listeners, [], [])[0]:
            serve_one(listener)


def epoll_first(events: int = select.EPOLLIN, watched: int = 1) -> None:
    """In epolls before it listens; each of them reports each client."""
    made = bound()
    made.setblocking(False)
    epolls = [select.epoll() for _ in range(watched)]
    for epoll in epolls:
        epoll.register(made, events)
        epoll.poll(0)  # what there is before
    made.listen()
    say(f"listening {made.getsockname()[1]}")
    while True:
        for epoll in epolls:
            while not epoll.poll()[0][1] & select.EPOLLIN:
                pass
        serve_waiting(made)


def serve_waiting(made: socket.socket) -> None:
    try:
        while True:
            serve_one(made)
    except BlockingIOError:
        pass


def epoll_first_edge() -> None:
    epoll_first(select.EPOLLIN | select.EPOLLET)


def epoll_first_twice() -> None:
    epoll_first(watched=2)


def epoll_first_exclusive() -> None:
    epoll_first(select.EPOLLIN | select.EPOLLEXCLUSIVE)


def epoll_first_with_data() -> None:
    """Its own data, and not its file descriptor, are what it knows the socket by."""
    made, data = bound(), 0x1234567890ABCDEF
    epoll = select.epoll()
    layout = "=IQ" if os.uname().machine == "x86_64" else "=I4xQ"
    event = struct.pack(layout, select.EPOLLIN, data)
    checked(libc.epoll_ctl(epoll.fileno(), 1, made.fileno(), event))
    made.listen()
    say(f"listening {made.getsockname()[1]}")
    buffer = ctypes.create_string_buffer(16)
    while True:
        while libc.epoll_wait(epoll.fileno(), buffer, 1, -1) != 1:
            pass
        if struct.unpack_from(layout, buffer.raw) == (select.EPOLLIN, data):
            serve_one(made)


def epoll_first_waiting() -> None:
    """A thread waits in the epoll already while another one calls listen."""
    made = bound()
    made.setblocking(False)
    epoll = select.epoll()
    epoll.register(made, select.EPOLLIN | select.EPOLLET)
    epoll.poll(0)

    def serve_events() -> None:
        while True:
            if epoll.poll()[0][1] & select.EPOLLIN:
                serve_waiting(made)

    threading.Thread(target=serve_events).start()
    made.listen()
    say(f"listening {made.getsockname()[1]}")


def signal_driven() -> None:
    made = bound()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    fcntl.fcntl(made, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(made, fcntl.F_SETFL, fcntl.fcntl(made, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    made.listen()
    say(f"listening {made.getsockname()[1]}")
    while True:
        try:
            while True:
                serve_one(made)
        except BlockingIOError:
            signal.sigwait([signal.SIGIO])


# ---- io_uring (linux/io_uring.h) ----------------------------------------------------------------

SETUP, ENTER, REGISTER = 425, 426, 427
REGISTER_FILES = 2
ACCEPT, LISTEN = 13, 57
ENTER_GETEVENTS = 1
FIXED_FILE = 1


class Ring:
    """One request at a time through an io_uring."""

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(120)
        self.descriptor = checked(libc.syscall(SETUP, 4, parameters))
        entries = struct.unpack_from("=2I", parameters)
        self.sq = struct.unpack_from("=7I", parameters, 40)
        self.cq = struct.unpack_from("=7I", parameters, 80)
        size = max(self.sq[6] + 4 * entries[0], self.cq[5] + 16 * entries[1])
        self.rings = mmap.mmap(self.descriptor, size)
        self.entries = mmap.mmap(self.descriptor, 64 * entries[0], offset=0x10000000)

    def request(self, operation: int, descriptor: int, length: int = 0, flags: int = 0) -> int:
        """Have the kernel carry it out and return its result. Raises OSError."""
        tail = self.word(self.sq[1])
        entry = struct.pack("=BBHiQQI", operation, flags, 0, descriptor, 0, 0, length)
        self.entries[:64] = entry.ljust(64, b"\0")
        struct.pack_into("=I", self.rings, self.sq[6] + 4 * (tail & self.word(self.sq[2])), 0)
        struct.pack_into("=I", self.rings, self.sq[1], tail + 1)
        checked(libc.syscall(ENTER, self.descriptor, 1, 1, ENTER_GETEVENTS, None, 0))
        head = self.word(self.cq[0])
        place = self.cq[5] + 16 * (head & self.word(self.cq[2]))
        (result,) = struct.unpack_from("=i", self.rings, place + 8)
        struct.pack_into("=I", self.rings, self.cq[0], head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return int(result)

    def word(self, place: int) -> int:
        return int(struct.unpack_from("=I", self.rings, place)[0])


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def uring_listen() -> socket.socket:
    made = bound()
    Ring().request(LISTEN, made.fileno(), 16)
    return made


def uring_registered() -> None:
    """The ring holds the socket itself, under a number of its own."""
    made, ring = bound(), Ring()
    files = (ctypes.c_int * 1)(made.fileno())
    checked(libc.syscall(REGISTER, ring.descriptor, REGISTER_FILES, files, 1))
    made.listen()
    say(f"listening {made.getsockname()[1]}")
    while True:
        answer(socket.socket(fileno=ring.request(ACCEPT, 0, 0, FIXED_FILE)))


if __name__ == "__main__":
    listener = globals()[WAY.replace("-", "_") if WAY != "reuseport" else "plain"]()
    serve(listener)
