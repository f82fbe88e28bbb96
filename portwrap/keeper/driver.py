"""The network driver: slirp4netns or pasta, a child of the keeper on the command's namespaces."""

from __future__ import annotations

import marshal
import os
import time

import _signal as signal

from ..kernel import libc
from ..kernel.processes import close_all_but, pidfd_open, raise_descriptor_limit, send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from .. import protocol

REAP_PAUSE = 0.005
"""Seconds between two looks at a driver that is about to end."""
VARIABLES = ("PATH",)
"""What a driver gets of the job's environment. The rest could make it another program: G_DEBUG,
SLIRP_DEBUG, GLIBC_TUNABLES, or LD_LIBRARY_PATH with another version of its libraries."""
LINKER = "LD_"
"""Beginning of the variables of the dynamic linker (ld.so(8))."""
NOT_LINKED = 127
"""Exit status of a program whose libraries were not found."""


def variables() -> dict[str, str]:
    """The environment of a driver."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


class WaitingChild:
    """A child of the keeper that becomes the network driver when it is told to.

    The keeper makes it first of all: to fork and to prepare takes 1 ms, which passes while there
    are no namespaces yet.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises OSError."""
        self.environ = environ
        self.ready, ready_end = os.pipe()
        self.messages, messages_end = os.pipe()  # its standard error
        order, self.order = os.pipe()
        keeper = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become_driver(environ, keeper, order, ready_end, messages_end)
        os.close(ready_end)  # else one that has ended looks like a slow one
        os.close(messages_end)
        os.close(order)

    def become(self, driver: protocol.StartDriver) -> None:
        """Have it exec this driver."""
        try:
            # less than a pipe's capacity: this never waits
            os.write(self.order, marshal.dumps((driver.argv, driver.ready_descriptor)))
        except BrokenPipeError:
            pass  # it has ended: whoever waits for the driver finds that
        os.close(self.order)

    def dismiss(self) -> None:
        """There is no network driver in this session."""
        for descriptor in (self.order, self.ready, self.messages):
            os.close(descriptor)
        os.waitpid(self.pid, 0)

    @property
    def descriptors(self) -> set[int]:
        """Those that the keeper has of it."""
        return {self.order, self.ready, self.messages}


class DriverProcess:
    """A network driver that has been started."""

    def __init__(self, driver: protocol.StartDriver, child: WaitingChild) -> None:
        """Start it. Raises OSError."""
        self.name = driver.name
        self.timeout = driver.timeout
        self.driver = driver
        self._start(child)

    def _start(self, child: WaitingChild) -> None:
        self.environ = child.environ
        self.ready, self.messages = child.ready, child.messages
        self.tail = b""  # the end of its messages
        self.messages_end_reached = False
        self.status = 0  # of waitpid(2), once it has ended
        self.pid = child.pid  # 0: it has ended
        child.become(self.driver)
        self.pidfd = pidfd_open(self.pid) if self.driver.has_pidfd else -1

    def start_again(self) -> bool:
        """Start one that has ended once more, if it did not find its libraries, with the variables
        by which it may: some are installed so. Raises OSError."""
        linker = {name: os.environ[name] for name in os.environ if name.startswith(LINKER)}
        ended = self.pid == 0 and os.WIFEXITED(self.status)
        if not ended or os.WEXITSTATUS(self.status) != NOT_LINKED:
            return False
        if linker.items() <= self.environ.items():
            return False  # there are none, or that was with them
        for descriptor in (self.ready, self.messages, self.pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._start(WaitingChild({**self.environ, **linker}))
        return True

    def read_messages(self) -> bool:
        """Keep the end of what it prints. False: it has closed its pipe."""
        data = os.read(self.messages, 4096)
        self.tail = (self.tail + data)[-1024:]
        self.messages_end_reached = not data
        return bool(data)

    def drain(self) -> None:
        """Read what is left in the pipe of a driver that has ended, without waiting."""
        os.set_blocking(self.messages, False)
        try:
            while not self.messages_end_reached and self.read_messages():
                pass
        except OSError:
            pass

    def last_messages(self) -> str:
        """What it printed last, behind a colon; "" for nothing."""
        lines = self.tail.decode("utf-8", "replace").split("\n")
        # pasta also reports that nobody takes its messages, on nodes without a system log
        kept = (line.strip() for line in lines if not line.startswith("Failed to send "))
        text = "; ".join(filter(None, kept))
        return f": {text[-400:]}" if text else ""

    def why_not_ready(self) -> str:
        """How it ended, if it did, and what it printed."""
        pid, status = self.reap(0.2)
        self.drain()
        if pid == 0:
            return self.last_messages()
        return f" ({how_ended(status)}{self.last_messages()})"

    def reap(self, timeout: float = 0.0) -> tuple[int, int]:
        """waitpid(2), `timeout` seconds at most: its process number, or 0, and its status."""
        until = time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid or time.monotonic() >= until:
                self.pid, self.status = (0, status) if pid else (self.pid, 0)
                return pid, status
            time.sleep(REAP_PAUSE)

    def kill(self) -> None:
        """End it. One that we may not end does so by itself when we do, or when the sandbox is
        gone: it is not waited for."""
        if self.pid and send_signal(self.pid, signal.SIGKILL):
            os.waitpid(self.pid, 0)


def how_ended(status: int) -> str:
    """How a process ended, from its wait status."""
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    return f"ended with status {os.WEXITSTATUS(status)}"


def _become_driver(
    environ: Mapping[str, str], keeper: int, order: int, ready: int, messages: int
) -> NoReturn:
    """Become the network driver, which dies with the keeper (PR_SET_PDEATHSIG, prctl(2)), or end if
    there is to be none."""
    argv = ["the network driver"]
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(0)  # the keeper died before the kernel had been told
        # pasta gives up where Python's "ignore" stays
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.dup2(messages, 2)
        close_all_but({0, 1, 2, order, ready})
        raise_descriptor_limit()
        data = b"".join(iter(lambda: os.read(order, 4096), b""))
        if not data:
            os._exit(0)
        argv, number = marshal.loads(data)
        os.dup2(ready, number)
        os.set_inheritable(number, True)  # dup2 does not where it is that number already
        os.execve(argv[0], argv, environ)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(0)
