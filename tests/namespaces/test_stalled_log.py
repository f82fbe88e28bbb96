"""A job's log on a file system that stands still: the session goes on, and ends as it should."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

from helpers import OWNER, PROJECT, cannot, end, lives, run_as, state_of, wait_until
from sessions import Inside, Portwrap, Session, channel_pair, holders_of, kill, unused_port

pytestmark = pytest.mark.namespaces

LOST = b"portwrap: slirp4netns ended by signal 9; ending the command (SIGTERM)\n"
GIVES_UP = 30.0
"""Seconds within which who waits for the log has given up: more than log.WRITE_TIMEOUT."""


class FileServer:
    """A file system of its own process, and a descriptor to write to the file that it has."""

    def __init__(self) -> None:
        channel, theirs = channel_pair()
        program = PROJECT / "tests" / "programs" / "file_server.py"
        argv = [sys.executable, "-I", "-S", str(program)]
        with channel, theirs:
            self.process = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            theirs.close()
            _, rights, _, _ = channel.recvmsg(10, socket.CMSG_SPACE(4))
        if not rights:
            cannot(f"no FUSE here: {self.process.communicate()[1].decode()}")
        self.file = int.from_bytes(rights[0][2], sys.byteorder)

    def stop(self) -> None:
        """It has taken no request that it does not answer: who waits for such a one waits on,
        whatever signal there is for it (fuse_dev_do_read, request_wait_answer)."""
        os.kill(self.process.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(self.process.pid) == "T", what="the file system stands still")

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def written(self) -> bytes:
        """What has been written since the last time."""
        assert self.process.stdout is not None
        number = self.process.stdout.fileno()
        return os.read(number, 65536) if select.select([number], [], [], 0)[0] else b""

    def end(self) -> None:
        """The kernel ends whatever still waits for it."""
        end(self.process)
        os.close(self.file)


@pytest.fixture
def log() -> Iterator[FileServer]:
    made = FileServer()
    try:
        yield made
    finally:
        made.end()


def waits_for(pid: int) -> str:
    """Where in the kernel a process waits."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return ""


def test_a_writer_is_stuck(log: FileServer) -> None:
    """The control: whoever writes there waits, and poll(2) had said that nobody would have to."""
    with subprocess.Popen(["echo", "first"], stdout=log.file) as writer:
        assert writer.wait(10) == 0
    wait_until(lambda: log.written() == b"first\n", what="the line")
    log.stop()
    assert select.select([], [log.file], [], 0)[1]
    with subprocess.Popen(["echo", "second"], stdout=log.file) as writer:
        wait_until(lambda: "request_wait_answer" in waits_for(writer.pid), what="a stuck writer")
        log.resume()
        assert writer.wait(10) == 0
    wait_until(lambda: log.written() == b"second\n", what="the line")


class Counting(Session):
    """A session whose command counts the SIGTERMs that it gets, and logs into this file."""

    def __init__(
        self, portwrap: Portwrap, folder: Path, log: FileServer, forward: str, **options: Any
    ) -> None:
        self.count = folder / "count"
        self.count.touch()
        self.count.chmod(0o666)
        command = portwrap.program("count_sigterm.py", self.count)
        super().__init__(portwrap, command, forward=forward, stderr=log.file, **options)

    def __enter__(self) -> Counting:
        return self

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.count.read_text() == "R", what="the command")
        self.wait_until_served()


@pytest.mark.parametrize("forward", ["relay", "auto"])
@pytest.mark.parametrize("resumed", [True, False])
def test_the_command_is_ended_all_the_same(
    portwrap: Portwrap, world_dir: Path, log: FileServer, forward: str, resumed: bool
) -> None:
    with Counting(portwrap, world_dir, log, forward) as session:
        session.wait_until_ready()
        keeper, driver = session.keeper, session.driver
        log.stop()
        kill(driver)
        wait_until(lambda: session.count.read_text() == "RT", what="SIGTERM for the command")
        wait_until(lambda: not holders_of(session.port), what="the host port is free")
        assert session.others() <= {keeper}
        if resumed:
            log.resume()
            wait_until(lambda: log.written() == LOST, what="the line in the log")
        wait_until(lambda: not session.others(), GIVES_UP, "nobody but the command is left")
        assert session.count.read_text() == "RT"


def test_the_driver_is_ended_all_the_same(
    portwrap: Portwrap, world_dir: Path, log: FileServer
) -> None:
    """Not only with the keeper, which may be stuck."""
    offers = {"PORTWRAP_HOST_SERVICE": str(unused_port())}
    with Counting(portwrap, world_dir, log, "relay", extra_env=offers) as session:
        session.wait_until_ready()
        keeper, driver = session.keeper, session.driver
        worker = wait_until(lambda: session.named("portwrap-relay"), what="the worker")
        log.stop()
        kill(worker)
        wait_until(lambda: session.count.read_text() == "RT", what="SIGTERM for the command")
        wait_until(lambda: not lives(driver), 5, "the end of the driver")
        assert lives(keeper)
        wait_until(lambda: not session.others(), GIVES_UP, "nobody but the command is left")


def test_a_listen_is_answered_all_the_same(portwrap: Portwrap, log: FileServer) -> None:
    """With -v a line tells of it."""
    extra = {"PORTWRAP_VERBOSE": "1"}
    with Inside(portwrap, forward="native", stderr=log.file, extra_env=extra) as session:
        session.wait_until_up()
        wait_until(lambda: log.written(), what="the lines of the start")
        session.listen("127.0.0.1", unused_port()).close()  # it looks at its standard error before
        log.stop()
        for _ in range(3):
            with session.serve() as listener:
                client, server = session.pair(listener)
                client.sendall(b"hello")
                assert server.recv(9) == b"hello"
        assert len(session.others()) <= 3  # with one that is stuck
        log.resume()
        wait_until(lambda: b"forward: native" in log.written(), what="the first line of them")
        wait_until(lambda: len(session.others()) == 2, what="nobody writes any more")
        with session.serve():
            wait_until(lambda: b"forward: native" in log.written(), what="the next line")


def test_no_process_to_write_a_line(portwrap: Portwrap, log: FileServer) -> None:
    """The account's are used up: a line in a file waits for the next one, or for the end."""
    extra = {"PORTWRAP_VERBOSE": "1"}
    with Inside(portwrap, forward="native", stderr=log.file, extra_env=extra) as session:
        session.wait_until_up()
        wait_until(lambda: b"ready" in log.written(), what="the lines of the start")
        run_as(OWNER, ["prlimit", "--pid", str(session.keeper), "--nproc=1:"])
        for _ in range(20):
            session.serve().close()
        assert log.written() == b""
        kill(session.driver)
        wait_until(lambda: not session.others(), what="the keeper gone")
        *lines, last = log.written().splitlines(keepends=True)
        assert last == LOST
        assert 1 < len(lines) < 20 and all(b"forward: native" in line for line in lines)
