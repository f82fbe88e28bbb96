"""--network direct: no network driver, no tun device, nothing to install."""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest
from launches import as_owner_in, in_sandbox, refusal_of, run_in_sandbox
from networks import FAR, HOST, HOST6, SERVER, SERVER6, Host
from outbound import echoing, is_native, whose

from helpers import OWNER, as_user, end, run_as
from sessions import Inside, Portwrap, unused_port

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(120)]


@pytest.fixture
def session(portwrap: Portwrap, host: Host) -> Iterator[Inside]:
    with Inside(portwrap, forward="native", network="direct", outward="auto") as made:
        made.wait_until_up()
        yield made


def test_tcp_leaves(session: Inside, host: Host) -> None:
    for address in (SERVER, SERVER6, FAR):
        with echoing(host.listen(address)) as port:
            assert whose(session, port, address) == "native"
    assert session.driver == 0


def test_with_a_relay(portwrap: Portwrap, host: Host) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(echoing(host.listen(SERVER)))
        session = stack.enter_context(
            Inside(portwrap, forward="relay", network="direct", outward="auto")
        )
        session.wait_until_up()
        assert whose(session, port) == "native"
        listener = stack.enter_context(session.serve())
        client, inner = session.pair(listener)
        client.sendall(b"x")
        assert inner.recv(1) == b"x"


def test_the_sandboxs_own_addresses(session: Inside) -> None:
    for address in ("127.0.0.1", "::1", HOST):
        port = unused_port()
        with session.listen(address, port) as listener, session.connect(address, port) as client:
            inner, _ = listener.accept()
            with inner:
                assert not is_native(client)


def test_a_source_address_is_found(session: Inside) -> None:
    """As programs look for it: by a UDP socket that sends nothing. It is the node's own, which
    others can be told, and which can be bound to."""
    for far, own in (("192.0.2.1", HOST), ("2001:db8::1", HOST6)):
        with session.make(do="connect_udp", address=far, port=9) as made:
            assert made.getsockname()[0] == own
        session.listen(own, unused_port()).close()


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_to_bind_to_anothers_address_fails(session: Inside, address: str) -> None:
    """Though each is found to be local: else errors of UDP would not come back."""
    for how in ("listen", "bind_udp"):
        with pytest.raises(OSError) as caught:
            session.make(do=how, address=address, port=unused_port())
        assert caught.value.errno == errno.EADDRNOTAVAIL


ASK = """
import socket, sys
made = socket.socket(type=socket.SOCK_DGRAM)
made.settimeout(10)
made.sendto(b"who", (sys.argv[1], 53))
print(made.recv(100).decode())
with socket.create_connection((sys.argv[1], 53), timeout=10) as made:
    print(made.recv(100).decode())
"""


@pytest.mark.parametrize("address", [SERVER, HOST, "127.0.0.53"])
def test_resolvers_answer(portwrap: Portwrap, host: Host, world_dir: Path, address: str) -> None:
    """By UDP through the keeper, by TCP natively: wherever they are."""
    where = host.server if address == SERVER else host.host
    with ExitStack() as stack:
        datagrams = stack.enter_context(host.bind_udp(address, where, 53))
        stream = stack.enter_context(host.listen(address, where, 53))
        resolv_conf = world_dir / "resolv.conf"
        resolv_conf.write_text(f"nameserver {address}\n")
        before = as_owner_in(f"mount --bind {resolv_conf} /etc/resolv.conf")
        words = [*in_sandbox(portwrap), "--network", "direct", portwrap.python, "-c", ASK, address]
        process = stack.enter_context(running("root", [*before, *words]))
        question, client = datagrams.recvfrom(100)
        datagrams.sendto(b"I, by UDP", client)
        with stream.accept()[0] as accepted:
            accepted.sendall(b"I, by TCP")
        assert question == b"who"
        assert process.communicate(timeout=20) == ("I, by UDP\nI, by TCP\n", "")


@contextmanager
def running(account: str, words: Sequence[str]) -> Iterator[Any]:
    process = as_user(account, words)
    try:
        yield process
    finally:
        end(process)


REFUSED = [  # what a program does, and the error that it gets at once
    ("udp", "192.0.2.1", errno.ECONNREFUSED),
    ("udp", "2001:db8::1", errno.ECONNREFUSED),
    ("tcp", "192.0.2.1", errno.ENETUNREACH),
    ("tcp", "2001:db8::1", errno.ENETUNREACH),
    ("ping", "192.0.2.1", errno.ENETUNREACH),
    ("ping", SERVER, errno.ENETUNREACH),
]
SEND = """
import errno, socket, sys
how, address = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
kind = socket.SOCK_STREAM if how == "tcp" else socket.SOCK_DGRAM
made = socket.socket(family, kind, socket.IPPROTO_ICMP if how == "ping" else 0)
made.settimeout(10)
try:
    if how == "tcp":  # one that cannot be replaced
        other = made.dup()
    made.connect((address, 9))
    for _ in range(2):
        made.send(b"\\x08\\0\\0\\0\\0\\0\\0\\0")
    print(made.recv(10))
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"""


@pytest.mark.parametrize(("how", "address", "number"), REFUSED)
def test_all_else_fails_at_once(
    portwrap: Portwrap, host: Host, how: str, address: str, number: int
) -> None:
    """With an error that says so; not after minutes, and not never."""
    command = [portwrap.python, "-c", SEND, how, address]
    begun = time.monotonic()
    result = run_as(OWNER, [*in_sandbox(portwrap), "--network", "direct", *command])
    assert (result.stdout, result.stderr) == (f"{errno.errorcode[number]}\n", "")
    assert time.monotonic() - begun < 20


HIDE_TUN = "mount -t tmpfs -o mode=755 tmpfs /dev/net"
HIDE_PROGRAMS = (
    "for each in /usr/bin/slirp4netns /usr/bin/pasta;"
    " do [ ! -e $each ] || mount --bind /dev/null $each; done"
)
CONNECT = "import socket; print(socket.create_connection(({address!r}, {port})).fileno() > 0)"


def lacking(portwrap: Portwrap, *preparation: str, words: Sequence[str | Path] = ()) -> Any:
    """Run it on a node that lacks something that network drivers need."""
    return run_as("root", [*as_owner_in(*preparation), *in_sandbox(portwrap), *words])


def test_no_tun_device_and_no_program(portwrap: Portwrap, host: Host) -> None:
    with echoing(host.listen(SERVER)) as port:
        text = CONNECT.format(address=SERVER, port=port)
        words = ["--network", "direct", portwrap.python, "-c", text]
        result = lacking(portwrap, HIDE_TUN, HIDE_PROGRAMS, words=words)
        assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")


# ---- auto --------------------------------------------------------------------------------------

LACKING = [  # how it is on this node, and what the warning, or the refusal, names
    (HIDE_TUN, "/dev/net/tun"),
    (HIDE_PROGRAMS, "neither slirp4netns nor pasta found"),
]


@pytest.mark.parametrize(("preparation", "reason"), LACKING)
def test_auto_is_direct_where_nothing_else_is(
    portwrap: Portwrap, host: Host, preparation: str, reason: str
) -> None:
    """One line says what will not work."""
    with echoing(host.listen(SERVER)) as port:
        words = [portwrap.python, "-c", CONNECT.format(address=SERVER, port=port)]
        result = lacking(portwrap, preparation, words=words)
        assert (result.returncode, result.stdout) == (0, "True\n"), result
        [warning] = result.stderr.splitlines()
        assert warning.startswith(f"portwrap: {reason}: ")
        assert warning.endswith(
            ": only TCP connections and names leave the session (--network direct)"
        )


@pytest.mark.parametrize(("preparation", "reason"), LACKING)
def test_auto_is_nothing_where_nothing_can_be_native(
    portwrap: Portwrap, preparation: str, reason: str
) -> None:
    result = lacking(portwrap, preparation, words=["--outward", "helper", "true"])
    refusal_of(result, 125)
    assert reason in result.stderr


def test_it_needs_native_outbound(portwrap: Portwrap) -> None:
    before = portwrap.program("without.py", "killable-wait")
    result = run_in_sandbox(portwrap, "--network", "direct", "true", before=before)
    refusal_of(result, 125, "--network direct is not possible: ")
    result = run_in_sandbox(
        portwrap, "--network", "direct", "--outward", "native", "echo", "fine", before=before
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "fine\n", "")


def test_it_leaves_nothing_to_a_helper(portwrap: Portwrap) -> None:
    result = run_in_sandbox(portwrap, "--network", "direct", "--outward", "helper", "true")
    refusal_of(result, 2, "--outward helper needs a network driver, but --network is direct")
