"""A session that starts programs, such as `programs/server.py`, and what these answer."""

from __future__ import annotations

import array
import json
import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from helpers import children_of, lives, state_of, wait_until
from sessions import KEEPER, Portwrap, Session, channel_pair, injected, kill, name_of

GUEST = 8888
LIMIT = 40.0
"""Seconds within which a client must have been answered: hanging is the fault to find."""
PIDFD_OPEN_CALL, PIDFD_GETFD_CALL = "434", "438"  # the same on all
EPOLL_CALL = {"x86_64": "232", "aarch64": "22"}.get(os.uname().machine, "")


def listening_inodes(pid: int, port: int) -> set[str]:
    """The sockets that listen on this TCP port where the process is, as /proc/PID/fd names them."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[1].endswith(f":{port:04X}") and words[3] == "0A":
                found.add(f"socket:[{words[9]}]")
    return found


def links_of(pid: int) -> set[str]:
    """What the descriptors of a process are."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    except OSError:
        pass
    return found


def forward_of(session: Session, port: int = 0) -> str:
    """How the server at this port of the host is served, by default at the host port: "native" if
    it holds the host's own socket."""
    host = listening_inodes(os.getpid(), port or session.port)
    ours = {pid for pid in session.alive() if name_of(pid).startswith("portwrap-")}
    others = session.alive() - ours - {session.driver}
    return "native" if any(host & links_of(pid) for pid in others) else "relay"


def ask(session: Session, address: str = "127.0.0.1", port: int = 0) -> dict[str, Any]:
    """What server.py answers at this port of the host, by default at the host port."""
    with socket.create_connection((address, port or session.port), timeout=LIMIT) as client:
        own = client.getsockname()[:2]
        facts = json.loads(read(client))
    facts["client"] = list(own)
    return dict(facts)


def ask_until_answered(
    session: Session, address: str = "127.0.0.1", port: int = 0
) -> dict[str, Any]:
    """`ask` where the server refuses clients at times, as it would without us."""

    def answer() -> dict[str, Any]:
        try:
            return ask(session, address, port)
        except ConnectionError:
            return {}

    return wait_until(answer, LIMIT, "an answer")


def address_of(place: list[Any]) -> tuple[str, int]:
    """A socket address, where a socket for both families has an IPv4 client."""
    return place[0].replace("::ffff:", ""), place[1]


def see_clients(answers: list[dict[str, Any]]) -> bool:
    """Whether each of these connections has the client's own address at the server. A relay's own
    one, in another network namespace, may by chance have the same port."""
    return all(address_of(each["peer"]) == tuple(each["client"]) for each in answers)


def read(client: socket.socket) -> bytes:
    """Everything until end of file."""
    client.settimeout(LIMIT)
    return b"".join(iter(lambda: client.recv(65536), b""))


class Started:
    """A program that was started inside: its number and its standard input and output."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.output = channel.makefile("r")

    def says(self, beginning: str) -> str:
        """Wait for a line that begins so; return the rest of it."""
        self.channel.settimeout(LIMIT)
        said = []
        for line in self.output:
            said.append(line)
            if line.startswith(beginning):
                return line[len(beginning) :].strip()
        raise AssertionError("".join(said))

    def all(self) -> str:
        """What it says to its end."""
        self.channel.settimeout(LIMIT)
        return self.output.read()

    def kill(self) -> None:
        kill(self.pid)
        wait_until(lambda: state_of(self.pid) in ("", "Z"), what=f"end of {self.pid}")

    def close(self) -> None:
        self.output.close()
        self.channel.close()


class Spawner(Session):
    """A session whose command starts programs; it lives on when they end."""

    def __init__(
        self, portwrap: Portwrap, forward: str = "native", outward: str = "helper", **options: Any
    ) -> None:
        self.portwrap = portwrap
        self.started: list[Started] = []
        self.asking, theirs = channel_pair()
        extra = {"PORTWRAP_VERBOSE": "1", **options.pop("extra_env", {})}
        with theirs:
            super().__init__(
                portwrap,
                portwrap.program("spawner.py"),
                forward=forward,
                outward=outward,
                stdin=theirs,
                extra_env=extra,
                **options,
            )

    def __enter__(self) -> Spawner:
        self.wait_until_up()
        return self

    def end(self) -> None:
        for started in self.started:
            started.close()
        self.asking.close()
        super().end()

    def spawn(self, *words: str | Path) -> Started:
        """Start a program inside."""
        self.asking.send(json.dumps(list(map(str, words))).encode())
        data, ancillary, _, _ = self.asking.recvmsg(64, socket.CMSG_SPACE(4))
        channel = socket.socket(fileno=array.array("i", ancillary[0][2])[0])
        self.started.append(Started(int(data), channel))
        return self.started[-1]

    def serve(self, way: str = "plain", address: str = "127.0.0.1", port: int = GUEST) -> Started:
        """Start server.py inside."""
        return self.spawn(*self.portwrap.program("server.py", way, address, str(port)))

    def served(self, way: str = "plain", address: str = "127.0.0.1", port: int = GUEST) -> Started:
        """Start server.py inside and wait until it listens."""
        started = self.serve(way, address, port)
        started.says("listening ")
        return started

    def writes(self, child: int) -> bool:
        """Whether this child of the keeper is about to write a line."""
        return name_of(child) == KEEPER and lives(child)

    def said(self) -> str:
        """What was said on standard error, by ours and by the network driver."""
        # The keeper waits for who writes a line of it, but not for long, and then not until it
        # writes the next one: who has written is a zombie.
        wait_until(lambda: not any(map(self.writes, children_of(self.keeper))), LIMIT, "the line")
        self.end_processes()
        return self.stderr()


@contextmanager
def held(keeper: int, calls: str) -> Iterator[None]:
    """Within it the keeper gets no further than to its next one of these system calls. Afterwards
    it is asleep again."""
    with injected(keeper, f"{calls}:delay_enter={60 * 1_000_000}"):  # until strace lets go of it
        yield
    wait_until(lambda: call_of(keeper) == EPOLL_CALL, what="the keeper asleep")


def call_of(pid: int) -> str:
    """The number of the system call that a process is in."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0]
