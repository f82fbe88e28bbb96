"""Connects again and again under a storm of signals: signalled.py ADDRESS PORT COUNT RESTART

Every call that a signal interrupts is followed by a wait, as programs do. Prints how many of the
connections carried bytes to and fro, and how many calls were interrupted.
"""

from __future__ import annotations

import ctypes
import errno
import select
import signal
import socket
import struct
import sys

ADDRESS, PORT, COUNT, RESTART = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
libc = ctypes.CDLL(None, use_errno=True)
place = struct.pack("=H", socket.AF_INET) + PORT.to_bytes(2, "big") + socket.inet_aton(ADDRESS)
place = place.ljust(16, b"\0")


def connect(made: socket.socket) -> int:
    """As connect(2): 0, or an errno."""
    return 0 if libc.connect(made.fileno(), place, 16) == 0 else ctypes.get_errno()


def finish(made: socket.socket) -> int:
    """What an interrupted call comes to. A signal may have come before the attempt had begun: then
    there is nothing to wait for, and the call has to be made anew."""
    result = connect(made)
    while result in (errno.EALREADY, errno.EINTR, errno.EINPROGRESS):
        select.select([], [made], [], 1)
        result = connect(made)
    return 0 if result == errno.EISCONN else result


def storm(on: bool) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.001 if on else 0, 0.001)


signal.signal(signal.SIGALRM, lambda *_: None)
libc.siginterrupt(signal.SIGALRM, 0 if RESTART else 1)
good = interrupted = 0
for _ in range(COUNT):
    with socket.socket() as made:
        storm(True)
        result = connect(made)
        if result == errno.EINTR:
            interrupted += 1
            result = finish(made)
        storm(False)
        if result == 0:
            made.settimeout(10)
            made.sendall(b"hello")
            good += made.recv(5, socket.MSG_WAITALL) == b"hello"
print(good, interrupted)
