"""The exchange: one file in the place of another, under a file descriptor in the sandbox.

Only where nobody but the caller has the file that goes: a duplicate, in whatever process or
message, would still mean the old one.
"""

from __future__ import annotations

import os

from ..kernel import procfs
from ..kernel.processes import take_socket
from ..kernel.seccomp import addfd
from ..kernel.sockets import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from ..kernel.seccomp import Notification

EXCHANGED, PUT_BACK, SHARED = "exchanged", "put back", "shared"
SEARCHES = 3
"""How often a file that somebody has is looked for: it may be on its way from one to another."""


def exchange(notification: Notification, old: _socket.socket, new: int) -> str:
    """Put our descriptor `new` in the place of the caller's, of which `old` is a duplicate, and
    close `old`. Raises OSError.

    EXCHANGED: nobody has the old socket any more. PUT_BACK: somebody else has it, and so has the
    caller again. SHARED: somebody else has it, but where we may not look, so that the caller has
    got the new one nevertheless.
    """
    link = procfs.link_of(old.fileno())
    flags = procfs.flags_of(notification.thread, notification.descriptor) & os.O_CLOEXEC
    file = OpenFile(old.fileno())
    try:
        addfd(notification, new, flags)
        # Only the last reference makes a difference that can be seen: ours has to go, too.
        old.close()
        for _ in range(SEARCHES):
            if not file.is_open():
                return EXCHANGED
            found = take_socket(link)
            if found is not None:
                addfd(notification, found, flags)
                os.close(found)
                return PUT_BACK
        return SHARED if file.is_open() else EXCHANGED
    finally:
        file.close()
