"""Which settings of a socket go over to the one that replaces it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

import pytest

from portwrap.keeper.options import (
    BYTES,
    FOR_CLIENTS,
    FOR_LISTENERS,
    HALF,
    MAX_SEGMENT,
    Pristine,
    has_filter,
    read,
    write,
)
from portwrap.keeper.outbound import is_replaceable

from helpers import cannot

SET = [
    (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
    (socket.IPPROTO_IP, socket.IP_TTL, 33),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.SOL_SOCKET, socket.SO_PRIORITY, 5),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 30000),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 40000),
    (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 7)),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 5, 0)),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
]
FAMILIES = [socket.AF_INET, socket.AF_INET6]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_socket_has_no_changes(family: int) -> None:
    with socket.socket(family) as one, socket.socket(family) as other:
        pristine = Pristine(one)
        assert len(pristine.values) > 40
        assert pristine.changes(other) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_set_goes_over(family: int) -> None:
    with socket.socket(family) as one, socket.socket(family) as old, socket.socket(family) as new:
        for option in SET:
            old.setsockopt(*option)  # type: ignore[call-overload]
        changes = Pristine(one).changes(old)
        assert {(level, number) for level, number, _ in changes} >= {
            (level, number) for level, number, _ in SET
        }
        for each, value in changes.items():
            write(new, each, value)
        assert Pristine(one).changes(new) == changes


def test_a_buffer_that_was_set_to_the_default_is_locked() -> None:
    """Its size is what it was, but the kernel does not adapt it any more (SO_BUF_LOCK)."""
    with socket.socket() as one, socket.socket() as old:
        size = old.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        old.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // 2)
        assert [number for _, number, _ in Pristine(one).changes(old)] == [72, 8]


def test_what_a_former_connection_has_left_is_not_copied() -> None:
    """The size of its segments, which may not even be set, and a buffer that the kernel has grown:
    set, it would be locked, and limited by net.core.wmem_max."""
    with socket.socket() as one, socket.socket() as old, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        old.connect(listener.getsockname())
        with listener.accept()[0] as server:
            for sender, receiver in ((old, server), (server, old)):
                sender.sendall(bytes(100000))
                receiver.recv(100000, socket.MSG_WAITALL)
        assert libc.connect(old.fileno(), bytes(16), 16) == 0  # AF_UNSPEC
        size = old.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert size > one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)  # the control
        changes = Pristine(one).changes(old)
        assert set(changes) <= {MAX_SEGMENT}
        for option, value in changes.items():
            write(one, option, value)


@pytest.mark.parametrize("kind", [FOR_CLIENTS, FOR_LISTENERS], ids=["clients", "listeners"])
def test_each_option_can_be_set_to_what_it_is(kind: tuple[tuple[int, int, int], ...]) -> None:
    """So its kind is right, and nothing of the table is a value of the moment."""
    for family in FAMILIES:
        with socket.socket(family) as one:
            pristine = Pristine(one, kind)
            for option, value in pristine.values.items():
                if option[2] != HALF:  # it would be locked then
                    write(one, option, value)
            assert pristine.changes(one) == {}


def test_what_was_set_before_is_undone() -> None:
    """The host's socket goes from one server to the next."""
    with socket.socket() as one, socket.socket() as server, socket.socket() as host:
        pristine = Pristine(one, FOR_LISTENERS)
        for option in SET:
            server.setsockopt(*option)  # type: ignore[call-overload]
        pristine.copy_changes(pristine.changes(server), host)
        assert pristine.changes(host) == pristine.changes(server) != {}
        pristine.copy_changes({}, host)
        left = pristine.changes(host)
        # switched off, and the time that it had does not matter
        assert left == {(1, 13, BYTES): struct.pack("=ii", 0, 7)}


def test_the_hosts_defaults_stay() -> None:
    """What has not been set is not copied, though the sandbox has another default."""
    with socket.socket() as sandboxs, socket.socket() as old, socket.socket() as new:
        for each in (sandboxs, old):  # as a sysctl of the sandbox would have it
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1234)
        assert Pristine(sandboxs).changes(old) == {}
        assert Pristine(new).changes(old) != {}  # the control


def test_what_listeners_keep() -> None:
    """How the host port is bound is not the server's to change."""
    kept = {(1, 2), (1, 15), (1, 25), (41, 26), (0, 15)}
    assert not kept & {option[:2] for option in FOR_LISTENERS}
    assert kept <= {option[:2] for option in FOR_CLIENTS}  # the control


def test_sizes() -> None:
    with socket.socket() as made:
        for option in FOR_CLIENTS:
            if option[2] == BYTES:
                assert isinstance(read(made, option), bytes)


def test_no_filter() -> None:
    with socket.socket() as made:
        assert not has_filter(made)


SO_ATTACH_FILTER, SO_ATTACH_BPF = 26, 50  # asm-generic/socket.h
BPF_PROG_LOAD, BPF_PROG_TYPE_SOCKET_FILTER = 5, 1  # linux/bpf.h
SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 0)

libc = ctypes.CDLL(None, use_errno=True)


def attach_filter(made: socket.socket, length: int) -> None:
    """One of so many instructions, which lets everything pass. Some kernels want rights for it."""
    code = ctypes.create_string_buffer(length * struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF))
    program = struct.pack("@HP", length, ctypes.addressof(code))
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    except PermissionError:
        cannot("no socket filter can be attached here")


@pytest.mark.parametrize("length", range(1, 9))
def test_a_filter_is_seen_and_not_read(length: int) -> None:
    """Into a number the kernel would write up to four of its instructions: whose filter it is
    would write them into our memory."""
    with socket.socket() as made:
        attach_filter(made, length)
        child = os.fork()
        if child == 0:
            os._exit(7 if has_filter(made) else 0)
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7


def test_a_socket_with_a_filter_stays() -> None:
    """No other one could be given its filter."""
    with socket.socket() as made:
        assert is_replaceable(made, made.family)
        attach_filter(made, 4)
        assert not is_replaceable(made, made.family)


def ebpf_filter() -> int:
    """A socket filter of eBPF that lets everything pass. Raises OSError."""
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0xFFFF, 0x95, 0, 0, 0))
    license = ctypes.create_string_buffer(b"GPL")
    places = ctypes.addressof(code), ctypes.addressof(license)
    attributes = struct.pack("=IIQQ", BPF_PROG_TYPE_SOCKET_FILTER, 2, *places).ljust(128, b"\0")
    made = libc.syscall(SYS_BPF, BPF_PROG_LOAD, attributes, len(attributes))
    if made < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return int(made)


def test_a_filter_that_nobody_can_read_is_one() -> None:
    try:
        program = ebpf_filter()
    except OSError as error:
        cannot(f"no program of eBPF can be loaded here: {error}")
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, program)
        os.close(program)
        assert has_filter(made)
