"""Names inside, on a host whose resolver is on its own loopback: a real resolver, and a host that
is a network namespace of the tests with an /etc of its own."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
from contextlib import ExitStack
from typing import Any, Iterator

import pytest

from helpers import OWNER, as_user, end, needs, wait_until
from sessions import Inside, Outside, Portwrap, Session

pytestmark = pytest.mark.namespaces
NAME, ADDRESS = "data.example.test", "198.18.9.9"
MANY = "many.example.test"
COUNT = 150
"""Addresses of MANY: more than fit into a datagram of 512 bytes, or of 1232."""
ROOT_OF_ITS_OWN = """
set -e
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc
ip link set lo up
echo ready
exec sleep 600
"""


@pytest.fixture(params=["relay", "native"])
def forward(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Host:
    """A host of our own."""

    def __init__(self, portwrap: Portwrap) -> None:
        self.portwrap = portwrap
        self.stack = ExitStack()
        self.holder = self.start(["unshare", "--net", "--mount", "sh", "-c", ROOT_OF_ITS_OWN])
        assert self.holder.stdout and self.holder.stdout.readline() == "ready\n"

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        process = as_user("root", words)
        self.stack.callback(end, process)
        return process

    @property
    def enter(self) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "--net", "--mount"]

    @property
    def enter_as_owner(self) -> list[str]:
        return [*self.enter, "setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--init-groups"]

    def shell(self, text: str) -> None:
        subprocess.run([*self.enter, "sh", "-ec", text], check=True)

    def set_resolv_conf(self, text: str) -> None:
        """Replace the file by a new one, as programs that manage it do."""
        self.shell(
            f"printf %s {shlex.quote(text)} >/etc/new.conf; mv /etc/new.conf /etc/resolv.conf"
        )

    def resolver(self, address: str = "127.0.0.53") -> subprocess.Popen[str]:
        """Start dnsmasq on this address of the loopback."""
        options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv"]
        options += ["--bind-interfaces", "--pid-file=", "--user=root", "--log-facility=-"]
        options += ["--edns-packet-max=4096", f"--listen-address={address}"]
        options += [f"--host-record={NAME},{ADDRESS}"]
        options += [f"--host-record={MANY},198.18.10.{n}" for n in range(1, COUNT + 1)]
        process = self.start([*self.enter, "dnsmasq", *options])
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        words = (packed[i : i + 4][::-1].hex().upper() for i in range(0, len(packed), 4))
        table = "tcp6" if ":" in address else "tcp"
        listening = f"{''.join(words)}:0035 {'0' * 2 * len(packed)}:0000 0A "

        def listens() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            with open(f"/proc/{self.holder.pid}/net/{table}") as file:
                return listening in file.read()

        wait_until(listens, what=f"dnsmasq on {address}")
        return process

    def inside(self, **options: Any) -> Inside:
        """A sandbox of the owner's on this host."""
        before = self.enter_as_owner
        made = Inside(self.portwrap, account="root", before=before, **options)
        return self.stack.enter_context(made)

    def outside(self) -> Outside:
        """The owner on this host, without a sandbox."""
        made = Outside(self.portwrap, "root", before=self.enter_as_owner)
        return self.stack.enter_context(made)

    def reader(self, forward: str, protocol: str = "udp") -> Reader:
        """A sandbox whose command looks names up."""
        return self.stack.enter_context(Reader(self, forward, protocol))


class Reader(Session):
    """Looks names up inside, by the C library."""

    def __init__(self, host: Host, forward: str, protocol: str) -> None:
        options = "timeout:10 attempts:1" + (" use-vc" if protocol == "tcp" else "")
        super().__init__(
            host.portwrap,
            host.portwrap.program("look_up.py"),
            account="root",
            before=host.enter_as_owner,
            forward=forward,
            extra_env={"RES_OPTIONS": options},
            stdin=subprocess.PIPE,
        )

    def __enter__(self) -> Reader:
        assert self.process.stdout
        if self.process.stdout.readline() != "ready\n":
            self.end_processes()
            raise AssertionError(self.stderr())
        return self

    def ask(self, name: str) -> object:
        """The addresses, or what the C library says instead."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def host(portwrap: Portwrap) -> Iterator[Host]:
    needs("dnsmasq", "ip", "nsenter", "setpriv", "unshare")
    made = Host(portwrap)
    try:
        yield made
    finally:
        made.stack.close()


# ---- names are found ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("address", ["127.0.0.53", "127.0.0.1", "::1"])
def test_names_are_found_inside(host: Host, address: str, protocol: str, forward: str) -> None:
    host.set_resolv_conf(f"nameserver {address}\n")
    host.resolver(address)
    reader = host.reader(forward, protocol)
    assert reader.ask(NAME) == [ADDRESS]
    assert reader.ask("nothing.example.test") != [ADDRESS]


RESOLV_CONFS = [
    "# a comment\n; another\nsearch example.test\nnameserver 127.0.0.53 # one\noptions edns0\n",
    "nameserver\t127.0.0.53\nnameserver ::1\n",
    "nameserver 127.0.0.53",
    "nameserver nonsense\nnameserver 127.0.0.53\n",
]


@pytest.mark.parametrize("text", RESOLV_CONFS)
def test_ways_to_name_a_resolver(host: Host, text: str, forward: str) -> None:
    host.set_resolv_conf(text)
    host.resolver()
    assert host.reader(forward).ask(NAME) == [ADDRESS]


FILES = {
    "absolute link": ("ln -s /etc/stub.conf /etc/resolv.conf", "127.0.0.53"),
    "relative link": ("ln -s stub.conf /etc/resolv.conf", "127.0.0.53"),
    # the C library asks this machine then
    "missing": ("true", "127.0.0.1"),
    "link to nothing": ("ln -s nothing /etc/resolv.conf", "127.0.0.1"),
    "unreadable": ("cp /etc/stub.conf /etc/resolv.conf; chmod 0 /etc/resolv.conf", "127.0.0.1"),
    "empty": (": >/etc/resolv.conf", "127.0.0.1"),
}


@pytest.mark.parametrize("kind", FILES)
def test_kinds_of_files(host: Host, kind: str, forward: str) -> None:
    make, address = FILES[kind]
    host.shell(f"echo nameserver 127.0.0.53 >/etc/stub.conf; rm /etc/resolv.conf; {make}")
    host.resolver(address)
    assert host.reader(forward).ask(NAME) == [ADDRESS]


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_names_are_found_after_the_host_has_replaced_its_file(
    host: Host, protocol: str, forward: str
) -> None:
    """The file is the host's own, at all times: nothing is mounted over it."""
    host.set_resolv_conf("nameserver 127.0.0.53\n")
    host.resolver()
    reader = host.reader(forward, protocol)
    assert reader.ask(NAME) == [ADDRESS]
    host.set_resolv_conf("# new\nsearch example.test\nnameserver 127.0.0.53\n")
    assert reader.ask(NAME) == [ADDRESS]
    assert reader.ask("data") == [ADDRESS]  # by the new file's search list
    mounts = f"/proc/{reader.pid}/ns/mnt"
    assert os.readlink(mounts) == os.readlink(f"/proc/{host.holder.pid}/ns/mnt")


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_resolver_that_is_started_again(host: Host, protocol: str, forward: str) -> None:
    host.set_resolv_conf("nameserver 127.0.0.53\n")
    reader = host.reader(forward, protocol)
    for _ in range(2):
        assert reader.ask(NAME) != [ADDRESS]
        resolver = host.resolver()
        assert reader.ask(NAME) == [ADDRESS]
        end(resolver)


# ---- questions by hand --------------------------------------------------------------------------


def question(name: str, number: int, room: int = 0) -> bytes:
    """A question for A records (RFC 1035), with EDNS for an answer of `room` bytes (RFC 6891)."""
    header = number.to_bytes(2, "big") + bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 1 if room else 0])
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    extra = b"\0\0\x29" + room.to_bytes(2, "big") + bytes(6) if room else b""
    return header + labels + b"\0\0\1\0\1" + extra


def is_truncated(answer: bytes) -> bool:
    return bool(answer[2] & 2)


def answers_in(answer: bytes) -> int:
    return int.from_bytes(answer[6:8], "big")


def test_large_answers(host: Host, forward: str) -> None:
    host.set_resolv_conf("nameserver 127.0.0.53\n")
    host.resolver()
    session = host.inside(forward=forward)
    with session.make(do="bind_udp", address="127.0.0.1", port=0) as client:
        for number, room in enumerate((512, 4096)):
            client.sendto(question(MANY, number, room), ("127.0.0.53", 53))
            answer, sender = client.recvfrom(65536)
            assert sender == ("127.0.0.53", 53)
            assert int.from_bytes(answer[:2], "big") == number
            assert is_truncated(answer) == (room == 512)
        assert len(answer) > 2000 and answers_in(answer) == COUNT
    # and so the C library turns to TCP
    found = host.reader(forward).ask(MANY)
    assert isinstance(found, list) and len(found) == COUNT


def test_many_clients_at_once(host: Host, forward: str) -> None:
    """More than the keeper remembers: each is answered, and its descriptors stay few."""
    host.set_resolv_conf("nameserver 127.0.0.53\n")
    host.resolver()
    session = host.inside(forward=forward)
    with ExitStack() as stack:
        for number in range(400):
            made = session.make(do="bind_udp", address="127.0.0.1", port=0)
            client = stack.enter_context(made)
            client.sendto(question(NAME, number), ("127.0.0.53", 53))
            answer = client.recv(65536)
            assert int.from_bytes(answer[:2], "big") == number and answers_in(answer) == 1
        assert 256 < len(os.listdir(f"/proc/{session.keeper}/fd")) < 300


# ---- nothing else -------------------------------------------------------------------------------


NOT_NEEDED = [
    "nameserver 198.18.0.1\n",
    "nameserver 127.0.0.53\nnameserver 198.18.0.1\n",
    "nameserver fe80::1%lo\nnameserver ::1\n",
]


@pytest.mark.parametrize("text", NOT_NEEDED)
def test_nothing_is_done_where_it_is_not_needed(host: Host, text: str, forward: str) -> None:
    host.set_resolv_conf(text)
    host.resolver("127.0.0.53")
    host.resolver("::1")
    session = host.inside(forward=forward)
    session.wait_until_up()
    assert len(session.others()) == 2
    for address in ("127.0.0.53", "::1"):
        with pytest.raises(ConnectionRefusedError):
            session.connect(address, 53)


def test_nothing_is_done_where_nobody_answers(host: Host, forward: str) -> None:
    """Without a file the C library asks this machine, and is told at once that nobody is there."""
    host.shell("rm /etc/resolv.conf")
    session = host.inside(forward=forward)
    session.wait_until_up()
    assert len(session.others()) == 2
    with pytest.raises(ConnectionRefusedError):
        session.connect("127.0.0.1", 53)


def test_no_other_port_of_the_hosts_loopback_answers_inside(host: Host, forward: str) -> None:
    host.set_resolv_conf("nameserver 127.0.0.53\n")
    host.resolver()
    owner = host.outside()
    endpoints = [("127.0.0.53", 5353), ("127.0.0.1", 5353), ("127.0.0.54", 5353)]
    secrets = [
        host.stack.enter_context(owner.make(do=kind, address=address, port=port))
        for kind in ("listen", "bind_udp")
        for address, port in endpoints
    ]
    session = host.inside(forward=forward)
    client = host.stack.enter_context(session.make(do="bind_udp", address="127.0.0.1", port=0))
    for address, port in [*endpoints, ("127.0.0.1", 53), ("127.0.0.54", 53), ("::1", 53)]:
        with pytest.raises(OSError):
            session.connect(address, port)
        if ":" not in address:
            client.sendto(question(NAME, 1), (address, port))
    client.sendto(question(NAME, 2), ("127.0.0.53", 53))
    assert client.recv(65536)[:2] == b"\0\2"  # after all that was sent elsewhere
    for secret in secrets:
        secret.setblocking(False)
        with pytest.raises(BlockingIOError):
            secret.accept() if secret.type == socket.SOCK_STREAM else secret.recv(1)
    # the control: outside all of them answer
    for address, port in endpoints:
        owner.connect(address, port).close()
