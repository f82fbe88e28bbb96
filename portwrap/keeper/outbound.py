"""Native outbound: TCP connections leave the sandbox by sockets of the host's.

connect(2) in the sandbox waits for our response. For an address out of the sandbox we make a socket
in the host's network namespace, with the settings of the caller's own, connect it, and put it in
the place of the caller's. We connect to the very bytes that we have looked at: another thread of
the caller may change them meanwhile.

Before a socket that we have made binds, listens, or connects to what is in the sandbox it is
replaced again, by one of the sandbox's. We know it by a mark: a program that removes that, or sends
with MSG_FASTOPEN, keeps it. That is no boundary for the owner (docs/security.md). Other sockets of
the host's are the host port's, or have been given to a program by its user: they are left alone.

Whatever goes wrong, the call proceeds on the caller's own socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

import _socket

from ..kernel import libc, seccomp
from ..kernel.addresses import STAYS_INSIDE
from ..kernel.callers import Memory
from ..kernel.machines import this_machine
from ..kernel.sockets import (
    IP_BIND_ADDRESS_NO_PORT,
    TCP_CLOSE,
    OpenFiles,
    as_socket,
    bind_to_reserved,
    is_bound_to_loopback,
    is_marked,
    mark,
    state_of,
)
from .destinations import (
    INSIDE,
    MAX_SIZE,
    MISLED,
    OUTSIDE,
    REFUSED,
    Destination,
    Destinations,
    read_destination,
)
from .epolls import NotMovable
from .exchange import PUT_BACK
from .network_namespaces import HOST, SANDBOX, NetworkNamespaces
from .options import Pristine, has_filter, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kernel.seccomp import Notification
    from .exchange import Exchanger
    from .responder import Responder
    from .sandbox_sockets import SandboxSockets
    from .session import Session

IP_FREEBIND = 15  # linux/in.h
O_ASYNC = 0o20000  # asm-generic/fcntl.h
NEVER = float("inf")
LOOK_INTERVAL = 1.0
"""Seconds between two looks whether somebody has one of the sockets that we have made."""
FLAGS = os.O_RDWR | os.O_NONBLOCK
"""Of a socket that we make to be connected."""
STREAM = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
NO_FAMILY = b"\xff\xff".ljust(MAX_SIZE, b"\0")
"""An address that no socket takes: EAFNOSUPPORT, unless there is an attempt to connect whose result
has not been reported. The kernel reports that first."""
EVERY_ADDRESS = ("0.0.0.0", "::")
connect_file = libc.prepare("connect")


class Outbound:
    """Decides what connect(2) comes to, and keeps the host's sockets to their use."""

    def __init__(
        self,
        session: Session,
        responder: Responder,
        exchanger: Exchanger,
        sandbox_sockets: SandboxSockets,
    ) -> None:
        """Raises OSError."""
        machine = this_machine()
        assert machine is not None
        self.namespaces = NetworkNamespaces(session.go.descriptors.network_namespace)
        self.destinations = Destinations(session.go, sandbox_sockets.diagnosis)
        self.sandbox_sockets = sandbox_sockets
        self.exchanger = exchanger
        self.callers = exchanger.epolls.callers
        self.memory = Memory(MAX_SIZE)
        self.given = Given()
        self.pristine: dict[tuple[int, int], Pristine] = {}  # of the host
        responder.on(machine.connect, self.on_connect)
        responder.before(machine.bind, self.on_bind)
        if session.go.every_address_is_local:
            responder.before(machine.bind, self.on_bind_to_any_address)
        responder.before(machine.listen, self.on_listen)
        for number in (*machine.epoll_creates, machine.io_uring_setup):
            responder.on(number, self.on_creation)

    # -- the calls -------------------------------------------------------------------------

    def on_connect(self, notification: Notification) -> int | None:
        destination = read_destination(notification, self.memory)
        if destination is None:
            return None
        where = self.destinations.find(destination)
        socket = self.take_marked(notification) if where == INSIDE else self.take(notification)
        if socket is None:
            return None  # the usual case: a socket of the sandbox, to what is in it
        try:
            owner = self.namespaces.of(socket)
            seccomp.id_valid(notification)  # so it was the caller's memory, and is its socket
            if owner == SANDBOX and where == OUTSIDE:
                return self.connect_natively(notification, socket, destination)
            if owner == SANDBOX and where == MISLED:
                keep_inside(socket)
            if owner == SANDBOX and where == REFUSED:
                return refuse(socket)
            if owner != HOST or not is_marked(socket.fileno()):
                return None
            if where == REFUSED:
                return refuse(socket)
            if where == OUTSIDE:
                return connect_without_waiting(socket, destination.data)
            return self.connect_inside(notification, socket, where == MISLED)
        finally:
            socket.close()

    def on_bind(self, notification: Notification) -> int | None:
        socket = self.take_hosts(notification)
        if socket is None:
            return None
        try:
            # The kernel's own answer for a socket that has a port by now.
            is_free = state_of(socket) == TCP_CLOSE
            return self.lead_back(notification, socket) if is_free else -errno.EINVAL
        finally:
            socket.close()

    def on_bind_to_any_address(self, notification: Notification) -> int | None:
        """The sandbox has every IPv4 address: to bind to those of others fails all the same."""
        address = read_destination(notification, self.memory)
        if address is None or len(address.address) != 4 or self.destinations.exists(address):
            return None
        socket = self.take(notification)
        try:
            seccomp.id_valid(notification)
            free = socket.getsockopt(_socket.IPPROTO_IP, IP_FREEBIND) != 0
            return None if free or self.namespaces.of(socket) != SANDBOX else -errno.EADDRNOTAVAIL
        finally:
            socket.close()

    def on_listen(self, notification: Notification) -> int | None:
        socket = self.take_hosts(notification)
        if socket is None:
            return None
        try:
            is_free = state_of(socket) == TCP_CLOSE and has_no_result(connect(socket, NO_FAMILY))
            return self.lead_back(notification, socket) if is_free else -errno.EINVAL
        finally:
            socket.close()

    def on_creation(self, notification: Notification) -> int | None:
        self.exchanger.epolls.on_creation(notification.thread)
        return None

    # -- their arguments -------------------------------------------------------------------

    def take(self, notification: Notification) -> _socket.socket:
        """A duplicate of the caller's socket. Raises OSError."""
        number = self.callers.take_descriptor(notification.thread, notification.descriptor)
        return as_socket(number)

    def take_marked(self, notification: Notification) -> _socket.socket | None:
        """The same if it has our mark, which its owner may have made as well. Raises OSError."""
        if not self.given.are_there():
            return None  # it would be one of them
        number = self.callers.take_descriptor(notification.thread, notification.descriptor)
        if is_marked(number):
            return as_socket(number)
        os.close(number)
        return None

    def take_hosts(self, notification: Notification) -> _socket.socket | None:
        """The same if it is one that we have made; else None. Raises OSError."""
        socket = self.take_marked(notification)
        if socket is None:
            return None
        if self.namespaces.of(socket) == HOST:
            seccomp.id_valid(notification)
            return socket
        socket.close()
        return None

    # -- what they come to -----------------------------------------------------------------

    def connect_natively(
        self, notification: Notification, old: _socket.socket, destination: Destination
    ) -> int | None:
        """Have a socket of the host's connect, and put it in the place of the caller's."""
        if not is_replaceable(old, destination.family):
            return None
        result = connect(old, NO_FAMILY)
        if not has_no_result(result):
            return result
        place = self.exchanger.place(notification, old)
        flags = place.flags & ~os.O_CLOEXEC
        if flags & O_ASYNC:
            return None  # F_SETOWN is the file's
        new = self.made_like(old)
        try:
            self.given.add(new.fileno())
            result = connect_new(new, destination.data, flags)
            if result not in (0, -errno.EINPROGRESS, -errno.EALREADY):
                return result  # the caller's own socket is as unconnected as this one
            if flags != FLAGS:
                fcntl.fcntl(new.fileno(), fcntl.F_SETFL, flags)
            outcome = self.exchanger.exchange(place, old, new.fileno())
            return None if outcome == PUT_BACK else result_for(flags, result)
        finally:
            new.close()

    def connect_inside(
        self, notification: Notification, socket: _socket.socket, misled: bool
    ) -> int | None:
        """A socket of the host's is to connect to what is in the sandbox."""
        if state_of(socket) != TCP_CLOSE:
            return None  # it is connected, or about to be: the kernel looks at no address
        result = connect(socket, NO_FAMILY)
        return self.lead_back(notification, socket, misled) if has_no_result(result) else result

    def lead_back(
        self, notification: Notification, old: _socket.socket, misled: bool = False
    ) -> int | None:
        """Replace a socket of the host's by one of the sandbox's, on which the call proceeds. If
        that cannot be, the call fails."""
        try:
            place = self.exchanger.place(notification, old)
            new = self.sandbox_sockets.make(old.family)
            try:
                copy_changes(self.pristine_of_host(old.family, old.proto), old, new)
                bind_as(old, new)
                if misled:
                    keep_inside(new)
                fcntl.fcntl(new.fileno(), fcntl.F_SETFL, fcntl.fcntl(old.fileno(), fcntl.F_GETFL))
                self.exchanger.replace(place, old, new.fileno())
            finally:
                new.close()
        except Exception:
            return -errno.ENOBUFS
        return None

    def made_like(self, old: _socket.socket) -> _socket.socket:
        """A socket of the host's with the settings of one of the sandbox's, and bound as it is,
        that does not block. Raises OSError and NotMovable."""
        new = _socket.socket(old.family, STREAM | _socket.SOCK_NONBLOCK, old.proto)  # FLAGS
        try:
            mark(new)
            copy_changes(self.sandbox_sockets.pristine[old.family, old.proto], old, new)
            bind_as(old, new)
        except Exception:
            new.close()
            raise
        return new

    def pristine_of_host(self, family: int, protocol: int) -> Pristine:
        """The options of a new socket of the host's. Raises OSError."""
        kind = family, protocol
        if kind not in self.pristine:
            socket = _socket.socket(family, STREAM, protocol)
            self.pristine[kind] = Pristine(socket)
            socket.close()
        return self.pristine[kind]


class Given:
    """The sockets that we have made, as long as somebody has them: where there is none, none has to
    be looked for."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.files = OpenFiles()
        self.may_be_there = False
        self.look_at = 0.0  # of time.monotonic()

    def add(self, socket: int) -> None:
        """One more, before it is in the sandbox."""
        self.may_be_there = True
        try:
            self.files.add(socket)
        except OSError:  # the account's epolls are full
            self.look_at = NEVER

    def are_there(self) -> bool:
        """Whether one of them may be in the sandbox."""
        if self.may_be_there and time.monotonic() > self.look_at:
            # of many it takes a while
            self.may_be_there = self.files.any_is_open()
            self.look_at = time.monotonic() + LOOK_INTERVAL
        return self.may_be_there


def is_replaceable(socket: _socket.socket, family: int) -> bool:
    """Whether this is a TCP or MPTCP socket of this family that is neither connected nor listens,
    with nothing on it that cannot be moved. Raises OSError, as for any other kind of socket."""
    return (
        socket.family == family
        # Only TCP and MPTCP have a state. In another one we would wait as long as the caller.
        and state_of(socket) == TCP_CLOSE
        and not has_filter(socket)
    )


def keep_inside(socket: _socket.socket) -> None:
    """Have a TCP or MPTCP socket of the sandbox, which is not connected, find what listens in it at
    a port that rules lead to the node (`launch.own_address`). Raises OSError."""
    if state_of(socket) == TCP_CLOSE:
        # It takes CAP_NET_ADMIN, which the user namespace's owner has from outside.
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_MARK, STAYS_INSIDE)


def copy_changes(pristine: Pristine, old: _socket.socket, new: _socket.socket) -> None:
    """Set on a new socket what has been set on an old one. Raises OSError."""
    for option, value in pristine.changes(old).items():
        write(new, option, value)


def bind_as(old: _socket.socket, new: _socket.socket) -> None:
    """Bind a socket to what another one is bound to, in another network namespace. Raises OSError:
    the address is not of that one, or the port is taken there; and NotMovable."""
    name = old.getsockname()
    if (name[0] in EVERY_ADDRESS and not name[1]) or not is_bound(old, name[1]):
        return
    if is_bound_to_loopback(old):
        raise NotMovable("it is bound to the loopback")
    try:
        new.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        bind_to_reserved(new, name)  # a published port is ours


def is_bound(socket: _socket.socket, port: int) -> bool:
    """Whether bind(2) has given it its name: that of a failed connection still shows."""
    if not port:
        return bool(socket.getsockopt(_socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT))
    try:
        socket.bind(("", 0))
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def connect(socket: _socket.socket, address: bytes) -> int:
    """connect(2), which must not block for this socket: 0, or a negative errno."""
    return connect_file(socket.fileno(), address, len(address))


def refuse(socket: _socket.socket) -> int | None:
    """What connect(2) comes to for a TCP or MPTCP socket that finds no server. Raises OSError, as
    for any other kind."""
    if state_of(socket) != TCP_CLOSE:
        return None
    result = connect(socket, NO_FAMILY)
    return -errno.ECONNREFUSED if has_no_result(result) else result


def connect_new(new: _socket.socket, address: bytes, flags: int) -> int:
    """What connect(2) comes to for a socket of ours in the place of one that has these flags."""
    result = connect(new, address)
    if result == -errno.EINPROGRESS and not flags & os.O_NONBLOCK:
        # What has come of it by now, if the other end is near. Its answer was not looked at as long
        # as the first call had the socket.
        result = connect(new, address)
    return result


def has_no_result(result: int) -> bool:
    """Whether this came of NO_FAMILY because there was nothing to report."""
    return result == -errno.EAFNOSUPPORT


def connect_without_waiting(socket: _socket.socket, address: bytes) -> int | None:
    """What connect(2) comes to for a socket of the host's, of which this is a duplicate."""
    flags = fcntl.fcntl(socket.fileno(), fcntl.F_GETFL)
    if flags & os.O_NONBLOCK:
        return connect(socket, address)
    fcntl.fcntl(socket.fileno(), fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        return result_for(flags, connect(socket, address))
    finally:
        fcntl.fcntl(socket.fileno(), fcntl.F_SETFL, flags)


def result_for(flags: int, result: int) -> int | None:
    """What the caller's connect comes to. One that blocks proceeds: as long as a connection is on
    its way, the kernel waits for it and takes no address."""
    waits = result in (-errno.EINPROGRESS, -errno.EALREADY) and not flags & os.O_NONBLOCK
    return None if waits else result
