"""Clients that find no server, because it listens elsewhere: the job's log has where, and what to
do about it."""

from __future__ import annotations

import os
import re
import socket
from contextlib import ExitStack
from typing import Any, Iterator

import pytest

from portwrap.diagnostics import remedies
from portwrap.diagnostics.errors import Failure

from helpers import needs, wait_until
from sessions import Inside, Portwrap, Session, settle, unused_port

pytestmark = [pytest.mark.namespaces, pytest.mark.slow, pytest.mark.timeout(120)]
GUEST, OTHER = 8888, 8889
FOUND = "portwrap: clients of the host port find no server: "
ON_ANOTHER_PORT = (
    f"{FOUND}nothing listens on the guest port 8888, only on 8889\n"
    "  The server must listen on port 8888: remove the port from its configuration, or make it"
    " the guest port, for example with -P 8889.\n"
)
IN_ANOTHER_NAMESPACE = (
    f"{FOUND}process PID (python3) listens on port 8888 in another network namespace\n"
    "  The server must run in the session's own: podman run --network=host, apptainer without"
    " --net, bwrap without --unshare-net.\n"
)
OWN_NAMESPACE = ["unshare", "-Urn"]
IN_A_CHILD = ["sh", "-c", '"$@" & wait', "sh"]
SERVICE = {"PORTWRAP_HOST_SERVICE": str(unused_port())}
CASES: dict[str, tuple[dict[str, Any], list[str], int, str]] = {
    # session, what runs the server, its port (0: there is none), what is logged
    "native": ({"forward": "native"}, [], OTHER, ON_ANOTHER_PORT),
    "relay": ({"forward": "relay"}, [], OTHER, ON_ANOTHER_PORT),
    "worker": ({"forward": "relay", "extra_env": SERVICE}, [], OTHER, ON_ANOTHER_PORT),
    "namespace": (
        {"forward": "native"},
        [*IN_A_CHILD, *OWN_NAMESPACE],
        GUEST,
        IN_ANOTHER_NAMESPACE,
    ),
    "namespace-relay": (
        {"forward": "relay"},
        [*IN_A_CHILD, *OWN_NAMESPACE],
        GUEST,
        IN_ANOTHER_NAMESPACE,
    ),
    "command-in-namespace": ({"forward": "native"}, OWN_NAMESPACE, GUEST, IN_ANOTHER_NAMESPACE),
    # controls
    "none": ({"forward": "native"}, [], 0, ""),
    "none-relay": ({"forward": "relay", "extra_env": SERVICE}, [], 0, ""),
    "served": ({"forward": "native"}, [], GUEST, ""),
    "served-relay": ({"forward": "relay"}, [], GUEST, ""),
}


class Log:
    """What a session has logged so far."""

    def __init__(self, session: Session) -> None:
        assert session.process.stderr is not None
        self.descriptor = session.process.stderr.fileno()
        os.set_blocking(self.descriptor, False)
        self.data = b""

    def text(self) -> str:
        """All but the start-up line."""
        try:
            self.data += os.read(self.descriptor, 65536)
        except BlockingIOError:
            pass
        lines = self.data.decode().splitlines(keepends=True)
        return "".join(line for line in lines if "portwrap: forwarding" not in line)


@pytest.fixture(scope="module")
def sessions(portwrap: Portwrap) -> Iterator[dict[str, tuple[Session, Log]]]:
    """One for each case, all at once: each takes ten seconds of waiting."""
    needs("unshare")
    with ExitStack() as stack:
        made = {}
        for name, (options, before, port, _) in CASES.items():
            command = [*before, *server_on(portwrap, port)] if port else ["sleep", "600"]
            options = {"network": "none", "stdin": -3, **options}
            session = stack.enter_context(Session(portwrap, command, **options))
            made[name] = session, Log(session)
        for session, _ in made.values():
            session.wait_until_up()
        yield made


def knock(session: Session) -> None:
    """Come as a client, as a hub does again and again, and do not wait for an answer."""
    try:
        socket.create_connection(("127.0.0.1", session.port), timeout=10).close()
    except OSError:
        pass  # the relay resets who finds no server


def test_where_the_server_listens(sessions: dict[str, tuple[Session, Log]]) -> None:
    """Not where nothing listens at all: a server may need its time to start."""

    def have_reported() -> bool:
        for session, _ in sessions.values():
            knock(session)
        return all(log.text() for name, (_, log) in sessions.items() if CASES[name][3])

    wait_until(have_reported, 30, "a report of each")
    for session, _ in sessions.values():
        knock(session)
    for name, (session, log) in sessions.items():
        session.wait_until_served()
        text, pids = re.subn(r"process \d+", "process PID", log.text())[0], session.alive()
        assert text == CASES[name][3], name
        assert {int(pid) for pid in re.findall(r"process (\d+)", log.text())} <= pids


def test_the_remedies_are_those_of_the_table() -> None:
    kinds = (Failure.OTHER_PORT, Failure.OTHER_NETWORK)
    rows = [row.remedy for row in remedies.table() if row.failure in kinds]
    logged = [text.splitlines()[1].strip() for text in (ON_ANOTHER_PORT, IN_ANOTHER_NAMESPACE)]
    assert [re.sub(r"\b\d+\b", "…", text) for text in logged] == rows


def test_reports_again(portwrap: Portwrap, sessions: dict[str, tuple[Session, Log]]) -> None:
    """Once is enough. And when a server ends, the time in which there was one does not count:
    others listen then, such as its kernels.

    The server is a socket that is there at once: one that takes its time to start is reported.
    """
    with ExitStack() as stack:
        session = stack.enter_context(Inside(portwrap, network="none"))
        control = stack.enter_context(
            Session(portwrap, server_on(portwrap, OTHER), network="none", stdout=-3)
        )
        log, its_log = Log(session), Log(control)
        session.keep(session.listen("127.0.0.1", OTHER))
        assert not is_served(session)
        server = session.keep(session.serve())
        session.pair(server)

        def has_reported() -> bool:
            for each in (control, *(old for old, _ in sessions.values())):
                knock(each)
            return FOUND in its_log.text()

        wait_until(has_reported, 30, "as long as a report takes")
        session.pair(server)
        server.close()
        assert not is_served(session)
        assert not is_served(session)
        settle(session.keeper)
        assert FOUND not in log.text()
    for name, (_, old) in sessions.items():
        assert old.text().count(FOUND) == bool(CASES[name][3]), name


def is_served(session: Session) -> bool:
    """Whether a client of the host port finds a server; one that finds none is reset, as soon as it
    connects or later."""
    try:
        with session.client() as client:
            client.settimeout(20)
            client.sendall(b"x")
            return bool(client.recv(1))
    except socket.timeout:
        return True
    except OSError:
        return False


def server_on(portwrap: Portwrap, port: int) -> list[str]:
    return portwrap.program("server.py", "plain", "127.0.0.1", str(port))
