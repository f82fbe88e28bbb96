"""A hostile neighbour on the node, next to a session without the sandbox, one with it, and one that
lets in clients from the proxy's host only. What leaks without the sandbox must be seen to leak."""

from __future__ import annotations

import json
import pwd
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import pytest
from e2e.slurm import Host
from e2e.slurm_hub import Session, SlurmHub

from helpers import NEIGHBOUR, OWNER, PROJECT, end, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(500)]

KINDS = ("plain", "sandbox", "allow-from")
FLOODS = ("idle connections", "slow requests", "resets", "garbage")
FLOOD, LARGE_FLOOD = 1000, 5000
FLOOD_SECONDS, LARGE_FLOOD_SECONDS = 60, 9
"""The small one is begun whole. The large one fills up what it can; the kernel tries to connect
again to a server whose backlog is full after 1, 3 and 7 seconds."""
PAGE = "only for the owner"
PUBLISHED = 28123
"""Below the ports that the kernel gives to clients by itself, and not Slurm's."""
TOOK, GETS, FAILS = "takes it", "gets it", "her start fails"

# Listens on everything that a program can listen on, and serves one page there.
OPEN_EVERYTHING = """
import json, os, socket, threading
PAGE = {page!r}.encode()
made = {{"page": PAGE.decode(), "udp": []}}
keep = []
def serve(server):
    while True:
        visitor, _ = server.accept()
        threading.Thread(target=answer, args=(visitor,), daemon=True).start()
def answer(visitor):
    visitor.recv(65536)
    visitor.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + PAGE)
    visitor.close()
def echo(server):
    while True:
        _, peer = server.recvfrom(65536)
        server.sendto(PAGE, peer)
def begin(server):
    server.listen()
    keep.append(server)
    threading.Thread(target=serve, args=(server,), daemon=True).start()
for address in ("127.0.0.1", "0.0.0.0", "::1", "::"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family)
    server.bind((address, 0))
    made[address] = server.getsockname()[1]
    begin(server)
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((address, 0))
    made["udp"].append(server.getsockname()[1])
    keep.append(server)
    threading.Thread(target=echo, args=(server,), daemon=True).start()
made["abstract"] = f"portwrap-test-{{os.getpid()}}"
for name, path, mode in (
    ("abstract", "\\0" + made["abstract"], 0),
    ("open file", {shared!r} + "/open", 0o777),
    ("closed file", {shared!r} + "/closed", 0o600),
):
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    if mode:
        made[name] = path
        os.chmod(path, mode)
    begin(server)
print(json.dumps(made))
"""

SERVE_PUBLISHED = """
import socket, threading
shared = socket.socket()
shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
shared.bind(("0.0.0.0", {port}))
shared.listen()
def serve_published(server):
    while True:
        try:
            visitor, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(visitor,), daemon=True).start()
serving = threading.Thread(target=serve_published, args=(shared,), daemon=True)
serving.start()
"""
END_PUBLISHED = """
shared.shutdown(socket.SHUT_RDWR)
serving.join()
shared.close()
"""
SEND_DATAGRAM = """
import socket
letter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
letter.bind(("0.0.0.0", 0))
letter.sendto(b"question", {place})
"""
ASK_BY_NAME = """
import socket
with socket.create_connection({place}, timeout=20) as client:
    client.sendall(b"GET /?token=her-token HTTP/1.0\\r\\n\\r\\n")
    print(b"".join(iter(lambda: client.recv(99), b"")).decode())
"""
READ_DATAGRAMS = """
import json
letter.settimeout(20)
print(json.dumps([data.decode() for data in iter(lambda: letter.recv(99), b"answer")]))
"""

ROWS: dict[str, tuple[str, str, str]] = {
    "a list of her ports": ("reached", "no", "no"),
    "her application": ("reached", "no", "no"),
    "her kernel's ports": ("reached", "no", "no"),
    "her server on 127.0.0.1": ("reached", "no", "no"),
    "her server on 0.0.0.0": ("reached", "no", "no"),
    "her server on ::1": ("reached", "no", "no"),
    "her server on ::": ("reached", "no", "no"),
    "whatever else listens": ("reached", "no", "no"),
    "her UDP ports": ("reached", "no", "no"),
    "her UDP socket once it has sent, from the node": ("reached", "no", "no"),
    # slirp4netns passes on what comes to the port that it has sent from (test_udp.py).
    "her UDP socket once it has sent, from afar": ("reached", "reached", "reached"),
    "her abstract socket": ("reached", "no", "no"),
    "every abstract socket there is": ("reached", "no", "no"),
    "her application, by his own jupyter-server-proxy": ("reached", "no", "no"),
    "her cookies, when she opens /proxy/<his port>": ("gets them", "no", "no"),
    # He listens on her port at the node's address; without the sandbox hers takes it up.
    "her token, when she opens her own server by the node's name": ("no", "no", "no"),
    "her token, when she opens a server of his by the node's name": (GETS, GETS, GETS),
    "her port, from its first moment": (TOOK, "no", "no"),
    "her port, while the server runs": (TOOK, "no", "no"),
    "her Jupyter server": ("asked to log in", "asked to log in", "reset"),
    # Whoever may connect to it reaches what she has published.
    "her server on a published port": ("reached", "reached", "no"),
    "her published port, before a server listens": (TOOK, "no", "no"),
    "her published port, while a server runs": (TOOK, "no", "no"),
    "her published port, between two servers": (TOOK, "no", "no"),
    # What no network namespace changes, for better or worse.
    "her socket file, mode 777": ("reached", "reached", "reached"),
    "her socket file, mode 600": ("no", "no", "no"),
    "a list of them by her processes' /proc": ("reached", "reached", "reached"),
    "her command lines": ("reached", "reached", "reached"),
    "her environment": ("no", "no", "no"),
    "her memory": ("no", "no", "no"),
    "her open files": ("no", "no", "no"),
    "her folders by /proc": ("no", "no", "no"),
    "her namespaces": ("no", "no", "no"),
    "entering them": ("no", "no", "no"),
    "tracing her processes": ("no", "no", "no"),
    "signals to her processes": ("no", "no", "no"),
    "her port, before she has it": (FAILS, FAILS, FAILS),
    "her port, when she has gone": (TOOK, TOOK, TOOK),
    "her published port, before she has it": (FAILS, FAILS, FAILS),
    "her published port, when she has gone": (TOOK, TOOK, TOOK),
    **{f"she is served beside {FLOOD:,} {kind}": ("yes", "yes", "yes") for kind in FLOODS},
}
"""Attempt, and its outcome without the sandbox, with it, and with --allow-from the proxy's host."""
HERS = (
    "her socket file, mode 600",
    "her environment",
    "her memory",
    "her open files",
    "her folders by /proc",
    "her namespaces",
    "entering them",
    "tracing her processes",
    "signals to her processes",
)
"""What nobody but herself is granted, with the sandbox or without."""
BESIDE_LARGE = f"she is served beside {LARGE_FLOOD:,} idle connections"


class Neighbour:
    """The other account on the node of a session."""

    def __init__(self, hub: SlurmHub) -> None:
        self.hub = hub
        for source in ("tests/e2e/neighbour.py", "tests/programs/squat.py"):
            copy = hub.run / "bin" / Path(source).name
            copy.write_bytes((PROJECT / source).read_bytes())
        self.program = hub.run / "bin" / "neighbour.py"

    @contextmanager
    def doing(self, node: Host, *words: str, account: str = NEIGHBOUR) -> Iterator[Doing]:
        """The program does this meanwhile."""
        limit = ["prlimit", f"--nofile={LARGE_FLOOD + 100}:{LARGE_FLOOD + 100}"]
        process = node.popen(
            [*limit, "/usr/bin/python3", self.program, *words],
            account,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Doing(process)
        finally:
            assert process.stdin
            process.stdin.close()
            try:
                process.wait(30)
            finally:
                end(process)

    def tries(
        self, node: Host, what: str, facts: dict[str, Any], account: str = NEIGHBOUR
    ) -> dict[str, str]:
        with self.doing(node, what, account=account) as program:
            program.give(json.dumps(facts))
            found: dict[str, str] = json.loads(program.last_line())
            return found


class Doing:
    """The neighbour's program while it runs."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout
        return str(self.process.stdout.readline()).strip()

    def give(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text)

    def last_line(self) -> str:
        """Tell it to end; returns what it says then."""
        assert self.process.stdin
        self.process.stdin.close()
        line = self.line()
        assert line, "the neighbour's program has failed"
        return line


class Attack:
    """Everything that is tried with one session."""

    def __init__(self, hub: SlurmHub, kind: str) -> None:
        self.hub = hub
        self.kind = kind
        self.neighbour = Neighbour(hub)
        self.answers: dict[str, str] = {}
        self.hers: dict[str, str] = {}
        environ = {"PORTWRAP_PUBLISH": str(PUBLISHED)}
        if kind == "allow-from":
            environ["PORTWRAP_ALLOW_FROM"] = hub.cluster.hub.address
        self.session = hub.session("plain" if kind == "plain" else "native", environment=environ)

    def run(self, his: Session) -> Attack:
        """Play it all; `his` is a session of the neighbour's own."""
        node = self.hub.cluster.node
        uid = pwd.getpwnam(OWNER).pw_uid
        with self.neighbour.doing(node, "watch", str(uid)) as watcher:
            assert watcher.line() == "ready"
            self.session.start()
            taken = json.loads(watcher.last_line())
        port = self.session.host_port()
        self.note("her port, from its first moment", TOOK if taken[str(port)] else "no")
        self.kernel = self.session.start_kernel()
        facts = self.facts(uid, port)
        self.publish()
        self.answers.update(self.neighbour.tries(node, "look", facts))
        self.hers = self.neighbour.tries(node, "touch", facts, account=OWNER)
        self.send_datagrams()
        self.ask_by_name("her token, when she opens her own server by the node's name", facts)
        self.ask_by_name("her token, when she opens a server of his by the node's name")
        self.squat("her port, while the server runs", port)
        self.cross(his, facts["application"], facts["secret"])
        for kind in FLOODS:
            attempt = f"she is served beside {FLOOD:,} {kind}"
            assert self.flood(attempt, kind, FLOOD, FLOOD_SECONDS) == FLOOD
        self.flood(BESIDE_LARGE, "idle connections", LARGE_FLOOD, LARGE_FLOOD_SECONDS)
        self.session.stop()
        self.squat("her port, when she has gone", port)
        self.squat("her published port, when she has gone", PUBLISHED)
        self.before("her port, before she has it", port)
        self.before("her published port, before she has it", PUBLISHED, f"--publish {PUBLISHED}")
        return self

    def publish(self) -> None:
        """A server on the published port, which ends, and another one, which stays."""
        serve = SERVE_PUBLISHED.format(port=PUBLISHED)
        self.squat("her published port, before a server listens", PUBLISHED)
        self.kernel.cell(serve)
        self.squat("her published port, while a server runs", PUBLISHED)
        self.kernel.cell(END_PUBLISHED)
        self.squat("her published port, between two servers", PUBLISHED)
        self.kernel.cell(serve)

    def note(self, attempt: str, answer: str) -> None:
        self.answers[attempt] = answer

    def facts(self, uid: int, port: int) -> dict[str, Any]:
        """Everything that the owner has opened."""
        shared = self.hub.run / f"shared-{self.session.name}"
        shared.mkdir()
        shared.chmod(0o1777)
        kernel = self.kernel
        made = json.loads(kernel.cell(OPEN_EVERYTHING.format(page=PAGE, shared=str(shared))))
        notes = self.session.get("notes/")
        secret = self.hub.secret()
        assert secret in notes.text
        application = int(notes.text.partition("127.0.0.1:")[2].partition("<")[0])
        runtime = self.hub.cluster.home() / ".local/share/jupyter/runtime"
        connection = json.loads((runtime / f"kernel-{kernel.id}.json").read_text())
        return {
            **made,
            "uid": uid,
            "host port": port,
            "published": PUBLISHED,
            "path": self.session.path("api/contents"),
            "application": application,
            "secret": secret,
            "kernel": [connection[key] for key in connection if key.endswith("_port")],
        }

    def squat(self, attempt: str, port: int) -> None:
        words = ["/usr/bin/python3", str(self.hub.run / "bin" / "squat.py"), str(port)]
        node = self.hub.cluster.node
        addresses = ["0.0.0.0", "127.0.0.1", "::", "::1", "::ffff:127.0.0.1", node.address]
        told = node.do(*words, *addresses, account=NEIGHBOUR)
        self.note(attempt, TOOK if json.loads(told) else "no")

    def cross(self, his: Session, application: int, secret: str) -> None:
        """GHSA-q52h-2389-h4hv, in both directions."""
        answer = his.get(f"proxy/{application}/")
        reached = "reached" if secret in answer.text else "no"
        self.note("her application, by his own jupyter-server-proxy", reached)
        with self.neighbour.doing(self.hub.cluster.node, "listen", "127.0.0.1", "0") as trap:
            answer = self.session.get(f"proxy/{trap.line()}/")
            heard = json.loads(trap.last_line())
        stolen = any("\ncookie:" in request.lower() for request in heard)
        assert bool(heard) == ("a page of the neighbour's" in answer.text)
        outcome = "gets them" if stolen else "gets her request" if heard else "no"
        self.note("her cookies, when she opens /proxy/<his port>", outcome)

    def ask_by_name(self, attempt: str, facts: dict[str, Any] | None = None) -> None:
        """She asks for a page on the port of her server on 0.0.0.0, or on one of his; he listens on
        it at the node's address, if he can."""
        node, port = self.hub.cluster.node, facts["0.0.0.0"] if facts else 0
        with self.neighbour.doing(node, "listen", node.address, str(port)) as trap:
            answer = trap.line()
            assert answer == (
                "EADDRINUSE" if facts and self.kind == "plain" else str(port or answer)
            )
            place = (node.name, port or int(answer))
            page = self.kernel.cell(ASK_BY_NAME.format(place=place))
            heard = json.loads(trap.last_line())
        assert (PAGE in page) == (not heard)
        self.note(attempt, GETS if any("her-token" in request for request in heard) else "no")

    def send_datagrams(self) -> None:
        """She has written to somebody on another host; others write to the port he sees."""
        node, afar = self.hub.cluster.node, self.hub.cluster.hub
        with self.neighbour.doing(afar, "wait", afar.address) as friend:
            self.kernel.cell(SEND_DATAGRAM.format(place=(afar.address, int(friend.line()))))
            address, port = json.loads(friend.line())
            for host in (node, afar):
                words = ["send", host.name, str(port), address, "127.0.0.1"]
                host.do("/usr/bin/python3", self.neighbour.program, *words, account=NEIGHBOUR)
            assert friend.last_line() == "answered"
        heard = json.loads(self.kernel.cell(READ_DATAGRAMS))
        for host, where in ((node, "the node"), (afar, "afar")):
            attempt = f"her UDP socket once it has sent, from {where}"
            self.note(attempt, "reached" if host.name in heard else "no")

    def flood(self, attempt: str, kind: str, count: int, seconds: int) -> int:
        """Ask for a page of hers while his connections are there; returns how many there were."""
        place = ["127.0.0.1", str(self.session.host_port())]
        words = ["flood", kind, *place, str(count), str(seconds)]
        with self.neighbour.doing(self.hub.cluster.node, *words) as flood:
            begun = int(flood.line().split()[0])
            self.note(attempt, "yes" if self.is_served() else "no")
        wait_until(self.is_served, 60, "the end of the flood")
        return begun

    def is_served(self) -> bool:
        seconds, self.session.client.seconds = self.session.client.seconds, 30
        try:
            return self.session.get("api/contents").status == 200
        except OSError:
            return False
        finally:
            self.session.client.seconds = seconds

    def before(self, attempt: str, port: int, option: str = "") -> None:
        """The neighbour has the port first: the start must fail, and say why."""
        node = self.hub.cluster.node
        server = f"/usr/bin/python3 -m http.server {port}"
        if self.kind != "plain":
            host_port = port + 1 if option else port
            words = f"{self.hub.archive} --port {host_port} {option}"
            server = f"{words} /usr/bin/python3 -m http.server 8888"
        with self.neighbour.doing(node, "listen", "0.0.0.0", str(port)) as squatter:
            assert squatter.line() == str(port)
            number = self.hub.cluster.submit(server, "--output=squatted.log")
            wait_until(lambda: self.hub.cluster.job(number).is_over, 60, "the end of the job")
            squatter.last_line()
        status = "1:0" if self.kind == "plain" else "125:0"
        failed = self.hub.cluster.job(number).state == f"FAILED {status}"
        assert "already in use" in (self.hub.cluster.home() / "squatted.log").read_text()
        self.note(attempt, FAILS if failed else "she starts")


@pytest.fixture(scope="module")
def attacks(slurm_hub: SlurmHub) -> Iterator[dict[str, Attack]]:
    """Everything that is tried with each kind of session."""
    his = slurm_hub.session("plain", account=NEIGHBOUR)
    try:
        his.start()
        yield {kind: Attack(slurm_hub, kind).run(his) for kind in KINDS}
    finally:
        slurm_hub.stop_sessions()


@pytest.mark.parametrize("attempt", ROWS)
def test_an_attempt(attacks: dict[str, Attack], attempt: str) -> None:
    assert tuple(attacks[kind].answers.get(attempt) for kind in KINDS) == ROWS[attempt]


@pytest.mark.parametrize("attempt", HERS)
def test_she_herself_can(attacks: dict[str, Attack], attempt: str) -> None:
    """The control of what is refused to him everywhere. Without the sandbox her namespaces are the
    node's, and root's."""
    assert ROWS[attempt] == ("no", "no", "no")
    answers = {kind: attacks[kind].hers[attempt] for kind in KINDS}
    plain = "no" if attempt == "entering them" else "reached"
    assert answers == {"plain": plain, "sandbox": "reached", "allow-from": "reached"}


def test_the_table(attacks: dict[str, Attack], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was tried that has no row; the table is printed."""
    tables = {kind: attack.answers for kind, attack in attacks.items()}
    tried = {attempt for answers in tables.values() for attempt in answers}
    assert tried == {*ROWS, BESIDE_LARGE}
    # A server can be filled up by whoever reaches it; nobody else does with --allow-from.
    assert tables["allow-from"][BESIDE_LARGE] == "yes"
    with capsys.disabled():
        print(f"\n  {'attempt':50}{''.join(f'{kind:18}' for kind in KINDS)}")
        for attempt in [*ROWS, BESIDE_LARGE]:
            answers = "".join(f"{tables[kind][attempt]:18}" for kind in KINDS)
            print(f"  {attempt:50}{answers}")
