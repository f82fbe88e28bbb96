"""The threads of this process."""

from __future__ import annotations

import os


def is_threaded() -> bool:
    """Whether this process runs more than one thread: unshare(CLONE_NEWUSER) is EINVAL then."""
    return len(os.listdir("/proc/self/task")) > 1
