"""What the launching process and the keeper send each other over the lifeline.

    launching process                          keeper
    StartDriver, if there is one    ------->
    Go, with descriptors            ------->
                                    <-------   NativePossible, NotNative or Refused
    SeccompListener, if possible    ------->
                                    <-------   Ready, or Refused

Where nothing is to be native, the keeper answers Go with Ready or Refused at once. The
lifeline is a socket pair of SOCK_SEQPACKET, which keeps the boundaries of messages. After Ready
nobody writes to it: a byte would be a signal to the command (see `launch.story`).
"""

from __future__ import annotations

import errno
import marshal
import os
import sys

import _socket

from .early_refusal import LAST, MORE
from .kernel.addresses import MAX_SENT_FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Union

    Answer = Union["Ready", "NativePossible", "NotNative", "Refused"]

PART = 32768
"""Bytes of a message at most: it must find room in a socket's buffer."""


class MalformedMessage(OSError):
    """A message that the other side cannot have sent, or only a part of one."""


class Message:
    """One message. FIELDS names its attributes, each with the shape that its value must have: a
    type, [shape] for a list, (shape, shape) for a tuple."""

    FIELDS: Sequence[tuple[str, Any]] = ()

    def encode(self) -> bytes:
        """The message as it is sent."""
        values = [getattr(self, name) for name, _ in self.FIELDS]
        return marshal.dumps((type(self).__name__, *values))


class Ready(Message):
    """Outbound works and clients can connect: the command may begin."""


class NativePossible(Message):
    """The keeper can take file descriptors from the command: a seccomp listener is of use."""

    FIELDS = (("no_outbound", str),)

    def __init__(self, no_outbound: str) -> None:
        self.no_outbound = no_outbound  # why outbound connections cannot be native, or nothing


class NotNative(Message):
    """Forwarding has to be relayed, and outbound left to the network driver."""

    FIELDS = (("reason", str),)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Refused(Message):
    """There is no session. `failure` is an identifier of `diagnostics.errors.Failure`."""

    FIELDS = (("reason", str), ("failure", str))

    def __init__(self, reason: str, failure: str) -> None:
        self.reason = reason
        self.failure = failure


class SeccompListener(Message):
    """What the command's seccomp listener is for. If anything, its descriptor comes with the
    message, and those of unbound sockets of the sandbox (`keeper/sandbox_sockets.py`)."""

    FIELDS = (("forward", bool), ("outbound", bool))
    descriptor = -1
    spares: Sequence[int] = ()

    def __init__(self, forward: bool, outbound: bool) -> None:
        self.forward = forward
        self.outbound = outbound

    @property
    def is_installed(self) -> bool:
        return self.forward or self.outbound


class StartDriver(Message):
    """How to start the network driver, in advance of Go: both processes go on while it starts.

    It reports that it is ready by writing to the file descriptor of this number, within `timeout`
    seconds.
    """

    FIELDS = (
        ("name", str),
        ("argv", [str]),
        ("ready_descriptor", int),
        ("timeout", float),
        ("has_pidfd", bool),
    )

    def __init__(
        self, name: str, argv: Sequence[str], ready_descriptor: int, timeout: float, has_pidfd: bool
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.ready_descriptor = ready_descriptor
        self.timeout = timeout
        self.has_pidfd = has_pidfd  # whether to watch it by one


class Descriptors:
    """The file descriptors that come with Go."""

    def __init__(
        self,
        process: int,
        user_namespace: int,
        network_namespace: int,
        listeners: Sequence[int] = (),
        published: Sequence[int] = (),
        reserved: Sequence[int] = (),
        services: Sequence[int] = (),
    ) -> None:
        self.process = process  # a pidfd of the command, or the directory of its /proc entry
        self.user_namespace = user_namespace
        self.network_namespace = network_namespace
        self.listeners = listeners  # of the host port
        self.published = published  # of published ports
        self.reserved = reserved  # sockets that only keep others off an address of the host port
        self.services = services  # in the sandbox, of host services

    @property
    def counts(self) -> list[int]:
        """How many there are of each kind of socket."""
        kinds = (self.listeners, self.published, self.reserved, self.services)
        return [len(kind) for kind in kinds]

    def in_order(self) -> list[int]:
        """All of them, as `from_order` takes them."""
        places = [self.process, self.user_namespace, self.network_namespace]
        return [*places, *self.listeners, *self.published, *self.reserved, *self.services]

    @classmethod
    def from_order(cls, descriptors: Sequence[int], counts: Sequence[int]) -> Descriptors:
        """Raises MalformedMessage."""
        if len(counts) != 4 or min(counts) < 0 or len(descriptors) != 3 + sum(counts):
            raise MalformedMessage(f"{len(descriptors)} file descriptors for {counts}")
        process, user, network = descriptors[:3]
        groups, start = [], 3
        for count in counts:
            groups.append(descriptors[start : start + count])
            start += count
        return cls(process, user, network, *groups)


class Go(Message):
    """What the keeper is to do. `descriptors` travel with the message."""

    FIELDS = (
        ("program", str),
        ("verbose", bool),
        ("command", int),
        ("has_pidfd", bool),
        ("lifeline", int),
        ("guest_port", int),
        ("native_forward", bool),
        ("native_outbound", bool),
        ("driver_networks", [(int, int, int)]),
        ("every_address_is_local", bool),
        ("address", int),
        ("allowed", [(int, int, int)]),
        ("published_to", [int]),
        ("ephemeral", [int]),
        ("own_addresses", [str]),
        ("routed_ports", [(str, int)]),
        ("counts", [int]),
    )
    descriptors: Descriptors

    def __init__(
        self,
        program: str,
        verbose: bool,
        command: int,
        has_pidfd: bool,
        lifeline: int,
        guest_port: int,
        native_forward: bool,
        native_outbound: bool,
        driver_networks: Sequence[tuple[int, int, int]],
        every_address_is_local: bool,
        address: int,
        allowed: Sequence[tuple[int, int, int]],
        published_to: Sequence[int],
        ephemeral: Sequence[int],
        own_addresses: Sequence[str],
        routed_ports: Sequence[tuple[str, int]],
        descriptors: Descriptors,
    ) -> None:
        self.program = program  # for messages
        self.verbose = verbose
        self.command = command  # process number
        self.has_pidfd = has_pidfd  # of the command; else we have the directory of its /proc entry
        self.lifeline = lifeline  # number that the command's end of it has in the command
        self.guest_port = guest_port
        self.native_forward = native_forward  # to be tried
        self.native_outbound = native_outbound  # to be tried
        self.driver_networks = list(driver_networks)  # its addresses in the sandbox, as `allowed`
        self.every_address_is_local = every_address_is_local  # see `launch.drivers.direct`
        self.address = address  # some address in the command's memory, for a trial
        self.allowed = list(allowed)  # networks of the clients (`launch.ports`); []: all
        self.published_to = list(published_to)  # the guest port of each published socket
        self.ephemeral = list(ephemeral)  # those of them that programs get for port 0
        self.own_addresses = list(own_addresses)  # the node's, which the sandbox has too
        # TCP ports of these that rules send to the node (`launch.own_address`)
        self.routed_ports = list(routed_ports)
        self.descriptors = descriptors
        self.counts = descriptors.counts

    @property
    def published(self) -> list[tuple[int, int]]:
        """Each published socket with its guest port."""
        return list(zip(self.descriptors.published, self.published_to))

    def take(self, descriptors: Sequence[int]) -> None:
        """Give the descriptors that came with the message their places. Raises MalformedMessage."""
        self.descriptors = Descriptors.from_order(descriptors, self.counts)
        if len(self.published_to) != len(self.descriptors.published):
            raise MalformedMessage(f"published ports {self.published_to} for {self.counts}")


def decode(data: bytes, expected: Sequence[type[Message]]) -> Message:
    """The message that this is, one of `expected`. Raises MalformedMessage."""
    try:
        name, *values = marshal.loads(data)
    except (EOFError, ValueError, TypeError) as error:
        raise MalformedMessage(f"no message: {error}") from None
    kind = next((kind for kind in expected if kind.__name__ == name), None)
    if kind is None:
        raise MalformedMessage(f"a message {name!r}, which was not expected")
    if not _fits(tuple(values), tuple(shape for _, shape in kind.FIELDS)):
        raise MalformedMessage(f"a message {name} with other fields than it has")
    message = kind.__new__(kind)
    for (field, _), value in zip(kind.FIELDS, values):
        setattr(message, field, value)
    return message


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, list):
        return type(value) is list and all(_fits(each, shape[0]) for each in value)
    if isinstance(shape, tuple):
        same = type(value) is tuple and len(value) == len(shape)
        return same and all(_fits(each, part) for each, part in zip(value, shape))
    return type(value) is shape


def decode_answer(data: bytes) -> Answer:
    """The keeper's answer. Raises MalformedMessage."""
    answer = decode(data, (Ready, NativePossible, NotNative, Refused))
    assert isinstance(answer, (Ready, NativePossible, NotNative, Refused))
    return answer


def decode_request(data: bytes, descriptors: Sequence[int]) -> StartDriver | Go:
    """What the keeper is to do. Raises MalformedMessage."""
    request = decode(data, (StartDriver, Go))
    assert isinstance(request, (StartDriver, Go))
    if isinstance(request, Go):
        request.take(descriptors)
    elif descriptors:
        raise MalformedMessage(f"{len(descriptors)} file descriptors to start a driver")
    return request


def decode_seccomp_listener(data: bytes, descriptors: Sequence[int]) -> SeccompListener:
    """What the seccomp listener is for. Raises MalformedMessage."""
    message = decode(data, (SeccompListener,))
    assert isinstance(message, SeccompListener)
    if bool(descriptors) != message.is_installed:
        raise MalformedMessage(f"{len(descriptors)} file descriptors for a seccomp listener")
    if descriptors:
        message.descriptor, *message.spares = descriptors
    return message


def send(socket: _socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send a message, with file descriptors. Raises OSError."""
    data = message.encode()
    more = True
    while more:
        part, data = data[:PART], data[PART:]
        given, descriptors = descriptors[:MAX_SENT_FILES], descriptors[MAX_SENT_FILES:]
        more = bool(data or descriptors)
        rights = b"".join(number.to_bytes(4, sys.byteorder) for number in given)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
        socket.sendmsg([(MORE if more else LAST) + part], ancillary)


def receive(socket: _socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """The next message and the file descriptors that came with it; b"" at the end of file.

    Raises MalformedMessage and OSError, which is EMFILE where there is no room for a descriptor.
    """
    data = b""
    descriptors: list[int] = []
    mark = MORE
    while mark == MORE:
        room = _socket.CMSG_SPACE(4 * MAX_SENT_FILES)
        part, ancillary, result, _ = socket.recvmsg(PART + 1, room, flags)
        if not part and not data:
            return b"", []
        mark = part[:1]
        if mark not in (MORE, LAST) or result & _socket.MSG_TRUNC:
            raise MalformedMessage("a part of a message")
        if result & _socket.MSG_CTRUNC:  # those that the limit leaves no room for are lost
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        data += part[1:]
        for _, _, rights in ancillary:
            descriptors += memoryview(rights).cast("i")
    return data, descriptors
