"""A real hub, a real batchspawner, a real server: what its owner can do in it, what others cannot,
and how it ends. Whatever must differ without the sandbox is looked at without it, too."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
from e2e.hub import KINDS, Hub, Kernel

from helpers import NEIGHBOUR, run_as

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

TCP_LISTEN = "0A"
REFUSED = {"connected": False, "why": "Connection refused"}
SECRET = "only for the owner"

# Opens what a person's programs open, of every kind, and serves one page on all of it.
OPEN_ALL_KINDS = f"""
import socket, threading
def serve(server):
    while True:
        connection, _ = server.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n{SECRET}")
        connection.close()
servers = []
for address in ("127.0.0.1", "0.0.0.0", "::1", "::"):
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, 0))
    server.listen()
    servers.append(server)
    threading.Thread(target=serve, args=(server,), daemon=True).start()
print(*(server.getsockname()[1] for server in servers))
"""

# proc(5), /proc/net/tcp: local address, port, peer, state … user.
LISTENING = f"""
import json, os
found = []
for name in ("tcp", "tcp6"):
    for line in open("/proc/net/" + name).read().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "{TCP_LISTEN}" and int(fields[7]) == os.getuid():
            found.append(int(fields[1].rpartition(":")[2], 16))
print(json.dumps(sorted(set(found))))
"""


class Session:
    """A running session with one kernel that has opened ports, and with the notes application."""

    def __init__(self, hub: Hub, kind: str) -> None:
        self.hub = hub
        self.sandboxed = kind != "plain"
        self.kernel: Kernel = hub.start_kernel()
        self.opened = [int(port) for port in self.kernel.cell(OPEN_ALL_KINDS).split()]
        self.notes = hub.client.get(hub.user("notes/"))
        self.host_port = hub.host_port()


@pytest.fixture(scope="module", params=KINDS)
def session(hub: Hub, request: pytest.FixtureRequest) -> Iterator[Session]:
    """The same session in the sandbox and without."""
    with hub.running(request.param):
        yield Session(hub, request.param)


def addresses_of_the_host() -> list[str]:
    """Every address of this machine that a program can be asked to connect to."""
    lines = subprocess.run(
        ["ip", "-o", "address", "show"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = [line.split()[3].partition("/")[0] for line in lines if "scope link" not in line]
    return [f"[{address}]" if ":" in address else address for address in found]


# ---- the owner ------------------------------------------------------------------------------


def test_the_server_answers_its_owner_through_the_hub(session: Session) -> None:
    answer = session.hub.client.get(session.hub.user("api/contents"))
    assert answer.status == 200
    assert "notes.txt" in [entry["name"] for entry in answer.json()["content"]]


def test_a_cell_runs_and_prints(session: Session) -> None:
    assert session.kernel.cell("print(6 * 7)") == "42\n"


def test_a_cell_is_in_a_network_of_its_own_only_with_the_sandbox(session: Session) -> None:
    inside = session.kernel.cell("import os; print(os.readlink('/proc/self/ns/net'))").strip()
    of_the_server = os.readlink(f"/proc/{session.hub.job_pid()}/ns/net")
    assert inside == of_the_server
    assert (inside != os.readlink("/proc/self/ns/net")) == session.sandboxed


def test_the_process_of_the_job_is_the_server_itself(session: Session) -> None:
    command = Path(f"/proc/{session.hub.job_pid()}/cmdline").read_bytes()
    assert b"jupyterhub-singleuser" in command
    # Without the sandbox it still runs inside batchspawner-singleuser's interpreter.
    assert (b"batchspawner-singleuser" not in command) == session.sandboxed


def test_a_named_application_answers_through_the_hub(session: Session) -> None:
    assert session.notes.status == 200
    assert "my secret is" in session.notes.text


def test_an_application_answers_through_the_hub_by_its_port(session: Session) -> None:
    answer = session.hub.client.get(session.hub.user(f"proxy/{session.opened[0]}/"))
    assert (answer.status, answer.text) == (200, SECRET)


def test_a_large_answer_arrives_whole(session: Session) -> None:
    session.kernel.cell("open('large', 'wb').write(bytes(range(256)) * 200_000)")
    answer = session.hub.client.get(session.hub.user("files/large"))
    assert answer.status == 200
    assert answer.body == bytes(range(256)) * 200_000


def test_the_hub_is_reached_from_a_cell(session: Session) -> None:
    code = (
        "import os, urllib.request\n"
        "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
        "print(opener.open(os.environ['JUPYTERHUB_API_URL'] + '/').read().decode())"
    )
    assert "version" in json.loads(session.kernel.cell(code))


def test_a_cell_may_call_its_own_server(session: Session) -> None:
    code = (
        "import os, urllib.request\n"
        "url = os.environ['JUPYTERHUB_SERVICE_URL'].replace('0.0.0.0', '127.0.0.1')\n"
        "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
        "print(opener.open(url + 'api').read().decode())"
    )
    assert "version" in json.loads(session.kernel.cell(code))


# ---- the neighbour --------------------------------------------------------------------------


def known_ports(session: Session) -> set[int]:
    """The ports of everything that the session started: ours, the notes', and the kernel's five."""
    notes = re.search(r"127\.0\.0\.1:(\d+)", session.notes.text)
    code = "from ipykernel.connect import get_connection_info\nprint(get_connection_info())"
    connection = json.loads(session.kernel.cell(code))
    kernel = {port for name, port in connection.items() if name.endswith("_port")}
    assert notes and len(kernel) >= 5
    return {*session.opened, int(notes.group(1)), *kernel}


def ports_inside(session: Session) -> set[int]:
    """Every TCP port that the session's own kernel sees listened on, the server's excepted."""
    ports = set(json.loads(session.kernel.cell(LISTENING)))
    assert known_ports(session) <= ports
    return ports - {session.host_port}


def answers(session: Session, ports: set[int]) -> dict[str, dict[str, Any]]:
    """What the neighbour gets at these ports on every address of the host."""
    hosts = addresses_of_the_host()
    assert {"127.0.0.1", "[::1]", session.hub.facts.node} <= set(hosts)
    return session.hub.neighbour_asks(*(f"{host}:{port}" for host in hosts for port in ports))


def test_the_neighbour_reaches_every_port_without_the_sandbox_and_none_with_it(
    session: Session,
) -> None:
    found = answers(session, ports_inside(session))
    if session.sandboxed:
        assert {address: answer for address, answer in found.items() if answer != REFUSED} == {}
        return
    # The control: the same questions, and every port of the session answers.
    reached = [address for address, answer in found.items() if answer["connected"]]
    assert known_ports(session) <= {int(address.rpartition(":")[2]) for address in reached}
    node = session.hub.facts.node
    v4, every_v4, v6, every_v6 = session.opened
    for address in (f"127.0.0.1:{v4}", f"{node}:{every_v4}", f"[::1]:{v6}", f"{node}:{every_v6}"):
        assert SECRET in found[address]["body"], address
    assert any("my secret is" in answer.get("body", "") for answer in found.values())


def test_the_one_open_port_asks_who_is_there(session: Session) -> None:
    address = f"{session.hub.facts.node}:{session.host_port}"
    (answer,) = session.hub.neighbour_asks(address, path=session.hub.user("api/contents")).values()
    assert answer["status"] == 403
    assert "notes.txt" not in answer["body"]


# Status 0: the port was free to take.
TAKE = """
import errno, socket, sys
rival = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if ":" in sys.argv[1]:
    rival.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
try:
    rival.bind((sys.argv[1], int(sys.argv[2])))
    rival.listen()
except OSError as error:
    sys.exit(error.errno)
"""


def test_the_neighbour_cannot_take_the_servers_port_in_either_family(session: Session) -> None:
    """`[::]:PORT` beside a server on `0.0.0.0:PORT` would get some of its owner's connections:
    without the sandbox it is to be had."""

    def take(address: str) -> int:
        words = ["/usr/bin/python3", "-c", TAKE, address, str(session.host_port)]
        return run_as(NEIGHBOUR, words).returncode

    assert take("0.0.0.0") == errno.EADDRINUSE
    assert take("::") == (errno.EADDRINUSE if session.sandboxed else 0)
