"""What a new administrator gets wrong: the status, a line with what was tried and the answer, and a
line with a remedy that works as it is printed."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import pytest
from checked_node import HIDE, OWN_DEVICES, LimitedNode, Node
from launches import batchspawner_portwrap

from helpers import OWNER, environment, needs, run_as
from sessions import Portwrap, unused_ports

pytestmark = pytest.mark.namespaces


class Mistake:
    """A command line and variables; the status and the two lines that they end with.

    `instead` is what the user writes after reading the second line, in place of what: as far as
    that line can have it, it is there. A user who has done so has status `then`. {port} and
    {other} are ports that nobody has, {busy} is one that somebody has, {folder} has files.
    """

    def __init__(
        self,
        argv: str,
        first: str,
        second: str,
        instead: tuple[str, str] | None = None,
        status: int = 2,
        then: int = 0,
        account: str = OWNER,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = argv
        self.first = first
        self.second = second
        self.instead = instead
        self.status = status
        self.then = then
        self.account = account
        self.environ = environ or {}


def url(host: str) -> dict[str, str]:
    return {"JUPYTERHUB_SERVICE_URL": f"http://{host}:{{port}}/user/ada/"}


OPTIONS = {
    "guest port": Mistake(
        "--port {port} -P http true",
        "-P must be a number from 1 to 65535, not 'http'",
        "Usage: batchspawner-portwrap [-P GUEST_PORT]",
        ("-P http", "-P 8080"),
    ),
    "host port": Mistake(
        "--port 65536 true",
        "--port must be a number from 1 to 65535, not '65536'",
        "Usage: batchspawner-portwrap [-P GUEST_PORT] [--port PORT]",
        ("65536", "{port}"),
    ),
    "name of an option": Mistake(
        "--port {port} --pubish={other} true",
        "unknown option --pubish={other}",
        "Did you mean --publish?",
        ("--pubish", "--publish"),
    ),
    "value in a variable": Mistake(
        "--port {port} true",
        "PORTWRAP_FORWARD must be one of auto, native, relay, not 'nativ'",
        "Did you mean PORTWRAP_FORWARD=native?",
        ("nativ", "native"),
        environ={"PORTWRAP_FORWARD": "nativ"},
    ),
    "switch in a variable": Mistake(
        "--port {port} true",
        "PORTWRAP_QUIET must be 1 or 0, not 'maybe'",
        "Set PORTWRAP_QUIET=1",
        ("maybe", "1"),
        environ={"PORTWRAP_QUIET": "maybe"},
    ),
    "network driver": Mistake(
        "--port {port} --network slirp true",
        "--network must be one of auto, slirp4netns, pasta, direct, none, not 'slirp'",
        "Did you mean --network slirp4netns?",
        ("--network slirp", "--network slirp4netns"),
    ),
    "network with host bits": Mistake(
        "--port {port} --allow-from 10.0.0.1/8 true",
        "--allow-from: '10.0.0.1/8': the address has bits beyond its first 8",
        "Did you mean --allow-from 10.0.0.0/8?",
        ("10.0.0.1/8", "10.0.0.0/8"),
    ),
    "network with too many bits": Mistake(
        "--port {port} --allow-from 10.0.0.0/33 true",
        "--allow-from: '10.0.0.0/33': the number of bits must be from 0 to 32",
        "Usage: ",
        ("/33", "/32"),
    ),
    "client by its name": Mistake(
        "--port {port} --allow-from localhost true",
        "--allow-from: 'localhost' is neither an IP address nor a CIDR network",
        "Give numeric addresses: getent ahosts localhost",
        ("localhost", "127.0.0.1"),
    ),
    "variable that is empty": Mistake(
        "--port {port} true",
        "PORTWRAP_ALLOW_FROM: '' is neither an IP address nor a CIDR network",
        "Usage: ",
        environ={"PORTWRAP_ALLOW_FROM": ""},
    ),
    "two ports of a host service": Mistake(
        "--port {port} --host-service {other}:8080 true",
        "--host-service must be PORT or a range FIRST-LAST, not '{other}:8080'",
        "The port in the sandbox is that of the host: --host-service {other}",
        ("--host-service {other}:8080", "--host-service {other}"),
    ),
    "host service at the guest port": Mistake(
        "--port {port} --host-service {other} -P {other} true",
        "sandbox port {other} cannot be both a host service and a forwarding target",
        "Choose another guest port: -P",
        ("-P {other}", "-P 8080"),
        status=125,
    ),
    "clients chosen natively": Mistake(
        "--port {port} --allow-from 127.0.0.1 --forward native true",
        "--allow-from needs the relay, but --forward is native",
        "Leave out --forward native.",
        ("--forward native", ""),
    ),
    "host port published": Mistake(
        "--port {port} --publish {port} true",
        "--publish: {port} is the host port already",
        "Leave {port} out of --publish.",
        ("--publish {port}", ""),
    ),
    "value that is missing": Mistake(
        "--port {port} --network", "--network needs a value: DRIVER", "Usage: "
    ),
    "no port, by hand": Mistake(
        "true",
        "no host port from 1 to 65535: there is no JUPYTERHUB_SERVICE_URL and no last argument",
        "By hand, use --port PORT.",
        ("true", "--port {port} true"),
    ),
    "no command": Mistake(
        "--port {port}",
        "no command",
        "[--port PORT] COMMAND [ARG ...]",
        ("{port}", "{port} true"),
    ),
    "option of another portwrap": Mistake(
        "--portwrap-path /bin/true --network none --port {port} true",
        "--network cannot be passed on to the program of --portwrap-path",
        "leave out --network.",
        ("--network none", ""),
    ),
    "--check with a command": Mistake(
        "--check true", "--check takes no command (got 'true')", "Leave out what follows"
    ),
    "--json by itself": Mistake(
        "--json true", "--json needs --check", "Did you mean --check --json?"
    ),
    "hub from an empty variable": Mistake(
        "--check --hub=", "--hub is empty", "Did you mean --hub http://HUB:8081/hub/api?"
    ),
    "hub without a scheme": Mistake(
        "--check --hub 127.0.0.1:{other}",
        "--hub must be a URL, not '127.0.0.1:{other}'",
        "Did you mean --hub http://127.0.0.1:{other}/hub/api?",
        ("127.0.0.1:{other}", "http://127.0.0.1:{other}/hub/api"),
        then=125,  # nobody listens there
    ),
    "hub with a wrong scheme": Mistake(
        "--check --hub ftp://hub:8081/hub/api",
        "--hub must begin with http:// or https://, not 'ftp://hub:8081/hub/api'",
        "Did you mean --hub http://hub:8081/hub/api?",
    ),
    "hub with an IPv6 address": Mistake(
        "--check --hub http://2001:db8::1:8081/hub/api",
        "--hub must have its IPv6 address in brackets, not '2001:db8::1:8081'",
        "Did you mean --hub http://[2001:db8::1]:8081/hub/api?",
    ),
    "hub with a wrong port": Mistake(
        "--check --hub http://hub:http/hub/api",
        "--hub must have a port from 1 to 65535, not 'http'",
        "Usage: ",
    ),
    "hub of the environment": Mistake(
        "--check",
        "JUPYTERHUB_API_URL must be a URL, not 'hub'",
        "Did you mean JUPYTERHUB_API_URL=http://hub:8081/hub/api?",
        environ={"JUPYTERHUB_API_URL": "hub"},
    ),
}
PLACES = {
    "busy host port": Mistake(
        "--port {busy} true",
        "host port 0.0.0.0:{busy}: Address already in use",
        "Start the server again: it gets another port.",
        ("{busy}", "{port}"),
        status=125,
    ),
    "busy published port": Mistake(
        "--port {port} --publish {busy} true",
        "published port 0.0.0.0:{busy}: Address already in use",
        "Choose another port.",
        ("{busy}", "{other}"),
        status=125,
    ),
    "port of root": Mistake(
        "--port 7 true",
        "host port 0.0.0.0:7: Permission denied",
        "Choose one from 1024 up.",
        ("--port 7", "--port {port}"),
        status=125,
    ),
    "address of another host": Mistake(
        "true",
        "host port 198.18.255.254:{port}: Cannot assign requested address",
        "Set c.Spawner.ip = '0.0.0.0'",
        ("198.18.255.254", "0.0.0.0"),
        status=125,
        environ=url("198.18.255.254"),
    ),
    "command": Mistake(
        "--port {port} no-such-server",
        "no-such-server: not found on PATH (/",
        "Give its absolute path",
        ("no-such-server", "/bin/true"),
        status=127,
    ),
    "path of the command": Mistake(
        "--port {port} /no/such/server",
        "/no/such/server: no such file",
        "Check the path: 'ls -l /no/such/server' on this node.",
        ("/no/such/server", "/bin/true"),
        status=127,
    ),
    "directory": Mistake(
        "--port {port} /bin",
        "/bin: is a directory",
        "Give the path of a program, not a directory.",
        ("/bin", "/bin/true"),
        status=126,
    ),
    "line ends of the script": Mistake(
        "--port {port} {folder}/crlf",
        "{folder}/crlf: its interpreter /bin/sh\\r does not exist",
        "correct the line: 'head -1 {folder}/crlf'",
        ("crlf", "script"),
        status=126,
    ),
    "pasta for root": Mistake(
        "--port {port} --network pasta true",
        "pasta does not run for root: the session would have no outbound network",
        "or --network none for loopback only",
        ("--network pasta", "--network none"),
        status=125,
        account="root",
    ),
}
MISTAKES = {**OPTIONS, **PLACES}


@pytest.fixture
def names(world_dir: Path) -> Iterator[dict[str, Any]]:
    """What stands in place of the fields of a mistake."""
    for name, first in (("script", "#!/bin/sh\n"), ("crlf", "#!/bin/sh\r\n")):
        world_dir.joinpath(name).write_text(first)
        world_dir.joinpath(name).chmod(0o755)
    port, other = unused_ports(2)
    with socket.create_server(("0.0.0.0", 0)) as busy:
        yield {
            "port": port,
            "other": other,
            "busy": busy.getsockname()[1],
            "folder": world_dir,
        }


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_remedy_works_as_it_is_printed(
    portwrap: Portwrap, names: dict[str, Any], mistake: Mistake
) -> None:
    program = [portwrap.python, str(batchspawner_portwrap(portwrap))]

    def run(wrong: str, right: str) -> Any:
        argv = mistake.argv.format(**names).replace(wrong, right).split()
        given = {key: text.format(**names) for key, text in mistake.environ.items()}
        given = {key: text.replace(wrong, right) for key, text in given.items()}
        return run_as(mistake.account, [*program, *argv], env=environment(OWNER, given))

    result = run("", "")
    assert (result.returncode, result.stdout) == (mistake.status, ""), result
    first, second = result.stderr.splitlines()
    assert first.startswith(f"batchspawner-portwrap: {mistake.first.format(**names)}"), first
    assert second.startswith("  ") and mistake.second.format(**names) in second, second
    if mistake.instead:
        wrong, right = (text.format(**names) for text in mistake.instead)
        result = run(wrong, right)
        assert (result.returncode, result.stderr) == (mistake.then, ""), result


def test_a_file_that_may_not_be_executed(portwrap: Portwrap, names: dict[str, Any]) -> None:
    """Its owner pastes the command of the remedy."""
    script = names["folder"] / "script"
    script.chmod(0o644)
    program = [portwrap.python, str(batchspawner_portwrap(portwrap)), "--port", str(names["port"])]
    result = run_as(OWNER, [*program, script])
    first, second = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (126, "")
    assert first == f"batchspawner-portwrap: {script}: permission denied"
    (command,) = re.findall("'(chmod .*?)'", second)
    assert run_as("root", ["sh", "-c", command]).returncode == 0
    assert run_as(OWNER, [*program, script]).returncode == 0


def test_a_variable_with_a_wrong_name(portwrap: Portwrap, names: dict[str, Any]) -> None:
    """No error, as another program may have it; but it is logged, with the one that was meant."""
    program = [portwrap.python, str(batchspawner_portwrap(portwrap)), "--port", str(names["port"])]
    result = run_as(OWNER, [*program, "true"], extra_env={"PORTWRAP_NETWROK": "none"})
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == (
        "batchspawner-portwrap: unknown variable PORTWRAP_NETWROK ignored;"
        " did you mean PORTWRAP_NETWORK?\n"
    )


def test_a_command_that_takes_no_port(portwrap: Portwrap, names: dict[str, Any]) -> None:
    """What is appended to it is logged with -v."""
    program = [portwrap.python, str(batchspawner_portwrap(portwrap)), "--port", str(names["port"])]
    result = run_as(OWNER, [*program, "-v", "sleep", "0"])
    assert result.returncode == 1
    assert "--port=8888 is appended to the command\n" in result.stderr
    assert "'--port=8888'" in result.stderr.splitlines()[-2]  # sleep's own line
    result = run_as(OWNER, [*program, "-v", "echo", "{guest-port}"])
    assert result.stdout == "8888\n" and "appended" not in result.stderr


# ---- what the node lacks: the start and --check agree --------------------------------------------

NO_DRIVER = [HIDE.format("slirp4netns"), HIDE.format("pasta")]
OWN_SYSCTL = "mount -t tmpfs tmpfs /etc/sysctl.d"
SWITCH = "echo 0 > /proc/sys/user/max_{}_namespaces"
LACKING: dict[str, tuple[list[str], type[Node], str, str]] = {
    "tun device": ([OWN_DEVICES], Node, "tun device", "/dev/net/tun"),
    "right to the tun device": (
        [OWN_DEVICES, "mknod -m 0600 /dev/net/tun c 10 200"],
        Node,
        "tun device",
        "Permission denied",
    ),
    "user namespaces": (
        [OWN_SYSCTL, SWITCH.format("user")],
        LimitedNode,
        "user namespaces",
        "No space left on device",
    ),
    "network namespaces": (
        [OWN_SYSCTL, SWITCH.format("net")],
        LimitedNode,
        "user namespaces",
        "No space left on device",
    ),
}


@pytest.mark.parametrize("lacking", LACKING.values(), ids=LACKING)
def test_what_root_has_to_do_works_as_it_is_printed(
    make_node: Any, lacking: tuple[list[str], type[Node], str, str]
) -> None:
    preparation, kind, name, said = lacking
    node: Node = make_node(*preparation, kind=kind)
    port = unused_ports(1)[0]
    # Else a session could do without a network driver.
    by_driver = "--outward", "helper"
    start = node.as_owner(*node.program("-q", *by_driver, "--port", str(port), "true"))
    result = node.run(start)
    assert (result.returncode, result.stdout) == (125, ""), result
    first, second = result.stderr.splitlines()
    assert said in first
    status, answer = node.check(*by_driver)
    assert (status, answer["failed"]) == (125, [name]), answer
    found = next(check for check in answer["checks"] if check["name"] == name)
    assert second == f"  {found['remedy']} As root: {found['command']}"
    node.mend(second.partition("As root: ")[2])
    assert node.run(start).returncode == 0
    assert node.check(*by_driver)[0] == 0


def test_no_network_driver(make_node: Any) -> None:
    """Packages are not installed here: what the command brings is brought back."""
    node: Node = make_node(*NO_DRIVER)
    words = ["-q", "--outward", "helper", "--port", str(unused_ports(1)[0]), "true"]
    start = node.as_owner(*node.program(*words))
    result = node.run(start)
    assert result.returncode == 125
    first, second = result.stderr.splitlines()
    assert first.endswith(
        ": neither slirp4netns nor pasta found: the session would have no outbound network"
    )
    assert re.search(r"As root: (apt-get|dnf) install \w+$", second)
    status, answer = node.check("--outward", "helper")
    assert (status, answer["failed"]) == (125, ["network driver"])
    node.mend("umount /usr/bin/slirp4netns")
    assert node.run(start).returncode == 0


def test_few_descriptors(make_node: Any) -> None:
    """The remedy is about a start, not about relayed connections alone."""
    needs("prlimit")
    node: Node = make_node()
    port = str(unused_ports(1)[0])

    def start(limit: int) -> Any:
        before = ["prlimit", f"--nofile={limit}:{limit}", "--"]
        return node.run(node.as_owner(*before, *node.program("-q", "--port", port, "true")))

    result = start(20)
    assert (result.returncode, result.stdout) == (125, ""), result
    first, second = result.stderr.splitlines()
    assert "Too many open files" in first
    enough = re.findall(r"a start needs about (\d+)", second)
    assert start(int(enough[0])).returncode == 0
    before = ["prlimit", "--nofile=20:20", "--"]
    words = node.as_owner(*before, *node.program("--check", "--json"))
    answer = json.loads(node.run(words).stdout)
    assert answer["would_start"] is False
    found = next(check for check in answer["checks"] if check["name"] == answer["failed"][0])
    assert second == f"  {found['remedy']}"


BREAK = "printf '#!/bin/sh\\necho broken >&2\\nexit 3\\n' > /usr/local/sbin/broken"
BROKEN = ("mount -t tmpfs -o mode=0755 tmpfs /usr/local/sbin", BREAK, "chmod +x /usr/local/sbin/*")
NEVER_READY = "printf '#!/bin/sh\\nexec sleep 600\\n' > /usr/local/sbin/broken"
REPLACE = "mount --bind /usr/local/sbin/broken /usr/bin/{}"
SURROUNDINGS: dict[str, tuple[Sequence[str], str, str]] = {
    "all is there": ((), "", ""),
    "relayed": ((), "", "--forward relay"),
    "no user namespaces in a container": ((), "without.py unshare", ""),
    "no pidfds": ((), "without.py pidfds", ""),
    "no pidfds, natively": ((), "without.py pidfds", "--forward native"),
    "no IPv6": ((), "without.py ipv6", ""),
    "no tun device, not needed": ((OWN_DEVICES,), "", "--network none"),
    "the first driver is broken": ((*BROKEN, REPLACE.format("slirp4netns")), "", ""),
    "the other driver is broken": ((*BROKEN, REPLACE.format("pasta")), "", ""),
    "the chosen driver is missing": ((HIDE.format("pasta"),), "", "--network pasta"),
    "no nameserver": (("mount --bind /dev/null /etc/resolv.conf",), "", ""),
    "a host service at the guest port": ((), "", "--host-service 8888"),
    "too many host services": ((), "", "--host-service 20000-20300"),
    "no tun device": ((OWN_DEVICES,), "", ""),
    "no tun device, but a driver wanted": ((OWN_DEVICES,), "", "--network pasta"),
    "a tun device of root's": (
        (OWN_DEVICES, "mknod -m 0600 /dev/net/tun c 10 200"),
        "",
        "--outward helper",
    ),
    "a tun device that is none": (
        (OWN_DEVICES, "touch /dev/net/tun", "chmod 0666 /dev/net/tun"),
        "",
        "--outward helper",
    ),
    "no driver": (NO_DRIVER, "", ""),
    "no driver, and nothing native": (NO_DRIVER, "without.py seccomp", ""),
    "no driver, and left to it": (NO_DRIVER, "", "--outward helper"),
    "both drivers are broken": (
        (*BROKEN, REPLACE.format("slirp4netns"), REPLACE.format("pasta")),
        "",
        "",
    ),
    "a driver that never gets ready": (
        (*BROKEN, NEVER_READY, REPLACE.format("slirp4netns")),
        "",
        "",
    ),
    "no seccomp listener": ((), "without.py seccomp", ""),
    "no seccomp listener, natively": ((), "without.py seccomp", "--forward native"),
    "no seccomp listener, natively outward": ((), "without.py seccomp", "--outward native"),
    "no seccomp listener, direct": ((), "without.py seccomp", "--network direct"),
    "signals interrupt a connect": ((), "without.py killable-wait", "--outward native"),
    "signals interrupt a connect, direct": ((), "without.py killable-wait", "--network direct"),
    "no pidfds, direct": ((), "without.py pidfds", "--network direct"),
    "no descriptors of others": ((), "without.py pidfd_getfd", "--forward native"),
    "the keeper may not enter": ((), "without.py setns", "--forward relay --outward helper"),
    "no netlink": ((), "without.py netlink", ""),
    "no netlink, direct": ((), "without.py netlink", "--network direct"),
    "no mounts": ((), "without.py mount", ""),
    "relayed, direct": ((), "", "--forward relay --network direct"),
    **{
        f"{limit} file descriptors": ((), f"prlimit --nofile={limit}:{limit} --", "")
        for limit in range(12, 32, 4)
    },
}


START_ONLY = ["host port", "host port published", "no port, by hand", "no command"]
START_ONLY += ["option of another portwrap"]
"""What --check has no use for."""
SAME = {
    name: mistake
    for name, mistake in OPTIONS.items()
    if mistake.argv.startswith("--port") and mistake.argv.endswith("true")
    if mistake.status == 2 and name not in START_ONLY
}


@pytest.mark.parametrize("mistake", SAME.values(), ids=SAME)
def test_the_check_agrees_on_the_command_line(
    portwrap: Portwrap, names: dict[str, Any], mistake: Mistake
) -> None:
    program = [portwrap.python, str(batchspawner_portwrap(portwrap))]
    argv = mistake.argv.format(**names)
    given = {key: text.format(**names) for key, text in mistake.environ.items()}
    asked = argv.replace(f"--port {names['port']}", "--check").replace(" true", "")
    runs = [
        run_as(mistake.account, [*program, *each.split()], env=environment(OWNER, given))
        for each in (argv, asked)
    ]
    results = [(each.returncode, each.stdout, each.stderr) for each in runs]
    assert results[0] == results[1]
    assert results[0][0] == 2


def test_the_check_agrees_for_root(make_node: Any) -> None:
    node: Node = make_node()
    for options in (["--network", "pasta"], ["--network", "slirp4netns"], []):
        start = ["-q", "--port", str(unused_ports(1)[0]), *options, "true"]
        started = node.run(node.enter(*node.program(*start)))
        check = node.run(node.enter(*node.program("--check", "--json", *options)))
        assert check.returncode == started.returncode, (check, started)
        if started.returncode:
            answer = json.loads(check.stdout)
            found = next(each for each in answer["checks"] if each["status"] == "failed")
            assert found["remedy"] in started.stderr


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_the_check_agrees_with_a_start(
    make_node: Any, surroundings: tuple[Sequence[str], str, str]
) -> None:
    """Whether there is a session, and if not, why."""
    preparation, before, options = surroundings
    node: Node = make_node(*preparation)
    words = before.split()
    if words and words[0].endswith(".py"):
        words = node.portwrap.program(*words)
    start = ["-q", "--port", str(unused_ports(1)[0]), *options.split(), "true"]
    started = node.run(node.as_owner(*words, *node.program(*start)), seconds=60)
    status, answer = node.check(*options.split(), before=words, seconds=60)
    assert status == started.returncode, (answer, started.stderr)
    if status:
        failed = [check for check in answer["checks"] if check["status"] == "failed"]
        assert len(failed) == 1 and failed[0]["remedy"] in started.stderr, (failed, started.stderr)
