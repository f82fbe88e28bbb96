"""Whose a socket is: of the host's network namespace, of the sandbox's, or of another one."""

from __future__ import annotations

import errno
import os

import _socket

from ..kernel.sockets import network_namespace_of

SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
HOST, SANDBOX, OTHER = "host", "sandbox", "other"


class NetworkNamespaces:
    """Tells sockets of the host, where we are, from those of the sandbox.

    Cookies are the fast way: the kernel gives each network namespace one that no other ever gets.
    """

    def __init__(self, sandbox: int) -> None:
        """`sandbox` is a descriptor of the sandbox's. Raises OSError."""
        self.sandbox = os.fstat(sandbox).st_ino
        self.host = os.stat("/proc/self/ns/net").st_ino
        self.cookies: dict[bytes, str] = {}
        probe = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self.cookies[cookie_of(probe)] = HOST
        except OSError:
            pass  # before Linux 5.14
        finally:
            probe.close()

    def of(self, socket: _socket.socket) -> str:
        """HOST, SANDBOX or OTHER. Raises OSError."""
        if not self.cookies:
            return self.by_inode(socket)
        cookie = cookie_of(socket)
        found = self.cookies.get(cookie)
        if found is None:
            found = self.by_inode(socket)
            if found == SANDBOX:
                self.cookies[cookie] = found
        return found

    def by_inode(self, socket: _socket.socket) -> str:
        """The slow way. Raises OSError."""
        try:
            inode = network_namespace_of(socket.fileno())
        except OSError as error:
            if error.errno != errno.EPERM:  # it takes rights in the namespace
                raise
            return OTHER if self.cookies else HOST
        return {self.host: HOST, self.sandbox: SANDBOX}.get(inode, OTHER)


def cookie_of(socket: _socket.socket) -> bytes:
    """What tells the network namespace of a socket from all others. Raises OSError."""
    return socket.getsockopt(_socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
