"""Waiting with a timeout."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from select import poll

SLICE = 0.1
"""Seconds of one look at most; so much of the time in which we were stopped is counted."""


class Countdown:
    """Seconds that something may take, without those in which this process was stopped (SIGSTOP, a
    frozen cgroup): batch systems suspend jobs, and then what we wait for stands still as well."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def poll(self, poll: poll) -> dict[int, int]:
        """The events of poll(2), by file descriptor; none once the time is over."""
        while self.left > 0:
            part = min(SLICE, self.left)
            began = time.monotonic()
            events = poll.poll(1000 * part)
            self.left -= min(part, time.monotonic() - began)
            if events:
                return dict(events)
        return {}
