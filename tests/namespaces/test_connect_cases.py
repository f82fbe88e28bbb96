"""What programs do with connect(2), compared with the same program outside a session."""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import Any, Iterator

import pytest
from launches import in_sandbox
from networks import HOST, HOST_ON_SECOND, SERVER, SERVER6, Host

from helpers import OWNER, needs, run_as
from sessions import Portwrap, unused_ports

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(300)]
NOBODY = "198.18.0.77"
"""An address of the host's cable that nobody has."""
NATIVE, DRIVER, INSIDE, EITHER = "native", "driver", "inside", "either"

CASES = {  # what it is (tests/programs/connect_cases.py), and by whose socket it comes to that
    "outside": NATIVE,
    "outside-ipv6": NATIVE,
    "outside-mapped": NATIVE,
    "mapped-on-a-socket-of-ipv6-only": EITHER,
    "the-hosts-own-address": NATIVE,
    "loopback": INSIDE,
    "loopback-ipv6": INSIDE,
    "loopback-mapped": INSIDE,
    "every-address": INSIDE,
    "every-address-ipv6": INSIDE,
    "a-group": INSIDE,
    "unreachable": EITHER,
    "names-before-and-after": NATIVE,
    "refused-once": EITHER,
    "refused-then-outside": NATIVE,
    "refused-then-loopback": INSIDE,
    "refused-then-listen": INSIDE,
    "refused-then-bind-and-listen": INSIDE,
    "refused-later-then-outside": NATIVE,
    "refused-later-then-loopback": INSIDE,
    "refused-later-then-loopback-at-once": INSIDE,
    "inside-refused-later-then-outside": NATIVE,
    "refused-later-then-listen": EITHER,
    "in-progress": NATIVE,
    "not-blocking": NATIVE,
    "connected-twice": NATIVE,
    "loopback-in-progress-then-outside": INSIDE,
    "in-progress-while-others-connect": NATIVE,
    "a-listening-socket": INSIDE,
    "send-timeout": NATIVE,
    "disconnected-then-outside-then-loopback": INSIDE,
    "loopback-then-outside": NATIVE,
    "disconnected-then-listening": INSIDE,
    "disconnected-with-settings": INSIDE,
    "disconnected-that-does-not-block": INSIDE,
    "disconnected-that-was-bound": EITHER,
    "bound-while-connected": NATIVE,
    "listening-while-connected": NATIVE,
    "in-progress-outside-while-others-connect": NATIVE,
    "many-threads-one-socket": NATIVE,
    "interrupted": NATIVE,
    "interrupted-without-a-restart": NATIVE,
    "interrupted-with-a-restart": NATIVE,
    "bound-to-any": NATIVE,
    "bound-to-a-port": NATIVE,
    "bound-without-a-port": NATIVE,
    "bound-to-an-address-without-a-port": EITHER,
    "bound-to-the-loopback": INSIDE,
    "options": NATIVE,
    "options-that-nobody-set": NATIVE,
    "options-ipv6": NATIVE,
    "the-largest-segment": NATIVE,
    "time-stamps": NATIVE,
    "another-mark": NATIVE,
    "flags": NATIVE,
    "connect-with-the-first-data": NATIVE,
    "mptcp": NATIVE,
    "mptcp-not-blocking": NATIVE,
    "signal-driven": DRIVER,
    "a-socket-filter": EITHER,
    "duplicated": DRIVER,
    "shared-with-a-child": DRIVER,
    "sent-to-itself": DRIVER,
    "a-high-number": NATIVE,
    "standard-input": NATIVE,
    "of-another-thread": NATIVE,
    "thread-with-descriptors-of-its-own": NATIVE,
    "epolls-of-threads-with-descriptors-of-their-own": NATIVE,
    "after-exec": EITHER,
    "unreadable": DRIVER,
    "in-namespaces-of-its-own": INSIDE,
    "marked-in-namespaces-of-its-own": INSIDE,
    "in-a-user-namespace-of-its-own": NATIVE,
    "epoll-level": NATIVE,
    "epoll-after-a-way-back": EITHER,
    "epoll-edge": NATIVE,
    "epoll-edge-that-nobody-has-looked-at": NATIVE,
    "epoll-with-data-of-its-own": NATIVE,
    "epoll-oneshot": NATIVE,
    "epoll-oneshot-used-up": DRIVER,
    "two-epolls": NATIVE,
    "many-epolls": NATIVE,
    "epoll-in-an-epoll": NATIVE,
    "epoll-that-is-newer": NATIVE,
    "epoll-of-another-thread": NATIVE,
    "epoll-made-by-another-thread": NATIVE,
    "epoll-after-fork": EITHER,
    "epoll-and-refused": EITHER,
    "poll-and-select": NATIVE,
    "a-long-address": NATIVE,
    "an-address-of-odd-length": DRIVER,
    "a-length-with-a-higher-half": NATIVE,
    "bad-lengths": INSIDE,
    "bad-pointers": INSIDE,
    "bad-descriptors": EITHER,
    "an-address-of-another-family": EITHER,
    "unix-sockets": EITHER,
    "datagrams": INSIDE,
}
SLIRP = {  # what a network driver does otherwise: its own way of the world
    "outside-ipv6",
    "options-ipv6",
    "unreachable",
    "the-largest-segment",
    "options-that-nobody-set",
}
OLD_PASTA = {  # passes on no refusal
    *(name for name in CASES if name.startswith("refused")),
    "unreachable",
    "epoll-and-refused",
    "the-largest-segment",
    "options-that-nobody-set",
}
FAILED = re.compile("ENETUNREACH|ENOTCONN")  # of connect(2), or of whoever does not ask that
# no way out but the native one
DIRECT = {*(name for name, by in CASES.items() if by == DRIVER), "bound-to-the-loopback"}
MODES: dict[str, tuple[list[str], set[str]]] = {
    # options, and the cases that come to something else than outside
    "native": (["--outward", "native", "--network", "slirp4netns"], set()),
    "native-beside-pasta": (["--outward", "native", "--network", "pasta"], set()),
    "direct": (["--outward", "native", "--network", "direct"], DIRECT),
    "native-and-relay": (["--outward", "native", "--forward", "relay"], set()),
    "slirp4netns": (["--outward", "helper", "--network", "slirp4netns"], SLIRP),
    "pasta": (["--outward", "helper", "--network", "pasta"], OLD_PASTA),
}

NATIVELY = pytest.param(NATIVE, marks=pytest.mark.every_python)
"""What is our own work. The others are one run each, of all cases."""


class Servers:
    """Sockets on the server and on the host, and threads that answer at some of them."""

    def __init__(self, host: Host) -> None:
        self.stack = ExitStack()
        self.listeners: list[socket.socket] = []
        echo = self.answer(host.listen(SERVER))
        self.answer(host.listen(SERVER6, port=echo))
        at_host = self.answer(self.keep(host.listen(HOST, host.host)))
        with host.entered(host.server):
            full, refused = self.full(), self.keep(socket.socket())
            refused.bind((SERVER, 0))
        self.settings = {
            "server": SERVER,
            "server6": SERVER6,
            "host": HOST,
            "second": HOST_ON_SECOND,
            "unreachable": NOBODY,
            "echo": echo,
            "full": full,
            "refused": refused.getsockname()[1],
            "at_host": at_host,
            "own_ports": unused_ports(2),  # the cases run side by side
        }

    def keep(self, made: socket.socket) -> socket.socket:
        return self.stack.enter_context(made)

    def full(self) -> int:
        """A port whose queue is full: connections to it stay in progress."""
        listener = self.keep(socket.socket())
        listener.bind((SERVER, 0))
        listener.listen(0)
        for _ in range(3):
            made = self.keep(socket.socket())
            made.setblocking(False)
            made.connect_ex(listener.getsockname())
        return int(listener.getsockname()[1])

    def answer(self, listener: socket.socket) -> int:
        """Answer each client in a thread of its own."""
        self.listeners.append(self.keep(listener))
        listener.settimeout(None)
        threading.Thread(target=self.accept, args=[listener], daemon=True).start()
        return int(listener.getsockname()[1])

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                made, peer = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=echo, args=[made, peer], daemon=True).start()

    def close(self) -> None:
        for listener in self.listeners:
            listener.shutdown(socket.SHUT_RDWR)  # wakes up who accepts
        self.stack.close()


def echo(made: socket.socket, peer: Any) -> None:
    with made:
        try:
            made.sendall(json.dumps(peer[:2]).encode() + b"\n")
            made.sendall(made.recv(5, socket.MSG_WAITALL))
            made.recv(1)  # its end
        except OSError:
            pass


@contextmanager
def serving(host: Host) -> Iterator[Servers]:
    servers = Servers(host)
    try:
        yield servers
    finally:
        servers.close()


class Runs:
    """The results of each mode, from one run of all cases."""

    def __init__(self, portwrap: Portwrap, host: Host) -> None:
        self.portwrap = portwrap
        self.host = host
        self.known: dict[str, dict[str, tuple[Any, bool | None, bool]]] = {}

    def of(self, mode: str) -> dict[str, tuple[Any, bool | None, bool]]:
        for _ in range(3):
            if mode in self.known and not (mode == "pasta" and stalled(self.known[mode])):
                break
            self.known[mode] = self.run(mode)
        return self.known[mode]

    def run(self, mode: str) -> dict[str, tuple[Any, bool | None, bool]]:
        with self.host.entered(self.host.host), serving(self.host) as servers:
            words = self.portwrap.program("connect_cases.py", json.dumps(servers.settings))
            if mode != "outside":
                words = [*in_sandbox(self.portwrap), *MODES[mode][0], *words]
            result = run_as(OWNER, words, seconds=200)
        assert result.stderr == ""
        rows = map(json.loads, result.stdout.splitlines())
        return {name: (seen, native, named) for name, seen, native, named in rows}


def stalled(rows: dict[str, tuple[Any, bool | None, bool]]) -> bool:
    """Whether a case had no answer in time: Debian 12's pasta sometimes forwards no more of one."""
    return any("TimeoutError" in str(seen) for seen, _, _ in rows.values())


@pytest.fixture(scope="module")
def runs(portwrap: Portwrap, standing_host: Host) -> Runs:
    needs("slirp4netns", "pasta")
    return Runs(portwrap, standing_host)


def test_every_case_is_in_the_table(runs: Runs) -> None:
    assert set(runs.of("outside")) == set(CASES)
    failed = [row for row in runs.of("outside").values() if "Traceback" in str(row)]
    assert failed == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", [NATIVELY, *(mode for mode in MODES if mode != NATIVE)])
def test_a_case(runs: Runs, mode: str, case: str) -> None:
    if case in MODES[mode][1]:
        return
    seen, native, named = runs.of(mode)[case]
    assert seen == runs.of("outside")[case][0]
    if "native" in MODES[mode][0] and CASES[case] != EITHER:
        assert native == (CASES[case] == NATIVE)
    if "native" in MODES[mode][0] and CASES[case] == NATIVE:
        assert named  # as the server sees it


@pytest.mark.parametrize("mode", ["slirp4netns", "pasta"])
def test_what_a_network_driver_does_otherwise(runs: Runs, mode: str) -> None:
    """Else the list of it could hide what is ours."""
    outside, inside = runs.of("outside"), runs.of(mode)
    assert [case for case in MODES[mode][1] if inside[case][0] == outside[case][0]] == []
    assert not any(native for _, native, _ in inside.values())


def test_what_cannot_be_native_without_a_network_driver(runs: Runs) -> None:
    """It fails, and the test above compares all else."""
    inside, outside = runs.of("direct"), runs.of("outside")
    failed = {case for case in DIRECT if FAILED.search(str(inside[case][0]))}
    assert failed == DIRECT
    assert not any(FAILED.search(str(outside[case][0])) for case in DIRECT)
