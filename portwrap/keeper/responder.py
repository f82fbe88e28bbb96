"""The responder: what becomes of the sandbox's system calls that wait for the keeper.

The command has installed a seccomp filter (`kernel/seccomp_filter.py`) that has some system calls
of the sandbox wait for a response. Each of them has a handler here. Whatever goes wrong, the
caller's own call proceeds.
"""

from __future__ import annotations

import select

from ..kernel import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

    from .reactor import Reactor

    Handler = Callable[[seccomp.Notification], Optional[int]]


class Responder:
    """Receives the notifications of a seccomp listener and responds to each."""

    def __init__(self, listener: int, reactor: Reactor) -> None:
        self.listener = listener
        self.reactor = reactor
        self.handlers: dict[int, Handler] = {}
        seccomp.wake_up_in_place(listener)
        reactor.register(listener, self.on_events, select.EPOLLIN)

    def on(self, system_call: int, handler: Handler) -> None:
        """Have this handler decide what the system call of this number comes to: a result, where a
        negative one is an errno, or None for the caller's own call to proceed.

        It may raise anything: the call proceeds then. What it has done to the caller by then stays.
        """
        self.handlers[system_call] = handler

    def before(self, system_call: int, handler: Handler) -> None:
        """Have this handler decide first: only where it comes to None the one before it does."""
        later = self.handlers.get(system_call)

        def both(notification: seccomp.Notification) -> int | None:
            try:
                result = handler(notification)
            except Exception:
                result = None
            return later(notification) if result is None and later is not None else result

        self.handlers[system_call] = both

    def on_events(self, listener: int, events: int) -> None:
        """Respond to one that is waiting: whatever else the keeper watches has its turn before the
        next one."""
        if not events & select.EPOLLIN:
            # EPOLLHUP: nobody is left in the sandbox. Receiving would wait for ever then, before
            # Linux 6.12; with EPOLLIN it never does, even if the caller has gone meanwhile.
            self.reactor.unwatch(listener)
            return
        try:
            notification = seccomp.receive(listener)
        except OSError:
            return  # the caller has been killed, or interrupted, just now
        try:
            result = self.handlers[notification.call](notification)
        except Exception:
            result = None  # an exception must not end the session
        try:
            seccomp.respond(notification, result)
        except OSError:
            pass  # the caller has been killed, or interrupted
