"""Pipes, through which bytes go from one socket to another without being copied (splice(2))."""

from __future__ import annotations

import os

from ..kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PIPE_SIZE = 1024 * 1024
"""Bytes moved by one splice at most: what an account may give a pipe (pipe(7), pipe-max-size)."""
MAX_PIPES = 8
"""Of the 64 of this size that all sessions of an account have (pipe(7), pipe-user-pages-soft)."""

splice: Any = getattr(os, "splice", None)  # Python 3.10
F_SETPIPE_SZ = 1031  # linux/fcntl.h
SPLICE_F_NONBLOCK = 2  # linux/splice.h


class Pipe:
    """A pipe, and how much is in it."""

    __slots__ = ("held", "reader", "writer")

    def __init__(self) -> None:
        """Raises OSError."""
        self.held = 0  # bytes
        self.reader, self.writer = os.pipe()
        try:
            libc.call("fcntl", self.writer, F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            self.close()
            raise

    def fill_from(self, descriptor: int) -> None:
        """Take what is there to read, while it is empty. Raises OSError."""
        self.held = splice(descriptor, self.writer, PIPE_SIZE, flags=SPLICE_F_NONBLOCK)

    def empty_into(self, descriptor: int) -> None:
        """Send all that it holds. Raises OSError as send(2) does."""
        while self.held:
            self.held -= splice(self.reader, descriptor, self.held, flags=SPLICE_F_NONBLOCK)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Pipes:
    """The pipes of a relay, which are made when they are needed. Like a connection each takes two
    file descriptors, so they are fewer where there is room for few connections."""

    def __init__(self, max_connections: int) -> None:
        self.to_make = min(MAX_PIPES, max_connections // 16) if splice else 0
        self.idle: list[Pipe] = []

    def get(self) -> Pipe | None:
        """An empty pipe. None: all are in use, or the account may have no more."""
        if self.idle:
            return self.idle.pop()
        if not self.to_make:
            return None
        try:
            pipe = Pipe()
        except OSError:
            self.to_make = 0
            return None
        self.to_make -= 1
        return pipe

    def put(self, pipe: Pipe) -> None:
        """Have one back. It is kept if it is empty and the only one: one is enough most of the
        time, and the account's programs want some, too."""
        if pipe.held or self.idle:
            pipe.close()
            self.to_make += 1
        else:
            self.idle.append(pipe)

    def close(self) -> None:
        """Close those that are idle, and make no more."""
        self.to_make = 0
        while self.idle:
            self.idle.pop().close()
