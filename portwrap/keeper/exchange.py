"""The exchange: one file in the place of another, under a file descriptor in the sandbox.

What belongs to the file descriptor goes over to the new file: its close-on-exec flag, and its
entries in the caller's epolls (`epolls.py`). This is for a file that nobody but the caller has: a
duplicate, in whatever process or message, would still mean the old one.
"""

from __future__ import annotations

import os

from ..kernel.other_processes import take_socket
from ..kernel.seccomp import addfd
from ..kernel.sockets import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from ..kernel.seccomp import Notification
    from .epolls import Entry, Epolls

EXCHANGED, PUT_BACK, SHARED = "exchanged", "put back", "shared"
SEARCHES = 3
"""How often a file that somebody has is looked for: it may be on its way from one to another."""


class Place:
    """A caller's file descriptor, whatever file it stands for."""

    def __init__(self, notification: Notification, flags: int, entries: list[Entry]) -> None:
        self.notification = notification
        self.flags = flags  # those of the file, and O_CLOEXEC or none
        self.entries = entries

    def put(self, file: int) -> None:
        """Have it stand for this file of ours. Raises OSError."""
        addfd(self.notification, file, self.flags & os.O_CLOEXEC)


class Exchanger:
    """Exchanges files of threads that wait for a response."""

    def __init__(self, epolls: Epolls) -> None:
        self.epolls = epolls
        self.closed: OpenFile | None = None  # one that nobody has: it serves for the next

    def place(self, notification: Notification, socket: _socket.socket) -> Place:
        """That of a caller's socket, of which this is a duplicate. Raises OSError, and NotMovable:
        no other one can take its place."""
        thread, descriptor = notification.thread, notification.descriptor
        entries = self.epolls.entries(thread, descriptor, socket)
        return Place(notification, self.epolls.callers.read_flags(thread, descriptor), entries)

    def exchange(self, place: Place, old: _socket.socket, new: int) -> str:
        """Put our descriptor `new` in the place of the caller's, of which `old` is a duplicate, and
        close `old`. Raises OSError: nothing has changed then.

        EXCHANGED: nobody has the old socket any more. PUT_BACK: somebody else has it, and so has
        the caller again. SHARED: somebody else has it, but where we may not look, so that the
        caller has got the new one nevertheless.
        """
        file, outcome = self.open_file(old.fileno()), SHARED
        try:
            self.put(place, old, new)
            # Only the last reference makes a difference that can be seen: ours has to go, too.
            old.close()
            outcome = self.find_out(place, file)
        finally:
            if outcome == EXCHANGED:
                self.closed = file
            else:
                file.close()
        return outcome

    def open_file(self, descriptor: int) -> OpenFile:
        """To make one anew would take a tenth of a connection's time. Raises OSError."""
        file, self.closed = self.closed, None
        if file is None:
            return OpenFile(descriptor)
        try:
            file.add(descriptor)
        except OSError:
            file.close()
            raise
        return file

    def find_out(self, place: Place, file: OpenFile) -> str:
        """What the exchange comes to: put the file back if somebody has it. Raises OSError."""
        for _ in range(SEARCHES):
            if not file.any_is_open():
                return EXCHANGED
            found = take_socket(file.link())
            if found is not None:
                place.put(found)
                os.close(found)
                return PUT_BACK
        return SHARED if file.any_is_open() else EXCHANGED

    def put(self, place: Place, old: _socket.socket, new: int) -> None:
        """Put `new` in the place of `old`. An entry in an epoll ends with the last descriptor of
        its file: those of `old` do if it goes, and those of `new` if that does. Raises OSError:
        nothing has changed then."""
        place.put(new)
        try:
            for entry in place.entries:
                self.epolls.add(place.notification.thread, entry, new)
        except OSError:
            place.put(old.fileno())
            raise

    def replace(self, place: Place, old: _socket.socket, new: int) -> None:
        """Put `new` in the place of `old` for good, whoever else has that. Raises OSError."""
        self.put(place, old, new)
        for entry in place.entries:
            self.epolls.remove(place.notification.thread, entry, old.fileno())
