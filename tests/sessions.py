"""A session that a test plays with: started as an account, watched through /proc from outside."""

from __future__ import annotations

import array
import marshal
import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Iterator, Sequence

import measure

from helpers import (
    OWNER,
    PORTS,
    PROJECT,
    as_user,
    descendants,
    end,
    environment,
    lives,
    needs,
    state_of,
    wait_until,
)

ENTRY = "from portwrap.__main__ import main"
MARK = "PORTWRAP_TEST_MARK"
KEEPER = "portwrap-keeper"
DRIVER = "slirp4netns"
# pasta starts a faster build of itself, in some packages under the name of its twin
DRIVERS = (DRIVER, "pasta", "pasta.avx2", "passt.avx2")


_given: deque[int] = deque(maxlen=400)


def unused_port() -> int:
    """A TCP port that nobody holds, and that was not given to somebody just now."""
    return unused_ports(1)[0]


def unused_ports(count: int) -> list[int]:
    """So many in a row."""
    ports = row_of_ports(count, frozenset(_given)) or row_of_ports(count, frozenset())
    assert ports, f"there are no {count} ports in a row that nobody holds"
    _given.extend(ports)
    return ports


def row_of_ports(count: int, given: frozenset[int]) -> list[int]:
    """So many in a row that nobody holds, and none of the given ones; nothing if there are none."""
    first = random.choice(PORTS[: len(PORTS) - count])
    for _ in PORTS:
        ports = list(range(first, first + count))
        taken = max(given.intersection(ports), default=0)
        taken = taken or next((port for port in reversed(ports) if holders_of(port)), 0)
        if not taken:
            return ports
        first = taken + 1 if taken + count < PORTS.stop else PORTS.start
    return []


def port_without_a_past() -> int:
    """One that needs no SO_REUSEADDR: no connection of an earlier test is in TIME_WAIT on it."""
    while True:
        port = unused_port()
        try:
            for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                with socket.socket(family) as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return port


def holders_of(port: int) -> list[str]:
    """The address families in which somebody holds this TCP port of the host; closed connections
    that the kernel still remembers do not count."""
    held = []
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
                probe.listen()
            except OSError:
                held.append(address)
    return held


def name_of(pid: int) -> str:
    """The name of a process; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def fields_of(pid: int) -> list[str]:
    """What proc_pid_stat(5) has behind the name of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def parent_of(pid: int) -> int:
    """0 if the process is gone."""
    fields = fields_of(pid)
    return int(fields[1]) if fields else 0


def start_of(pid: int) -> int:
    """When a process began, in clock ticks: its number may be another one's later. 0 if it is
    gone."""
    fields = fields_of(pid)
    return int(fields[19]) if fields else 0


def serves(keeper: int) -> bool:
    """Whether this keeper waits for events; before that, a child of it compiles what it runs."""
    try:
        place = Path(f"/proc/{keeper}/wchan").read_text()
        return "epoll" in place or "ep_poll" in place
    except OSError:
        return False


def bearers_of(mark: str, command: int = 0) -> set[int]:
    """Our live processes that were started with this mark in their environment, and the network
    drivers of these and of the process `command`: a driver gets nothing of the environment."""
    found = set()
    wanted = f"{MARK}={mark}".encode()
    processes = descendants(os.getpid())
    for pid in processes:
        try:
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:
            continue  # it has ended, or is about to
    commands = {b"%d" % pid for pid in (command, *found)}
    drivers = {pid for pid in processes if name_of(pid) in DRIVERS}
    found |= {pid for pid in drivers if commands.intersection(argv_of(pid))}
    for keeper in [pid for pid in found if name_of(pid) == KEEPER]:
        found |= descendants(keeper)
    return set(filter(lives, found))


def argv_of(pid: int) -> list[bytes]:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


class Portwrap:
    """A copy of the package, and of the programs of the tests, that every account can run."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = python
        self.folder = folder
        shutil.copytree(PROJECT / "portwrap", folder / "portwrap", dirs_exist_ok=True)
        shutil.copytree(PROJECT / "tests" / "programs", folder / "programs", dirs_exist_ok=True)
        measure.prepare(folder / "portwrap")
        subprocess.run([python, "-m", "compileall", "-q", folder], check=True)

    @property
    def words(self) -> list[str]:
        """Words that start the portwrap command."""
        text = f"import sys; sys.path.insert(0, {str(self.folder)!r})"
        return [self.python, "-c", f"{text}; {ENTRY}; sys.exit(main())"]

    def program(self, name: str, *arguments: str | Path) -> list[str]:
        """Words that start one of the tests' programs."""
        return [self.python, "-I", "-S", str(self.folder / "programs" / name), *map(str, arguments)]

    def maker(self) -> list[str]:
        """Words that start the maker of sockets."""
        return self.program("socket_maker.py")


class Session:
    """A command started through portwrap, with everything that belongs to it.

    Use it as a context manager: whatever is left at its end is killed.
    """

    def __init__(
        self,
        portwrap: Portwrap,
        command: Sequence[str | Path],
        *,
        account: str = OWNER,
        before: Sequence[str] = (),
        host: str = "",
        guest_port: int = 8888,
        forward: str = "relay",
        network: str = "auto",
        outward: str = "",
        port: int = 0,
        extra_env: dict[str, str] | None = None,
        **popen: Any,
    ) -> None:
        self.mark = secrets.token_hex(8)
        self.seen: set[tuple[int, int]] = set()
        self.port = port or unused_port()
        self.guest_port = guest_port
        options = ["-p", str(self.port), "-P", str(guest_port), "--forward", forward]
        options += ["--network", network]
        # Else a relay would have a worker in the sandbox: tests of the relay are about it alone.
        outward = outward or ("helper" if forward == "relay" else "")
        options += ["--outward", outward] if outward else []
        self.network = network
        if host:
            options += ["--host", host]
        env = environment(account, {**(extra_env or {}), MARK: self.mark})
        argv = [*before, *portwrap.words, *options, *map(str, command)]
        self.sockets: list[socket.socket] = []
        self.process = as_user(account, argv, env=env, **popen)
        self.pid = self.process.pid

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill and reap whatever lives, and close what `keep` has got."""
        for made in self.sockets:
            made.close()
        self.end_processes()
        end(self.process)

    def end_processes(self) -> None:
        """Kill whatever lives; what they have written can still be read."""
        for pid in self.alive():
            kill(pid)
        self.process.wait()

    def keep(self, made: socket.socket) -> socket.socket:
        """Close this socket at the end of the session, if the test has not done so."""
        self.sockets.append(made)
        return made

    def client(self, address: str = "127.0.0.1") -> socket.socket:
        """A connection to the host port."""
        return self.keep(socket.create_connection((address, self.port), timeout=10))

    def pair(self, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        """A client outside and the server's end of its connection inside."""
        client = self.client()
        server = self.keep(listener.accept()[0])
        server.settimeout(10)
        return client, server

    def alive(self) -> set[int]:
        """Every live process of this session, the command among them.

        A process that ends, and for a moment one that is exec'ed, has no environment by which it
        is found; the files of the first are open still. So one that was found once is known.
        """
        self.seen |= {(pid, start_of(pid)) for pid in bearers_of(self.mark, self.pid)}
        return {pid for pid, start in self.seen if lives(pid) and start_of(pid) == start}

    def others(self) -> set[int]:
        """Every live process of this session but the command."""
        return self.alive() - {self.pid}

    def named(self, name: str) -> int:
        """The one live process with this name besides the command; 0 if there is none. A child
        that has not been given another name yet is not the one."""
        found = [pid for pid in self.others() if name_of(pid) == name]
        return next((pid for pid in found if parent_of(pid) not in found), 0)

    @property
    def keeper(self) -> int:
        return self.named(KEEPER)

    @property
    def driver(self) -> int:
        return next(filter(None, map(self.named, DRIVERS)), 0)

    def wait_until_up(self) -> None:
        """Wait until the command has been exec'ed in its sandbox, and is served."""
        wait_until(
            lambda: self.keeper and (self.driver or self.network in ("none", "direct")),
            what=f"a keeper and a driver {self.mark}",
        )
        wait_until(self.is_executed, what="exec of the command")
        self.wait_until_served()

    def is_executed(self) -> bool:
        """In the middle of exec the command line is empty (proc_pid_cmdline(5))."""
        words = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return words != b"" and ENTRY.encode() not in words

    def wait_until_served(self) -> None:
        """Wait until the keeper has all that it runs."""
        wait_until(lambda: serves(self.keeper), what="the keeper serves")

    def wait_until_gone(self, seconds: float) -> None:
        """Fail unless no process is left and the port is free within this many seconds."""
        wait_until(
            lambda: not self.alive() and not holders_of(self.port),
            seconds,
            f"no process of {self.mark} left, and port {self.port} free",
        )

    def stderr(self) -> str:
        """What was said on standard error; call it when all processes have ended."""
        assert self.process.stderr is not None
        return str(self.process.stderr.read())


class Maker:
    """Sockets made by another process, which runs socket_maker.py, and handed out to the test."""

    channel: socket.socket

    def ask(self, **request: Any) -> list[int]:
        """Send one request and return the descriptors of its answer. Raises OSError as there."""
        self.channel.send(marshal.dumps(request, 2))  # as every Python reads it
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        data, ancillary, _, _ = self.channel.recvmsg(65536, room)
        assert data, "the maker of sockets has ended"
        if data.isdigit():
            raise OSError(int(data), os.strerror(int(data)))
        descriptors = array.array("i")
        for _, _, rights in ancillary:
            descriptors.frombytes(rights)
        return list(descriptors)

    def make(self, **request: Any) -> socket.socket:
        """A socket made there. Raises OSError as it happened there."""
        made = socket.socket(fileno=self.ask(**request)[0])
        made.settimeout(10)
        return made

    def listen(self, address: str, port: int, backlog: int = 1024) -> socket.socket:
        """A TCP socket that listens there."""
        return self.make(do="listen", address=address, port=port, backlog=backlog)

    def connect(self, address: str, port: int) -> socket.socket:
        """A TCP connection made there."""
        return self.make(do="connect", address=address, port=port)


class Inside(Session, Maker):
    """A session whose command makes sockets in its sandbox and hands them out."""

    def __init__(self, portwrap: Portwrap, **options: Any) -> None:
        self.channel, theirs = channel_pair()
        with theirs:
            super().__init__(portwrap, portwrap.maker(), stdin=theirs, **options)

    def __enter__(self) -> Inside:
        return self

    def end(self) -> None:
        self.channel.close()
        super().end()

    def serve(self, address: str = "127.0.0.1", backlog: int = 1024) -> socket.socket:
        """A TCP socket that listens on the guest port."""
        return self.listen(address, self.guest_port, backlog)


class Outside(Maker):
    """The same maker of sockets without a sandbox, as the same account."""

    def __init__(
        self, portwrap: Portwrap, account: str = OWNER, before: Sequence[str] = ()
    ) -> None:
        self.channel, theirs = channel_pair()
        with theirs:
            self.process = as_user(account, [*before, *portwrap.maker()], stdin=theirs)
        self.pid = self.process.pid

    def __enter__(self) -> Outside:
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()
        end(self.process)


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Our end and a maker's end of a channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)  # a session may have to start first
    return ours, theirs


def kill(pid: int) -> None:
    """SIGKILL for a process that may have ended already."""
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


def end_of(process: subprocess.Popen[str], seconds: float = 10) -> int:
    """The exit status, within a limit in seconds."""
    return process.wait(timeout=seconds)


def last_words(session: Session, client: socket.socket) -> bytes:
    """What this client of a session whose command ends, with status 0, reads to its end. It reads
    meanwhile: what is not read in time may be cut off."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: b"".join(iter(lambda: client.recv(1 << 20), b"")))
        assert session.process.wait(timeout=20) == 0
        return reading.result()


@contextmanager
def injected(pid: int, what: str, children: bool = False) -> Iterator[None]:
    """Within it strace tampers with the system calls of the process, and of those that it forks, if
    wanted (strace(1), -e inject)."""
    needs("strace")
    words = ["strace", "-qq", "-e", f"inject={what}", "-p", str(pid)]
    words += ["-f"] if children else []
    with tempfile.TemporaryFile() as log:
        output = f"/proc/self/fd/{log.fileno()}"
        with subprocess.Popen([*words, "-o", output], pass_fds=[log.fileno()]) as strace:
            try:
                # It is the process's tracer some time before it has the process stop at calls.
                wait_until(lambda: os.fstat(log.fileno()).st_size, what="strace at work")
                yield
            finally:
                strace.terminate()


def wake_ups(pid: int) -> int:
    """How often the process has gone to sleep so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def processor_time(pid: int) -> int:
    """Clock ticks of processor time used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def seconds_in_queue(pid: int) -> float:
    """For how long the process could have run so far but had to wait for a processor; 0 where the
    kernel does not count it (proc_pid_schedstat(5))."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


def settle(keeper: int) -> None:
    """Wait until the keeper has done what there was to do."""

    def asleep() -> bool:
        before = wake_ups(keeper)
        sleeping = state_of(keeper) == "S"  # else it may only wait for a processor
        time.sleep(0.05)
        return sleeping and state_of(keeper) == "S" and wake_ups(keeper) == before

    wait_until(asleep, what="the keeper asleep")


def assert_quiet(keeper: int, seconds: float, most: int) -> None:
    """The keeper sleeps through a window of time, but for `most` wake-ups."""
    wakes, ticks, begun = wake_ups(keeper), processor_time(keeper), time.monotonic()
    time.sleep(seconds)  # that nothing happens can only be seen by waiting
    longer = max(1.0, (time.monotonic() - begun) / seconds)
    assert wake_ups(keeper) - wakes <= most * longer
    assert processor_time(keeper) - ticks <= 1
