"""The reactor: what is to be called when a file descriptor is ready, or when a moment has come.

One thread and one epoll for all that the keeper watches. Nothing that it calls may block.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Action = Callable[[], None]
    Handler = Callable[[int, int], None]

BUFFER_SIZE = 256 * 1024
READABLE = select.EPOLLIN | select.EPOLLRDHUP


class Timer:
    """A moment at which something is to be called."""

    __slots__ = ("action", "deadline")

    def __init__(self, deadline: float, action: Action) -> None:
        self.deadline = deadline  # of time.monotonic()
        self.action = action


class Reactor:
    """Calls what has been registered with it."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.handlers: dict[int, Handler] = {}
        self.fresh: set[int] = set()  # descriptors that came after the events at hand
        self.timers: list[Timer] = []  # few; the one that is due first comes last
        self.soon: list[Action] = []
        self._buffer: memoryview | None = None

    @property
    def buffer(self) -> memoryview:
        """Room for what is read from one descriptor and sent to another within one call: an idle
        session does without."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(BUFFER_SIZE))
        return self._buffer

    # -- file descriptors ------------------------------------------------------------------

    def watch(self, descriptor: int, action: Action, edge: bool = False) -> None:
        """Call `action` whenever this descriptor is readable or at its end; with `edge` only when
        it has become so. Raises OSError."""
        events = READABLE | select.EPOLLET if edge else READABLE
        self.register(descriptor, lambda _descriptor, _events: action(), events)

    def register(self, descriptor: int, handler: Handler, events: int) -> None:
        """Call `handler` with this descriptor and what has happened to it, of these events and
        those that epoll_ctl(2) always reports. Raises OSError."""
        self.epoll.register(descriptor, events)
        self.handlers[descriptor] = handler
        self.fresh.add(descriptor)

    def modify(self, descriptor: int, events: int) -> None:
        """Have other events reported from now on. One of them that is there is reported again."""
        self.epoll.modify(descriptor, events)

    def set_handler(self, descriptor: int, handler: Handler) -> None:
        """Call another handler for the same events from now on."""
        self.handlers[descriptor] = handler

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch` or `register`."""
        del self.handlers[descriptor]
        self.epoll.unregister(descriptor)

    def forget(self, descriptor: int) -> None:
        """The same for one that is closed next: the kernel takes it out of the epoll by itself."""
        self.handlers.pop(descriptor, None)

    def is_watched(self, descriptor: int) -> bool:
        return descriptor in self.handlers

    # -- moments ---------------------------------------------------------------------------

    def call_in(self, seconds: float, action: Action) -> Timer:
        """Call `action` once after so many seconds."""
        timer = Timer(time.monotonic() + seconds, action)
        self.timers.append(timer)
        self.timers.sort(key=lambda timer: -timer.deadline)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Do not call it, if it has not been called."""
        if timer in self.timers:
            self.timers.remove(timer)

    def call_soon(self, action: Action) -> None:
        """Call `action` once when the next events have been dealt with; none is waited for."""
        self.soon.append(action)

    # -- the loop --------------------------------------------------------------------------

    def run_once(self, timeout: float = -1.0) -> None:
        """Wait for something to call, `timeout` seconds at most (-1: without end), and call it."""
        events = self.epoll.poll(self.timeout(timeout))
        soon, self.soon = self.soon, []
        self.fresh.clear()
        for descriptor, event in events:
            handler = self.handlers.get(descriptor)
            # A number that was closed meanwhile may have been given out again: what is reported
            # here about its past must not meet the new one.
            if handler is not None and descriptor not in self.fresh:
                handler(descriptor, event)
        for action in soon:
            action()
        while self.timers and self.timers[-1].deadline <= time.monotonic():
            self.timers.pop().action()

    def timeout(self, limit: float) -> float:
        """Seconds to wait for events, `limit` at most (-1: no limit)."""
        if self.soon:
            return 0.0
        if not self.timers:
            return limit
        wait = max(0.0, self.timers[-1].deadline - time.monotonic())
        return wait if limit < 0 else min(limit, wait)

    def close(self) -> None:
        self.epoll.close()
