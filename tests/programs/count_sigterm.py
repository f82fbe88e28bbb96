"""Writes R into a file when it is ready, then T for each SIGTERM. It ends by SIGKILL only.

Before, with these words after the file's name:

    closes       closes every descriptor above 2
    child        leaves a child, which keeps every descriptor
    daemon       leaves a child in a session of its own, which keeps every descriptor
    ends         then ends with status 0
"""

from __future__ import annotations

import os
import signal
import sys

path, *modes = sys.argv[1:]


def leave_child() -> None:
    if os.fork() == 0:
        if "daemon" in modes:
            os.setsid()
        while True:
            signal.pause()


if "child" in modes or "daemon" in modes:
    leave_child()
if "closes" in modes:
    os.closerange(3, 1 << 16)
# Waited for, not handled: one that came just before signal.pause would be counted with the next.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
file = os.open(path, os.O_WRONLY | os.O_APPEND)
os.write(file, b"R")
while "ends" not in modes:
    signal.sigwait({signal.SIGTERM})
    os.write(file, b"T")
