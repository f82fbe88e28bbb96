"""The host port's listening sockets, and who in the sandbox has one of them."""

from __future__ import annotations

import os

import _socket

from ..kernel import procfs
from ..kernel.addresses import BACKLOG
from ..kernel.processes import pidfd_open
from ..kernel.sockets import listens

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from .reactor import Reactor


class Holder:
    """A process of the sandbox that has one of the host's sockets: its end is watched."""

    def __init__(self, reactor: Reactor, on_end: Callable[[], None]) -> None:
        self.reactor = reactor
        self.on_end = on_end
        self.pidfd = -1

    def watch(self, process: int) -> bool:
        """False: it has ended already. Raises OSError: there is no room in the epoll."""
        self.forget()
        try:
            pidfd = pidfd_open(process)
        except OSError:
            return False
        try:
            self.reactor.watch(pidfd, self.on_end)
        except OSError:
            os.close(pidfd)
            raise
        self.pidfd = pidfd
        return True

    def watch_any(self, links: Collection[str]) -> bool:
        """Watch a process that has one of these sockets. False: none has."""
        return any(
            link in links and self.watch(process) for process, link in descriptors_of_others()
        )

    def forget(self) -> None:
        if self.pidfd >= 0:
            self.reactor.unwatch(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1


class HostSockets:
    """Ours of the host's sockets. A server that we have given one is watched for its end."""

    def __init__(
        self, descriptors: Sequence[int], reactor: Reactor, on_end: Callable[[], None]
    ) -> None:
        self.sockets = [_socket.socket(fileno=number) for number in descriptors]
        self.on_end = on_end  # called when no process has one any more
        self.given = (0, 0)  # process and descriptor that got one last
        self.holder = Holder(reactor, self.on_holder_end)

    def find(self, socket: _socket.socket) -> _socket.socket | None:
        """Ours of which this is a duplicate, if it is one."""
        node = os.fstat(socket.fileno()).st_ino
        return next((each for each in self.sockets if os.fstat(each.fileno()).st_ino == node), None)

    def for_server(self, server: _socket.socket) -> _socket.socket | None:
        """One that can be in the place of this socket: of the same address family."""
        return next((each for each in self.sockets if each.family == server.family), None)

    def are_served(self) -> bool:
        """Whether a process has one that listens: a server may have ended that with shutdown(2)."""
        links = {procfs.link_of(each.fileno()) for each in self.sockets if listens(each)}
        if procfs.link(*self.given) in links:
            return True
        return any(link in links for _, link in descriptors_of_others())

    def watch(self, process: int, descriptor: int) -> None:
        """Be told of the end of this process, which has got one under this descriptor."""
        self.given = process, descriptor
        if not self.holder.watch(process):
            self.on_holder_end()

    def on_holder_end(self) -> None:
        """Another process that has one may serve on."""
        self.holder.forget()
        if not self.holder.watch_any({procfs.link_of(each.fileno()) for each in self.sockets}):
            self.on_end()


def listen_again(host: _socket.socket, backlog: int = BACKLOG) -> None:
    """Have a socket of the host listen, or change its backlog. Raises OSError.

    One that was shut down has to get past the socket that reserves its port (`launch/ports.py`): at
    no moment is there a place for one of another user.
    """
    host.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
    try:
        host.listen(min(backlog, BACKLOG))
    finally:
        host.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 0)


def descriptors_of_others() -> Iterator[tuple[int, str]]:
    """Process number and link of each descriptor of all processes in other user namespaces than
    ours, which is the host's, as far as we may look.

    Who is in ours has none of the sandbox's sockets, and on a node with many sessions most of what
    there is to read: their keepers'.
    """
    ours = procfs.namespace("self", "user")
    for process in procfs.processes():
        try:
            if procfs.namespace(process, "user") == ours:
                continue
        except OSError:
            continue  # another user's, or gone
        for _, link in procfs.descriptors(process):
            yield process, link
