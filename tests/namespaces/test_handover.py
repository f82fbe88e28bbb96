"""The hand-over: which server gets the host's own socket, and that each of the others is relayed."""

from __future__ import annotations

import array
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Iterator, Sequence

import pytest
import requests

from conftest import TEST_ROOT
from helpers import OWNER, cannot, environment, find_tool, needs, state_of, wait_until
from sessions import Inside, Maker, Portwrap, Session, channel_pair, holders_of, kill, unused_port

pytestmark = pytest.mark.namespaces
GUEST = 8888
LIMIT = 20.0
"""Seconds within which a client must have been answered: hanging is the fault to find."""


# ---- who serves ---------------------------------------------------------------------------------


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
        for entry in os.scandir(f"/proc/{pid}/fd"):
            found.add(os.readlink(entry.path))
    except OSError:
        pass
    return found


def way_of(session: Session) -> str:
    """How the server is served: "native" if it holds the host's own socket."""
    host = listening_inodes(os.getpid(), session.port)
    others = session.alive() - {session.keeper, session.helper}
    return "native" if any(host & links_of(pid) for pid in others) else "relay"


def ask(session: Session, address: str = "127.0.0.1") -> dict[str, Any]:
    """What server.py answers at the host port."""
    with socket.create_connection((address, session.port), timeout=LIMIT) as client:
        own = client.getsockname()[:2]
        facts = json.loads(read(client))
    facts["client"] = list(own)
    return dict(facts)


def ask_until_answered(session: Session) -> dict[str, Any]:
    """`ask` where the server refuses clients at times, as it would without us."""

    def answer() -> dict[str, Any]:
        try:
            return ask(session)
        except ConnectionError:
            return {}

    return wait_until(answer, LIMIT, "an answer")


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

    def __init__(self, portwrap: Portwrap, forward: str = "native", **options: Any) -> None:
        self.portwrap = portwrap
        self.started: list[Started] = []
        self.asking, theirs = channel_pair()
        extra = {"PORTWRAP_VERBOSE": "1", **options.pop("extra_env", {})}
        with theirs:
            super().__init__(
                portwrap,
                portwrap.program("spawner.py"),
                forward=forward,
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

    def served(
        self, way: str = "plain", address: str = "127.0.0.1", port: int = GUEST
    ) -> Started:
        """Start server.py inside and wait until it listens."""
        started = self.serve(way, address, port)
        started.says("listening ")
        return started

    def said(self) -> str:
        """What was said on standard error, by ours and by the network helper."""
        self.end_processes()
        return self.stderr()


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


SHARED = "the server shares its socket, or holds it twice, before it called listen"
REGISTERED = "the server had its socket in an epoll or an io_uring before it called listen"
UNWATCHED = "the server listens without the system call that we watch"
OTHER_FAMILY = "the server listens on another address family than the host port"
SIGNALLED = "the server wants a signal for each client"

WAYS = [  # how server.py comes to its socket, why it is relayed (nothing: it is not)
    ("plain", ""),
    ("nonblocking", ""),
    ("reuseport", ""),
    ("settings", ""),
    ("twice", ""),
    ("again", ""),
    ("shut", ""),
    ("reexec", ""),
    ("child", ""),
    ("orphan", ""),
    ("sent", ""),
    ("thread", ""),
    ("prefork", ""),
    ("epoll-first", REGISTERED),
    ("uring-registered", REGISTERED),
    ("uring-listen", UNWATCHED),
    ("duplicate", SHARED),
    ("shared", SHARED),
    ("signal-driven", SIGNALLED),
    ("unreadable", "the server does not let its descriptors be seen"),
]


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
    if way not in ("again", "shut"):  # whether it listens at this moment is chance
        assert way_of(spawner) == expected
    for answer in facts:
        assert (answer["peer"] == answer["client"]) == (expected == "native")
    assert port == (GUEST if why else spawner.port)
    said = spawner.said()
    if why:
        assert f"portwrap: forward: relay, because {why}\n" in said
        assert "forward: native" not in said
    else:
        assert "portwrap: forward: native" in said and "forward: relay" not in said
