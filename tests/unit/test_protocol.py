"""What the launching process and the keeper send each other: whole, in parts, and broken."""

from __future__ import annotations

import marshal
import os
import resource
import socket
import threading
from typing import Any, Callable, Iterator

import pytest

from portwrap import early_refusal, protocol
from portwrap.kernel.addresses import MAX_SENT_FILES
from portwrap.protocol import (
    PART,
    Descriptors,
    Go,
    MalformedMessage,
    NativePossible,
    NotNative,
    Ready,
    Refused,
    SeccompListener,
    StartDriver,
    decode_answer,
    decode_request,
    decode_seccomp_listener,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def go(descriptors: Descriptors, **changes: Any) -> Go:
    fields: dict[str, Any] = {
        "program": "portwrap",
        "verbose": False,
        "command": 17,
        "has_pidfd": True,
        "lifeline": 5,
        "guest_port": 8888,
        "native_forward": True,
        "native_outbound": True,
        "driver_networks": [(4, 8, 0x0A0002)],
        "every_address_is_local": False,
        "address": 1 << 46,
        "allowed": [(4, 8, 3)],
        "published_to": [80] * len(descriptors.published),
        "ephemeral": [81],
        "own_addresses": ["198.18.0.1"],
        "routed_ports": [("198.18.0.1", 22)],
        "descriptors": descriptors,
    }
    return Go(**{**fields, **changes})


def descriptors_of(count: int) -> list[int]:
    return [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]


def close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("published", [0, 2, 2 * MAX_SENT_FILES])
def test_go_arrives_as_it_was_sent(
    pair: tuple[socket.socket, socket.socket], published: int
) -> None:
    """With more file descriptors than one message carries, and more bytes, too."""
    sent = descriptors_of(6 + published)
    got: list[int] = []
    places = Descriptors(sent[0], sent[1], sent[2], sent[3:5], sent[6:], sent[5:6])
    name = "x" * (3 * PART if published else 1)
    message = go(places, program=name)
    sender = threading.Thread(target=protocol.send, args=(pair[0], message, places.in_order()))
    sender.start()
    try:
        data, got = protocol.receive(pair[1])
        arrived = decode_request(data, got)
        assert isinstance(arrived, Go)
        for field, _ in Go.FIELDS:
            assert getattr(arrived, field) == getattr(message, field), field
        assert len(arrived.descriptors.listeners) == 2
        assert len(arrived.descriptors.reserved) == 1
        assert [guest for _, guest in arrived.published] == [80] * published
        assert arrived.descriptors.in_order() == got
    finally:
        sender.join()
        close(sent + got)


STARTED = StartDriver("pasta", ["/usr/bin/pasta", "17"], 1, 10.0, True)


def test_start_driver() -> None:
    arrived = decode_request(STARTED.encode(), [])
    assert vars(arrived) == vars(STARTED)


@pytest.mark.parametrize(
    "answer", [Ready(), NativePossible("no reading"), NotNative("old"), Refused("no", "keeper")]
)
def test_answers_arrive_as_they_were_sent(
    pair: tuple[socket.socket, socket.socket], answer: protocol.Answer
) -> None:
    protocol.send(pair[0], answer)
    data, _ = protocol.receive(pair[1])
    arrived = decode_answer(data)
    assert type(arrived) is type(answer) and vars(arrived) == vars(answer)


@pytest.mark.parametrize("use", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("received", [[7], [7, 8, 9], [7, 8, 9, 10, 11]])
def test_seccomp_listener(received: list[int], use: tuple[bool, bool]) -> None:
    arrived = decode_seccomp_listener(SeccompListener(*use).encode(), received)
    assert (arrived.forward, arrived.outbound) == use and arrived.is_installed
    assert [arrived.descriptor, *arrived.spares] == received


def test_no_seccomp_listener() -> None:
    assert not decode_seccomp_listener(SeccompListener(False, False).encode(), []).is_installed


WHOLE = go(Descriptors(0, 1, 2)).encode()
GO_VALUES = list(marshal.loads(WHOLE))


def with_value(place: int, value: Any) -> bytes:
    return marshal.dumps((*GO_VALUES[:place], value, *GO_VALUES[place + 1 :]))


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (decode_answer, b""),
        (decode_answer, b"\0"),
        (decode_answer, b"ready"),
        (decode_answer, Ready().encode()[:-1]),
        (decode_answer, marshal.dumps(("Ready", 1))),
        (decode_answer, marshal.dumps(("Refused",))),
        (decode_answer, marshal.dumps(("Refused", 1))),
        (decode_answer, marshal.dumps(("Unknown",))),
        (decode_answer, marshal.dumps(17)),
        (decode_answer, marshal.dumps(())),
        (decode_answer, SeccompListener(True, True).encode()),
        (decode_answer, WHOLE),
        (lambda data: decode_request(data, [0, 1, 2]), Ready().encode()),
        (lambda data: decode_request(data, [0, 1, 2]), with_value(1, b"program")),
        (lambda data: decode_request(data, [0, 1, 2]), with_value(12, [(4, 8)])),
        (lambda data: decode_request(data, [0, 1, 2]), with_value(12, [(4, 8, "3")])),
        (lambda data: decode_request(data, [0, 1, 2]), with_value(len(GO_VALUES) - 1, [0, 0, 0])),
        (
            lambda data: decode_request(data, [0, 1, 2]),
            with_value(len(GO_VALUES) - 1, [-1, 1, 0, 0]),
        ),
        (
            lambda data: decode_request(data, [0, 1, 2, 3]),
            with_value(len(GO_VALUES) - 1, [0, 1, 0, 0]),
        ),
        (lambda data: decode_request(data, [0, 1]), WHOLE),
        (lambda data: decode_request(data, [0, 1, 2, 3]), WHOLE),
        (lambda data: decode_request(data, [0]), STARTED.encode()),
        (lambda data: decode_seccomp_listener(data, []), SeccompListener(True, False).encode()),
        (lambda data: decode_seccomp_listener(data, []), SeccompListener(False, True).encode()),
        (lambda data: decode_seccomp_listener(data, [1]), SeccompListener(False, False).encode()),
        (lambda data: decode_seccomp_listener(data, []), Ready().encode()),
    ],
)
def test_a_malformed_message_is_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(data)


@pytest.mark.parametrize("size", range(1, len(WHOLE), 7))
def test_a_truncated_message_is_refused(size: int) -> None:
    with pytest.raises(MalformedMessage):
        decode_request(WHOLE[:size], [0, 1, 2])


@pytest.mark.parametrize("part", [b"x", b"ready", b"." + bytes(PART + 1)])
def test_a_part_that_is_none(pair: tuple[socket.socket, socket.socket], part: bytes) -> None:
    pair[0].send(part)
    with pytest.raises(MalformedMessage):
        protocol.receive(pair[1])


def test_the_end_in_the_middle_of_a_message(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].send(early_refusal.MORE + b"begun")
    pair[0].close()
    with pytest.raises(MalformedMessage):
        protocol.receive(pair[1])


def test_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert protocol.receive(pair[1]) == (b"", [])


def test_descriptors_that_there_is_no_room_for(pair: tuple[socket.socket, socket.socket]) -> None:
    """The kernel drops them and sets MSG_CTRUNC (unix(7)): the message is not taken for whole."""
    sent = descriptors_of(4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        protocol.send(pair[0], go(Descriptors(sent[0], sent[1], sent[2], sent[3:])), sent)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(sent) + 2, hard))
        with pytest.raises(OSError, match="Too many open files"):
            protocol.receive(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close(sent)


def test_a_keeper_that_cannot_import_the_protocol_refuses_as_others_do(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """By hand; and what an exception says may be any text."""
    ours, theirs = pair
    reason = "no\udcff {module} 'of' \"that\" name"
    text = early_refusal.refusing_expression(theirs.fileno(), "not loaded", "kind")
    eval(text, {"os": os, "marshal": marshal, "error": ImportError(reason)})
    answer = decode_answer(protocol.receive(ours)[0])
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.failure) == (f"not loaded: {reason}", "kind")
