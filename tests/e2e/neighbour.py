#!/usr/bin/env python3
"""Another account on the node, which tries everything. Standard library only: it runs there.

    neighbour.py look                    facts as JSON on standard input; one answer per attempt
    neighbour.py touch                   the same for what is nobody's but the owner's
    neighbour.py listen ADDRESS PORT     its port, then whatever was sent to it
    neighbour.py wait ADDRESS            its UDP port, then who has sent a datagram there; it is
                                         answered at the end
    neighbour.py send TEXT PORT ADDRESS ...
                                         sends datagrams to this port of these addresses
    neighbour.py watch UID               takes each port that this user begins to listen on
    neighbour.py flood KIND HOST PORT N S
                                         holds N connections of a kind, begun within S seconds

All but the first two and `send` say when they are ready by one line, and end with their standard
input. Answers are words for people: the tests compare them, and print them as a table.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

SECONDS = 10.0  # what is refused is refused at once
TCP_LISTEN = "0A"  # proc(5), /proc/net/tcp
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
ERROR_OF = socket.SOL_SOCKET, socket.SO_ERROR
SQUAT = Path(__file__).with_name("squat.py")
EVERY_ADDRESS = ("0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0")

Facts = Any


# ---- look ---------------------------------------------------------------------------------------


def look(facts: Facts) -> dict[str, str]:
    """Try everything once. `facts` is what the owner knows of her own session: the neighbour gets
    it all told, so that nothing is safe only because it was not found."""
    mine = addresses_of_the_node()
    pids = processes_of(facts["uid"])
    return {
        "a list of her ports": found(listening(facts["uid"]), facts),
        "a list of them by her processes' /proc": found(listening_beside(pids), facts),
        "her application": read_at(mine, [facts["application"]], facts["secret"]),
        "her kernel's ports": connected(mine, facts["kernel"]),
        "her server on 127.0.0.1": read_at(mine, [facts["127.0.0.1"]], facts["page"]),
        "her server on 0.0.0.0": read_at(mine, [facts["0.0.0.0"]], facts["page"]),
        "her server on ::1": read_at(mine, [facts["::1"]], facts["page"]),
        "her server on a published port": read_at(mine, [facts["published"]], facts["page"]),
        "her server on ::": read_at(mine, [facts["::"]], facts["page"]),
        "whatever else listens": read_at(mine, others(facts), facts["page"]),
        "her UDP ports": asked_by_datagram(mine, facts["udp"], facts["page"]),
        "her abstract socket": read_unix("\0" + facts["abstract"], facts["page"]),
        "her socket file, mode 777": read_unix(facts["open file"], facts["page"]),
        "every abstract socket there is": read_any_abstract(facts["page"]),
        "her Jupyter server": asked_as_nobody(facts["host port"], facts["path"]),
        "her command lines": counted(pids, lambda pid: read(pid, "cmdline")),
        **touch(facts),
    }


def touch(facts: Facts) -> dict[str, str]:
    """What is for herself: she runs this, too, to see that it can be done."""
    pids = [pid for pid in processes_of(facts["uid"]) if pid != os.getpid()]
    return {
        "her socket file, mode 600": read_unix(facts["closed file"], facts["page"]),
        "her environment": counted(pids, lambda pid: read(pid, "environ")),
        "her memory": counted(pids, lambda pid: open(f"/proc/{pid}/mem", "rb").close()),
        "her open files": counted(pids, lambda pid: os.listdir(f"/proc/{pid}/fd")),
        "her folders by /proc": counted(pids, lambda pid: os.listdir(f"/proc/{pid}/cwd")),
        "her namespaces": counted(pids, lambda pid: os.readlink(f"/proc/{pid}/ns/net")),
        "entering them": counted(pids, enter_namespaces),
        "tracing her processes": counted(pids, trace),
        "signals to her processes": counted(pids, lambda pid: os.kill(pid, signal.SIGURG)),
    }


def addresses_of_the_node() -> list[str]:
    """Every address that a program here can be asked to connect to."""
    lines = subprocess.check_output(["ip", "-o", "address", "show"], text=True).splitlines()
    return [line.split()[3].partition("/")[0] for line in lines if "scope link" not in line]


def processes_of(uid: int) -> list[int]:
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            if int(status.partition("\nUid:\t")[2].split()[0]) == uid:
                found.append(pid)
    return found


def listening(uid: int) -> set[int]:
    """The TCP ports of this node that the user listens on."""
    return in_tables("/proc/net", uid)


def listening_beside(pids: list[int]) -> set[int]:
    """The TCP ports that are listened on in the networks of these processes."""
    return set().union(*(in_tables(f"/proc/{pid}/net") for pid in pids))


def in_tables(folder: str, uid: int | None = None) -> set[int]:
    """proc(5), /proc/net/tcp: local address and port, then the peer's, then the state."""
    found = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"{folder}/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == TCP_LISTEN and uid in (None, int(fields[7])):
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def found(ports: set[int], facts: Facts) -> str:
    return "reached" if ports.intersection([facts["application"], *facts["kernel"]]) else "no"


def others(facts: Facts) -> list[int]:
    return sorted(listening(facts["uid"]) - {facts["host port"], facts["published"]})


def tried(attempts: Iterable[Callable[[], bool]]) -> str:
    """Whether any of these attempts gets what it is after."""
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(lambda attempt: attempt(), attempts))
    return "reached" if any(results) else "no"


def read_at(addresses: list[str], ports: list[int], page: str) -> str:
    return tried(
        (lambda a=address, p=port: page in asked(a, p))  # type: ignore[misc]
        for address in addresses
        for port in ports
    )


def asked(address: str, port: int, path: str = "/") -> str:
    """What a server answers to a request; "" for nothing."""
    try:
        connection = socket.create_connection((address, port), timeout=SECONDS)
    except OSError:
        return ""
    with connection:
        return read_answer(connection, f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")


def read_answer(connection: socket.socket, request: str) -> str:
    answer = b""
    with contextlib.suppress(OSError):
        connection.settimeout(SECONDS)
        connection.sendall(request.encode())
        while len(answer) < 65536:
            data = connection.recv(65536)
            if not data:
                break
            answer += data
    return answer.decode("utf-8", "replace")


def connected(addresses: list[str], ports: list[int]) -> str:
    def attempt(address: str, port: int) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), timeout=SECONDS).close()
            return True
        return False

    return tried(
        (lambda a=address, p=port: attempt(a, p))  # type: ignore[misc]
        for address in addresses
        for port in ports
    )


def asked_by_datagram(addresses: list[str], ports: list[int], page: str) -> str:
    def attempt(address: str, port: int) -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(SECONDS)
            with contextlib.suppress(OSError):
                client.connect((address, port))
                client.send(b"?")
                return page in client.recv(65536).decode()
        return False

    return tried(
        (lambda a=address, p=port: attempt(a, p))  # type: ignore[misc]
        for address in addresses
        for port in ports
    )


def read_unix(path: str, page: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        with contextlib.suppress(OSError):
            client.connect(path)
            return "reached" if page in read_answer(client, "GET / HTTP/1.0\r\n\r\n") else "no"
    return "no"


def read_any_abstract(page: str) -> str:
    """unix(7): a name in /proc/net/unix that begins with @ is an abstract one."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    names = {words[7] for words in (line.split() for line in lines) if len(words) > 7}
    abstract = ["\0" + name[1:] for name in names if name.startswith("@")]
    return tried((lambda n=name: read_unix(n, page) == "reached") for name in abstract)  # type: ignore[misc]


def asked_as_nobody(port: int, path: str) -> str:
    """The Jupyter server's answer to somebody who is not logged in."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    except ConnectionResetError:
        return "reset"
    except OSError as error:
        return os.strerror(error.errno or 0)
    with connection:
        answer = read_answer(connection, f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")
    status = answer.split(" ")[1] if answer.startswith("HTTP/") else ""
    return "asked to log in" if status in ("302", "403") else status or "reset"


def counted(pids: list[int], attempt: Callable[[int], Any]) -> str:
    """Whether this can be done to any of the processes."""
    for pid in pids:
        with contextlib.suppress(OSError):
            attempt(pid)
            return "reached"
    return "no"


def read(pid: int, name: str) -> bytes:
    """A file of /proc; one that is readable but empty says nothing."""
    content = Path(f"/proc/{pid}/{name}").read_bytes()
    if not content:
        raise OSError("empty")
    return content


def enter_namespaces(pid: int) -> None:
    for flags in (["-n"], ["-U", "-n", "--preserve-credentials"]):
        result = subprocess.run(["nsenter", "-t", str(pid), *flags, "true"], capture_output=True)
        if result.returncode == 0:
            return
    raise OSError("refused")


def trace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0x40000000)  # __WALL
    libc.ptrace(PTRACE_DETACH, pid, None, None)


# ---- the others ---------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


def until_the_end() -> None:
    """Wait for the end of standard input."""
    sys.stdin.read()


def listen(address: str, port: int) -> None:
    """GHSA-q52h-2389-h4hv: a port that a neighbour listens on, and waits for visitors."""
    heard: list[str] = []
    try:
        server = socket.create_server((address, port))
    except OSError as error:  # somebody has it
        say(errno.errorcode[error.errno or 0])
        until_the_end()
        say("[]")
        return
    with server:

        def serve() -> None:
            while True:
                with contextlib.suppress(OSError), server.accept()[0] as visitor:
                    visitor.settimeout(SECONDS)
                    heard.append(visitor.recv(65536).decode("latin-1"))
                    visitor.sendall(b"HTTP/1.0 200 OK\r\n\r\na page of the neighbour's")

        threading.Thread(target=serve, daemon=True).start()
        say(str(server.getsockname()[1]))
        until_the_end()
    say(json.dumps(heard))


def wait_for_datagram(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((address, 0))
        say(str(client.getsockname()[1]))
        _, sender = client.recvfrom(99)
        say(json.dumps(sender))
        until_the_end()
        client.sendto(b"answer", sender)
        say("answered")


def send_datagrams(text: str, port: int, addresses: list[str]) -> None:
    """From any port: whoever listens is not asked to have written to it."""
    for source in ("127.0.0.1", ""):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((source, 0))
            for address in addresses:
                with contextlib.suppress(OSError):  # no way leads from 127.0.0.1 to other hosts
                    client.sendto(text.encode(), (address, port))


def squat(port: int) -> list[Any]:
    """The ways in which this port can be taken."""
    addresses = [*EVERY_ADDRESS, *addresses_of_the_node()]
    words = [sys.executable, "-I", "-S", str(SQUAT), str(port), *addresses]
    found: list[Any] = json.loads(subprocess.check_output(words))
    return found


def watch(uid: int) -> None:
    """Take whatever port the user begins to listen on, at once and as long as she does."""
    before = listening(uid)
    taken: dict[int, list[Any]] = {}
    say("ready")
    last = False
    while not last:
        last = bool(select.select([sys.stdin], [], [], 0)[0])
        for port in listening(uid) - before:
            taken[port] = squat(port) or taken.get(port, [])
    say(json.dumps(taken))


def flood(kind: str, host: str, port: int, count: int, seconds: float) -> None:
    """Hold connections, as far as we are let; the slow requests, the resets and the garbage go on
    and on. Nothing waits here: a server that is full must not slow its attacker down."""
    sockets = [dial(host, port) for _ in range(count)]
    until = time.monotonic() + seconds
    while time.monotonic() < until and not all(map(is_answered, sockets)):
        time.sleep(0.05)
    begun = sum(map(is_begun, sockets))
    for client in sockets:
        begin(kind, client)
    say(f"{begun} connections")
    for turn in turns():
        for number in range(turn % 10, len(sockets), 10):
            if kind in ("garbage", "resets"):
                sockets[number].close()
                sockets[number] = dial(host, port)
            begin(kind, sockets[number])
    for client in sockets:
        client.close()


def dial(host: str, port: int) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex((host, port))
    return client


def is_answered(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLOUT)
    return bool(poll.poll(0))


def is_begun(client: socket.socket) -> bool:
    """Whether there was a connection, even if it has been reset since."""
    return is_answered(client) and client.getsockopt(*ERROR_OF) in (
        0,
        errno.ECONNRESET,
        errno.EPIPE,
    )


def begin(kind: str, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        if kind == "slow requests":
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: ")
        elif kind == "garbage":
            client.send(os.urandom(1024))
        elif kind == "resets":
            # socket(7), SO_LINGER: the other end sees a reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()


def turns() -> Iterator[int]:
    """Numbers until the end of standard input, ten a second at most."""
    number = 0
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        yield number
        number += 1


def main() -> None:
    command, *rest = sys.argv[1:]
    if command in ("look", "touch"):
        tried = {"look": look, "touch": touch}[command]
        say(json.dumps(tried(json.load(sys.stdin))))
    elif command == "listen":
        listen(rest[0], int(rest[1]))
    elif command == "wait":
        wait_for_datagram(rest[0])
    elif command == "send":
        send_datagrams(rest[0], int(rest[1]), rest[2:])
    elif command == "watch":
        watch(int(rest[0]))
    elif command == "flood":
        flood(rest[0], rest[1], int(rest[2]), int(rest[3]), float(rest[4]))


if __name__ == "__main__":
    main()
