"""The lifecycle: whose end the keeper waits for, and what it does then."""

from __future__ import annotations

import os
import select

import _signal as signal

from .. import protocol
from ..diagnostics.errors import Failure
from ..kernel import procfs
from ..kernel.processes import send_signal
from ..kernel.waiting import Countdown
from .log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .driver import DriverProcess
    from .session import Session
    from .worker import Worker


class Lifecycle:
    """The command, the network driver, the workers, and the keeper's end of the lifeline."""

    def __init__(self, session: Session) -> None:
        go = session.go
        self.log = Log(go.program, go.verbose)
        self.lifeline = session.lifeline
        self.command = go.command  # process number
        self.process = go.descriptors.process  # its pidfd, or the directory of its /proc entry
        self.has_pidfd = go.has_pidfd
        self.ready = False  # what fails from here on ends the command; before, there is none
        self.driver = session.driver
        self.workers: list[Worker] = []

    # -- the command -----------------------------------------------------------------------

    def is_gone(self) -> bool:
        """Whether the command has ended: a zombie has, too."""
        if self.has_pidfd:
            poll = select.poll()
            poll.register(self.process, select.POLLIN)
            return bool(poll.poll(0))
        return procfs.has_ended(self.process)

    def end_command(self) -> None:
        """SIGTERM for the command, exactly once.

        The kernel sends it when the last descriptor of our end of the lifeline closes
        (F_SETSIG, fcntl(2)); by hand only where the command has let its own end go.
        """
        poll = select.poll()
        poll.register(self.lifeline.fileno(), select.POLLIN)
        if poll.poll(0):
            send_signal(self.command, signal.SIGTERM)
        self.lifeline.close()  # now: the command may let its end go while we end the driver

    # -- the network driver ----------------------------------------------------------------

    def wait_for_driver(self, driver: DriverProcess) -> None:
        """Return when the network driver has reported that it is ready; else have the launching
        process report why not."""
        poll = select.poll()
        for descriptor in (driver.ready, self.lifeline.fileno(), driver.messages):
            poll.register(descriptor, select.POLLIN)
        countdown = Countdown(driver.timeout)
        while True:
            events = countdown.poll(poll)
            if self.lifeline.fileno() in events:
                self.leave()  # the command ended before it began
            if driver.messages in events and not driver.read_messages():
                poll.unregister(driver.messages)
            if driver.ready in events and os.read(driver.ready, 1):
                os.close(driver.ready)
                return
            if driver.ready in events:
                why = driver.why_not_ready()
                if driver.start_again():
                    return self.wait_for_driver(driver)
                self.give_up_driver("ended before it was ready", why)
            if not events:
                limit = f"{driver.timeout} s"
                self.give_up_driver(f"was not ready in {limit}", driver.why_not_ready())

    def give_up_driver(self, what: str, why: str) -> NoReturn:
        assert self.driver is not None
        self.give_up(f"{self.driver.name} {what}{why}", Failure.DRIVER_START)

    # -- endings ---------------------------------------------------------------------------

    def fail(self, why: str) -> NoReturn:
        """End the session, or have none."""
        if self.ready:
            self.end_session(why)
        self.give_up(why)

    def end_session(self, why: str) -> NoReturn:
        """End the command, log why, and end."""
        if not self.is_gone():
            self.end_command()
            self.kill_children()  # now: the log may keep us for ever
            self.log.write_last(f"{why}; ending the command (SIGTERM)")
        self.leave()

    def give_up(self, why: str, failure: str = Failure.KEEPER) -> NoReturn:
        """Have the launching process report why there is no session."""
        self.send(protocol.Refused(why, failure))
        self.leave()

    def send(self, answer: protocol.Message) -> None:
        """Answer the launching process; if it has ended meanwhile, nobody is left to serve."""
        try:
            protocol.send(self.lifeline, answer)
        except OSError:
            self.leave()

    def kill_children(self) -> None:
        for worker in self.workers:
            send_signal(worker.process, signal.SIGKILL)
        if self.driver is not None and self.driver.pid:
            send_signal(self.driver.pid, signal.SIGKILL)

    def leave(self) -> NoReturn:
        """End the other processes and this one; the kernel closes the rest."""
        ends: list[Callable[[], object]] = [worker.end for worker in self.workers]
        if self.driver is not None:
            ends.append(self.driver.kill)
        for end in ends:
            try:
                end()
            except OSError:
                pass  # it ends with us: by the end of file of its link, or by PR_SET_PDEATHSIG
        os._exit(0)
