"""The responder: what becomes of the sandbox's system calls that wait for the keeper.

The command has installed a seccomp filter (`kernel/seccomp.py`) that has some system calls of the
sandbox wait for a response. Each of them has a handler here. Whatever goes wrong, the caller's own
call proceeds.
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

MAX_RESPONSES = 16
"""Notifications in a row before whatever else the keeper watches has its turn."""


class Responder:
    """Receives the notifications of a seccomp listener and responds to each."""

    def __init__(self, listener: int, reactor: Reactor) -> None:
        self.listener = listener
        self.reactor = reactor
        self.handlers: dict[int, Handler] = {}
        seccomp.wake_up_in_place(listener)
        reactor.watch(listener, self.on_notifications)

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

    def on_notifications(self) -> None:
        """Respond to those that are waiting, and leave some for the next time if they are many."""
        for _ in range(MAX_RESPONSES):
            notification = self.receive()
            if notification is None:
                return
            self.respond(notification)

    def receive(self) -> seccomp.Notification | None:
        """The next notification, without waiting for one."""
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        state = dict(poll.poll(0)).get(self.listener, 0)
        if not state & select.POLLIN:
            # Without POLLIN its caller has been killed. POLLHUP: nobody is left in the sandbox;
            # receiving would wait for ever before Linux 6.12.
            if state:
                self.reactor.unwatch(self.listener)
            return None
        try:
            return seccomp.receive(self.listener)
        except OSError:
            return None  # the caller has been killed, or interrupted, just now

    def respond(self, notification: seccomp.Notification) -> None:
        """Have its handler decide, and let the caller go on."""
        try:
            result = self.handlers[notification.call](notification)
        except Exception:
            result = None  # an exception must not end the session
        try:
            seccomp.respond(notification, result)
        except OSError:
            pass  # the caller has been killed, or interrupted
