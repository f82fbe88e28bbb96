"""--check: on a good node, and on nodes that each lack one thing, for real."""

from __future__ import annotations

import json
import os
import pty
import pwd
import re
import shutil
import signal
import socket
import subprocess
import threading
from http.server import HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, Sequence

import pytest
from checked_node import HIDE, OWN_DEVICES, LimitedNode, Node
from launches import batchspawner_portwrap, ours_alive, thread_library
from networks import FAR, SERVER, SERVER6, HubApi, Server6, ip

from portwrap.check import session
from portwrap.launch import ssh_cover
from portwrap.launch.drivers.routes import SUBNETS

from conftest import TEST_ROOT
from helpers import OWNER, PROJECT, as_user, cannot, end, environment, needs, run_as, wait_until
from sessions import Portwrap, unused_port

pytestmark = pytest.mark.namespaces

CHECKS = ["kernel", "account", "user namespaces", "tun device", "byte code", "descriptors"]
CHECKS += ["kernel limits", "security modules", "program"]
CHECKS += ["session", "forward", "outbound", "isolation", "names", "ssh", "groups"]
DEBIAN_13 = TEST_ROOT / "newer-helpers"
BY_DRIVER = ("--outward", "helper")
"""Where a session cannot do without a network driver."""
SSH_FOLDER = "/etc/ssh/ssh_config.d"
INCLUDED_BY_SSH = (
    "mount -t tmpfs -o mode=0755 tmpfs /etc/ssh",
    f"mkdir {SSH_FOLDER}",
    f"echo 'Include {SSH_FOLDER}/*.conf' > /etc/ssh/ssh_config",
)


def named(answer: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in answer["checks"]}


# ---- a good node -------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", ["auto", "native", "relay"])
def test_a_good_node(node: Node, forward: str) -> None:
    status, answer = node.check_when_it_is_good("--hub", node.hub_url, "--forward", forward)
    assert (status, answer["would_start"], answer["failed"]) == (0, True, []), answer
    assert [check["name"] for check in answer["checks"]] == [*CHECKS, "hub", "pasta"]
    assert {check["status"] for check in answer["checks"]} == {"ok"}, answer
    assert {key for check in answer["checks"] for key in check} == {"name", "status", "fact"}
    facts = {name: check["fact"] for name, check in named(answer).items()}
    assert facts["forward"] == ("relay" if forward == "relay" else "native")
    assert facts["hub"].startswith(f"{node.hub_url}: JupyterHub 5.2.1, 200 OK, ")
    assert facts["names"].startswith(f"{SERVER} answered in ")
    assert "slirp4netns" in facts["session"] and "pasta" in facts["pasta"]
    assert "unknown version" not in facts["pasta"]
    # a loopback of each family and the address, each at two ports
    assert "(6 other addresses and an abstract socket refused)" in facts["isolation"]


@pytest.mark.parametrize("way", ["slirp4netns", "pasta", "direct", "none"])
def test_the_chosen_network_driver_is_checked(node: Node, way: str) -> None:
    status, answer = node.check_when_it_is_good("--network", way)
    assert status == 0, answer
    left_out = {"none": ("tun device", "names"), "direct": ("tun device",)}.get(way, ())
    wanted = [name for name in CHECKS if name not in left_out]
    assert [check["name"] for check in answer["checks"]] == wanted
    session = named(answer)["session"]["fact"]
    without = {"none": "no outbound network", "direct": "no network driver"}
    assert without.get(way, way) in session
    outbound = {"none": "none", "direct": "native"}.get(way, f"native and {way}")
    assert named(answer)["outbound"]["fact"] == outbound


def test_clients_from_somewhere_else_only(node: Node) -> None:
    """It is this host that asks, of which the setting says nothing."""
    env = environment(OWNER, {"PORTWRAP_ALLOW_FROM": FAR})
    status, answer = node.check_when_it_is_good(env=env)
    assert (status, named(answer)["forward"]["fact"]) == (0, "relay"), answer


def test_the_hub_of_the_environment(node: Node) -> None:
    env = environment(OWNER, {"JUPYTERHUB_API_URL": node.hub_url})
    assert "JupyterHub 5.2.1" in named(node.check_when_it_is_good(env=env)[1])["hub"]["fact"]


def test_the_hub_on_the_loopback_of_the_node(node: Node) -> None:
    with node.network.entered(node.network.host):
        hub = HTTPServer(("127.0.0.1", 0), HubApi)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{hub.server_address[1]}/hub/api"
        status, answer = node.check_when_it_is_good("--hub", url)
        assert status == 0, answer
        assert "JupyterHub 5.2.1" in named(answer)["hub"]["fact"]
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def test_the_keys_are_those_in_the_documentation(make_node: Any) -> None:
    node = make_node(OWN_DEVICES)
    _, answer = node.check(env=environment(OWNER, {"SLURM_JOB_ID": "4711"}))
    _, _, table = (PROJECT / "docs" / "install.md").read_text().partition("| key | meaning |")
    table = table.partition("\n\n")[0]
    *of_host, of_checks = (line.split(" | ") for line in table.splitlines() if "`" in line)
    assert {*re.findall(r"`(\w+)`", " ".join(row[0] for row in of_host)), "checks"} == {*answer}
    assert {*re.findall(r"`(\w+)`", of_checks[1])} - {"ok"} == {
        key for check in answer["checks"] for key in check
    }
    assert answer["job"] == "4711" and answer["uid"] != 0
    assert answer["schema"] == 1 and answer["interpreter"] == node.portwrap.python


def test_lines_for_people(node: Node) -> None:
    result = node.run(node.as_owner(*node.program("--check")))
    assert (result.returncode, result.stderr) == (0, "")
    head, *lines, verdict = result.stdout.splitlines()
    assert head.startswith("batchspawner-portwrap ")
    assert [line[9:].split("  ")[0] for line in lines] == [*CHECKS, "pasta"]
    assert all(line.startswith("ok       ") for line in lines)
    assert re.fullmatch(r"A session would start here \(\d+ ms\)\.", verdict)


def test_ephemeral_ports_that_cannot_be(node: Node) -> None:
    """The check says what a start says."""
    words = ["--forward", "relay", "--outward", "helper", "--publish-ephemeral", "61000-61003"]
    result = node.run(node.as_owner(*node.program("--check", *words)))
    assert result.returncode == 125
    assert "--publish-ephemeral is not possible: nothing is to be native" in result.stdout


def test_lines_of_several_hosts(make_node: Any) -> None:
    """srun mixes the lines of its tasks: each says whose it is, and there are few."""
    several = environment(OWNER, {"SLURM_STEP_NUM_TASKS": "2"})
    node = make_node()
    result = node.run(node.as_owner(*node.program("--check")), env=several)
    host = os.uname().nodename
    assert re.fullmatch(rf"{host}: A session would start here \(\d+ ms\)\.\n", result.stdout)
    node.mend("chmod 0600 /etc/resolv.conf")
    result = node.run(node.as_owner(*node.program("--check")), env=several)
    *lines, verdict = result.stdout.splitlines()
    assert lines[0].startswith(f"{host}: warning  names  ")
    assert all(line.startswith(f"{host}: ") for line in [*lines, verdict])
    alone = node.run(node.as_owner(*node.program("--check")))
    assert len(alone.stdout.splitlines()) > 10


@pytest.mark.parametrize(("extra", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_only_on_a_terminal(node: Node, extra: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        env = environment(OWNER, extra)
        result = node.run(node.as_owner(*node.program("--check")), env=env, stdout=theirs)
        text = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == 0
    assert ("\033[32mok" in text) == coloured, text


def test_root_is_told_to_be_somebody_else(node: Node) -> None:
    result = node.run(node.enter(*node.program("--check", "--json")))
    assert named(json.loads(result.stdout))["account"]["status"] == "warning"


# ---- what is taken away ------------------------------------------------------------------------


def assert_fails(node: Node, name: str, *said: str, options: Sequence[str] = ()) -> dict[str, str]:
    """That this check, and no other, says that no session would start. Returns it."""
    status, answer = node.check(*options)
    assert (status, answer["would_start"], answer["failed"]) == (125, False, [name]), answer
    found = named(answer)[name]
    assert [text for text in said if text not in found["fact"]] == [], found
    assert found["remedy"]
    return {"command": "", **found}


def assert_mends(node: Node, command: str) -> None:
    """That the command, run by root, is all that it takes."""
    node.mend(command)
    status, answer = node.check()
    assert (status, answer["failed"]) == (0, []), answer


@pytest.mark.parametrize(
    ("preparation", "said"),
    [
        pytest.param([], "/dev/net/tun: No such file or directory", id="missing"),
        pytest.param(
            ["mknod -m 0600 /dev/net/tun c 10 200"], "/dev/net/tun: Permission denied", id="closed"
        ),
        pytest.param(
            ["touch /dev/net/tun", "chmod 0666 /dev/net/tun"], "/dev/net/tun: TUNSETIFF", id="none"
        ),
    ],
)
def test_the_tun_device(make_node: Any, preparation: list[str], said: str) -> None:
    node = make_node(OWN_DEVICES, *preparation)
    found = assert_fails(node, "tun device", said, options=BY_DRIVER)
    if preparation[:1] != ["touch /dev/net/tun"]:  # a session can do without
        status, answer = node.check()
        assert (status, named(answer)["tun device"]["status"]) == (0, "warning"), answer
        assert "only TCP" in named(answer)["network driver"]["fact"]
        assert named(answer)["outbound"]["fact"] == "native"
    assert_mends(node, found["command"])


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("max_user_namespaces", "0", "switched off"),
        ("max_net_namespaces", "0", "switched off"),
        ("max_user_namespaces", "1", "limit"),
    ],
)
def test_namespaces(make_node: Any, setting: str, value: str, named: str) -> None:
    """In a user namespace, where the setting is its own; another one is held there."""
    held = "unshare -U sleep 600 & trap 'kill $!' EXIT"
    made = (
        'until [ "$(readlink /proc/$!/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do :; done'
    )
    switch = f"echo {value} > /proc/sys/user/{setting}"
    lines = ["mount -t tmpfs tmpfs /etc/sysctl.d", held, made, switch]
    node = make_node(*lines, kind=LimitedNode)
    found = assert_fails(node, "user namespaces", "No space left on device")
    assert named in found["remedy"] and setting in found["command"]
    assert_mends(node, found["command"])


def test_namespaces_that_something_forbids(make_node: Any, world_dir: Path) -> None:
    """Whoever is in a chroot gets no user namespace (unshare(2))."""
    root = world_dir / "root"
    root.mkdir()
    node = make_node(f"mount --rbind / {root}")
    words = node.program("--check", "--json")
    inside = ["chroot", f"--userspec={OWNER}:{OWNER}", str(root), *words]
    result = node.run(node.enter(*inside))
    found = named(json.loads(result.stdout))["user namespaces"]
    assert (result.returncode, found["status"]) == (125, "failed"), result
    assert "Operation not permitted" in found["fact"]
    assert "unshare -Urn true" in found["remedy"] and "command" not in found


def test_namespaces_that_a_container_forbids(node: Node) -> None:
    """Its seccomp filter, which a newcomer does not see."""
    before = node.portwrap.program("without.py", "unshare")
    status, answer = node.check(before=before)
    assert (status, answer["failed"]) == (125, ["user namespaces"]), answer
    found = named(answer)["user namespaces"]
    assert "Operation not permitted; a seccomp filter is in force" in found["fact"]
    assert "unshare -Urn true" in found["remedy"]


def test_network_drivers(make_node: Any) -> None:
    node = make_node(HIDE.format("slirp4netns"), HIDE.format("pasta"))
    missing = "neither slirp4netns nor pasta found"
    found = assert_fails(node, "network driver", missing, options=BY_DRIVER)
    status, answer = node.check()
    assert (status, named(answer)["network driver"]["status"]) == (0, "warning"), answer
    assert named(answer)["network driver"]["command"] == found["command"]
    assert "no network driver" in named(answer)["session"]["fact"]
    assert re.fullmatch(r"(apt-get|dnf) install \w+", found["command"])
    # Packages are not installed twice: what the command brings is brought back.
    node.mend("umount /usr/bin/pasta")
    status, answer = node.check()
    assert status == 0, answer
    assert "pasta" in named(answer)["session"]["fact"]


def test_a_network_driver_that_does_not_work(make_node: Any, world_dir: Path) -> None:
    broken = world_dir / "slirp4netns"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    broken.chmod(0o755)
    node = make_node(f"mount --bind {broken} /usr/bin/slirp4netns")
    found = assert_fails(node, "session", "slirp4netns ended before it was ready", "broken")
    assert "unshare -Urn sleep 60 & sleep 1; slirp4netns --configure $! tap0" in found["remedy"]
    assert_mends(node, "umount /usr/bin/slirp4netns")


def test_a_keeper_that_cannot_go_on(node: Node) -> None:
    """It says why when the probe has begun."""
    status, answer = node.check(before=node.portwrap.program("without.py", "epoll"))
    assert (status, answer["failed"]) == (125, ["session"]), answer
    assert "the keeper failed: Too many open files" in named(answer)["session"]["fact"]
    assert "hard limit" in named(answer)["session"]["remedy"]


def test_the_other_network_driver_is_only_warned_about(make_node: Any, world_dir: Path) -> None:
    broken = world_dir / "pasta"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    node = make_node(f"mount --bind {broken} /usr/bin/pasta")
    status, answer = node.check()
    found = named(answer)["pasta"]
    assert (status, found["status"]) == (0, "warning")
    assert "pasta does not work on this node" in found["remedy"]


@pytest.mark.parametrize(
    "place, remedy",
    [
        (f"http://{SERVER}:9/hub/api", "Set c.JupyterHub.hub_ip = '0.0.0.0'"),
        ("http://192.0.2.77:8081/", "Check c.JupyterHub.hub_connect_ip, and firewalls"),
        ("http://no/", "'getent hosts no' must print its address. Set c.JupyterHub.hub_connect_ip"),
    ],
)
def test_a_hub_that_does_not_answer(node: Node, place: str, remedy: str) -> None:
    status, answer = node.check("--hub", place)
    assert (status, answer["failed"]) == (125, ["hub"]), answer
    assert remedy in named(answer)["hub"]["remedy"]
    assert f"the hub {place} does not answer: " in named(answer)["hub"]["fact"]
    assert "Errno" not in named(answer)["hub"]["fact"]


def test_a_hub_on_loopback_that_does_not_answer(node: Node) -> None:
    """It is the host that gives the reason: our relay of that port could only reset."""
    url = f"http://127.0.0.1:{unused_port()}/hub/api"
    status, answer = node.check("--hub", url)
    assert (status, answer["failed"]) == (125, ["hub"]), answer
    found = named(answer)["hub"]
    assert found["fact"] == f"the hub {url} does not answer: Connection refused"
    assert "hub_connect_ip" not in found["remedy"]


@pytest.mark.parametrize(
    "url, fact, remedy",
    [
        ("http://{}/hub", "http://{}/hub is not the API of JupyterHub: 404 Not Found", "/hub/api"),
        ("https://{}/hub/api", "the hub https://{}/hub/api does not answer: [SSL", "with http://"),
    ],
)
def test_a_url_that_is_nearly_that_of_the_hub(node: Node, url: str, fact: str, remedy: str) -> None:
    with node.network.entered(node.network.server):
        hub = HTTPServer((SERVER, 0), HubApi)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    try:
        place = f"{SERVER}:{hub.server_address[1]}"
        status, answer = node.check("--hub", url.format(place))
        assert (status, answer["failed"]) == (125, ["hub"]), answer
        assert named(answer)["hub"]["fact"].startswith(fact.format(place))
        assert remedy in named(answer)["hub"]["remedy"]
        assert node.check_when_it_is_good("--hub", f"http://{place}/hub/api")[0] == 0
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def test_a_web_server_that_is_no_hub(node: Node) -> None:
    """Its answer is a success, and nobody's that could start a session."""
    with node.network.entered(node.network.server):
        server = HTTPServer((SERVER, 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        url = f"http://{SERVER}:{server.server_address[1]}/hub/api"
        status, answer = node.check("--hub", url)
        assert (status, answer["failed"]) == (125, ["hub"]), answer
        assert named(answer)["hub"]["fact"] == f"{url} is not the API of JupyterHub: 200 OK"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Elsewhere(HubApi):
    """Another program: without the header that a hub puts on every answer."""

    def send_header(self, keyword: str, value: str) -> None:
        if not keyword.startswith("X-"):
            super().send_header(keyword, value)


def test_a_hub_that_only_the_node_reaches(node: Node) -> None:
    """By IPv6, which slirp4netns does not have, where connections are left to it."""
    with node.network.entered(node.network.server):
        hub = Server6((SERVER6, 0), HubApi)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    try:
        url = f"http://[{SERVER6}]:{hub.server_address[1]}/hub/api"
        by_driver = "--network", "slirp4netns", "--outward", "helper"
        status, answer = node.check(*by_driver, "--hub", url)
        assert (status, answer["failed"]) == (125, ["hub"]), answer
        found = named(answer)["hub"]
        assert f"the hub {url} answers this node, but not the sandbox: " in found["fact"]
        assert "Try --network pasta" in found["remedy"]
        for options in (["--network", "pasta", "--outward", "helper"], []):
            status, answer = node.check_when_it_is_good(*options, "--hub", url)
            assert status == 0, answer
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


@pytest.fixture
def hidden_hub(node: Node) -> Iterator[str]:
    """The URL of a hub behind the node's default route, with an address of the network that a
    session uses for itself by default; only DNS knows it."""
    address = f"{SUBNETS[0]}.103"
    with node.network.entered(node.network.server):
        ip(f"addr add {address}/32 dev lo")
        hub = HTTPServer((address, 0), HubApi)
    node.names[b"\3hub\4test"] = address
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://hub.test:{hub.server_address[1]}/hub/api"
    hub.shutdown()
    thread.join()
    hub.server_close()


def test_a_hub_in_the_sandboxs_own_network(node: Node, hidden_hub: str, world_dir: Path) -> None:
    """A clash, and no firewall: the remedy is another one."""
    by_driver = "--network", "slirp4netns", *BY_DRIVER
    node.mend(f"cp /etc/hosts {world_dir} && mount --bind {world_dir}/hosts /etc/hosts")
    status, answer = node.check(*by_driver, "--hub", hidden_hub)
    found = named(answer)["hub"]
    assert (status, answer["failed"]) == (125, ["hub"]), answer
    assert f"the hub {hidden_hub} answers this node, but not the sandbox: " in found["fact"]
    assert f"({SUBNETS[0]}.103 is in the sandbox's own network)" in found["fact"]
    assert "firewall" not in found["remedy"]
    # each of the remedies
    status, answer = node.check_when_it_is_good(
        "--network", "pasta", *BY_DRIVER, "--hub", hidden_hub
    )
    assert status == 0, answer
    node.mend(found["command"])
    status, answer = node.check_when_it_is_good(*by_driver, "--hub", hidden_hub)
    assert status == 0, answer


def test_a_hub_without_outbound(node: Node, hidden_hub: str) -> None:
    """`--network none` has no network of its own that could hide the hub."""
    status, answer = node.check("--network", "none", "--hub", hidden_hub)
    assert (status, answer["failed"]) == (125, ["hub"]), answer
    assert "answers this node, but not the sandbox: " in named(answer)["hub"]["fact"]


def test_a_hub_in_the_sandboxs_own_network_natively(node: Node, hidden_hub: str) -> None:
    """Most addresses of that network are nobody's in the sandbox."""
    status, answer = node.check_when_it_is_good("--hub", hidden_hub)
    assert status == 0, answer
    assert "slirp4netns" in named(answer)["session"]["fact"]


ALL_TAKEN = [f"route add {subnet}.0/24 via {SERVER}" for subnet in SUBNETS]


def test_a_node_that_uses_every_network_of_a_sandbox(node: Node) -> None:
    """The start says so as well, and takes the driver that hides none where it may choose."""
    with node.network.entered(node.network.host):
        ip(*ALL_TAKEN)
    start = node.as_owner(*node.program("-q", "--port", str(unused_port()), "--network"))
    for way in ("slirp4netns", "pasta", "auto"):
        status, answer = node.check("--network", way)
        started = node.run([*start, way, "true"])
        assert (status, started.returncode) == (0, 0), (answer, started)
        found = named(answer).get("network driver")
        if way == "slirp4netns":
            assert found and found["status"] == "warning", answer
            assert f"slirp4netns hides {SUBNETS[0]}.0/24" in found["fact"]
            assert "--network pasta" in found["remedy"]
            assert started.stderr == f"batchspawner-portwrap: {found['fact']}\n"
        else:
            assert found is None and started.stderr == "", (answer, started)
            assert "pasta" in named(answer)["outbound"]["fact"]


def test_no_nameserver(make_node: Any) -> None:
    node = make_node(f"echo nameserver {FAR} > /etc/resolv.conf")
    status, answer = node.check()
    found = named(answer)["names"]
    assert (status, found["status"]) == (0, "warning"), answer
    assert FAR in found["fact"] and "/etc/resolv.conf" in found["remedy"]
    node.mend(f"echo nameserver {SERVER} > /etc/resolv.conf")
    assert named(node.check_when_it_is_good()[1])["names"]["status"] == "ok"


def test_a_configuration_that_ssh_does_not_read(make_node: Any) -> None:
    needs("ssh")
    node = make_node(
        "mount -t tmpfs -o mode=0755 tmpfs /etc/ssh",
        "echo 'NoSuchOption yes' > /etc/ssh/ssh_config",
    )
    status, answer = node.check()
    found = named(answer)["ssh"]
    assert (status, found["status"]) == (0, "warning"), answer
    assert "/etc/ssh/ssh_config" in found["fact"]


def test_files_of_root_that_ssh_would_refuse(make_node: Any) -> None:
    needs("ssh")
    folder = SSH_FOLDER
    node = make_node(*INCLUDED_BY_SSH, f"echo 'ServerAliveInterval 60' > {folder}/site.conf")
    status, answer = node.check_when_it_is_good()
    assert (status, named(answer)["ssh"]["status"]) == (0, "ok"), answer
    assert f"ssh configuration {folder}" in named(answer)["session"]["fact"]
    # the control: without these copies it refuses them
    result = node.run(node.as_owner("unshare", "-Uc", "ssh", "-G", "localhost"))
    assert "Bad owner or permissions" in result.stderr


def test_more_files_of_root_than_are_covered(make_node: Any) -> None:
    """What ssh refuses then, and the way around it, which is for the user."""
    needs("ssh")
    folder = SSH_FOLDER
    node = make_node(
        *INCLUDED_BY_SSH,
        f"for n in $(seq {ssh_cover.MAX_ENTRIES + 1}); do : > {folder}/$n.conf; done",
    )
    status, answer = node.check()
    found = named(answer)["ssh"]
    assert (status, found["status"]) == (0, "warning"), answer
    assert f"Bad owner or permissions on {folder}" in found["fact"]
    (around,) = re.findall(r"GIT_SSH_COMMAND='(.+?)'", found["remedy"])
    inside = node.program("-q", "--port", str(unused_port()), "sh", "-c", "exec $0 -G localhost")
    assert node.run(node.as_owner(*inside, "ssh")).returncode == 255
    assert node.run(node.as_owner(*inside, around)).returncode == 0


def test_a_large_directory_is_left_alone(make_node: Any) -> None:
    """To cover it would take a mount for each of its files."""
    needs("ssh")
    node = make_node(
        *INCLUDED_BY_SSH,
        f"for n in $(seq {ssh_cover.MAX_ENTRIES}); do : > {SSH_FOLDER}/$n; done",
        f"echo 'ServerAliveInterval 60' > {SSH_FOLDER}/site.conf",
    )
    found = named(node.check()[1])["ssh"]
    assert f"Bad owner or permissions on {SSH_FOLDER}/site.conf" in found["fact"]
    node.mend(f"rm {SSH_FOLDER}/1*")
    assert named(node.check_when_it_is_good()[1])["ssh"]["status"] == "ok"


def test_a_library_that_starts_a_thread(node: Node, world_dir: Path) -> None:
    """A session of the check starts as every session does, with the same outcome."""
    before = ["env", f"LD_PRELOAD={thread_library(world_dir)}"]
    words = node.program("-q", "--port", str(unused_port()), "true")
    started = node.run(node.as_owner(*before, *words))
    status, answer = node.check(before=before)
    assert (status, answer["would_start"]) == (started.returncode, started.returncode == 0)
    if started.returncode:
        assert named(answer)["session"]["fact"] in started.stderr
        assert named(answer)["session"]["remedy"] in started.stderr


def test_few_descriptors(node: Node) -> None:
    status, answer = node.check(before=["prlimit", "--nofile=100:100", "--"])
    found = named(answer)["descriptors"]
    assert (status, found["status"]) == (0, "warning"), answer
    assert "at most 100" in found["fact"] and "LimitNOFILE" in found["remedy"]


def test_few_namespaces(make_node: Any) -> None:
    """In a user namespace, where the limit is its own."""
    lower = "echo 500 > /proc/sys/user/max_user_namespaces"
    node = make_node("mount -t tmpfs tmpfs /etc/sysctl.d", lower, kind=LimitedNode)
    status, answer = node.check()
    found = named(answer)["kernel limits"]
    assert (status, found["status"]) == (0, "warning"), answer
    node.mend(found["command"])
    assert named(node.check()[1])["kernel limits"]["status"] == "ok"


def test_a_remedy_of_several_checks_is_printed_once(node: Node) -> None:
    """Hardly any descriptor: both the limit and the session that fails for it."""
    before = ["prlimit", "--nofile=20:20", "--"]
    result = node.run(node.as_owner(*before, *node.program("--check")))
    assert result.returncode == 125, result
    assert result.stdout.count("Too many open files") >= 2
    assert result.stdout.count("The limit of open files is too low") == 1


def test_groups_that_files_cannot_be_given_to(node: Node) -> None:
    """The control: a user in one group only."""
    own = pwd.getpwnam(OWNER).pw_gid
    for more, said in ((["4711"], "groups 4711 can be used"), ([], f"given to group {own}")):
        ids = [
            "setpriv",
            f"--reuid={OWNER}",
            f"--regid={own}",
            f"--groups={','.join(more or [str(own)])}",
        ]
        result = node.run(node.enter(*ids, "--", *node.program("--check", "--json")))
        found = named(json.loads(result.stdout))["groups"]
        assert found["status"] == "ok" and said in found["fact"], found


def test_a_kernel_without_native_forwarding(node: Node) -> None:
    before = node.portwrap.program("without.py", "pidfds")
    status, answer = node.check("--forward", "auto", before=before)
    found = named(answer)["forward"]
    assert (status, found["status"]) == (0, "warning"), answer
    assert found["fact"].startswith("relay (") and "Linux 5.9" in found["remedy"]
    found = named(answer)["outbound"]
    assert found["status"] == "warning"
    assert found["fact"].startswith("slirp4netns (") and "Linux 5.19" in found["remedy"]
    status, answer = node.check("--forward", "native", before=before)
    assert (status, answer["failed"]) == (125, ["session"]), answer
    assert "--forward auto" in named(answer)["session"]["remedy"]


# ---- the isolation -----------------------------------------------------------------------------


def test_what_is_reached_past_the_forward_is_seen() -> None:
    """The control: sockets without a sandbox, on the very ports and the very name."""
    token = f"portwrap-check-test-{os.getpid()}"
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    listeners.append(socket.socket(socket.AF_UNIX))
    listeners[3].bind(f"\0{token}")
    listeners[3].listen()
    host, guest, application = (each.getsockname()[1] for each in listeners[:3])
    answering = {host}

    def serve(listener: socket.socket) -> None:
        while True:
            with listener.accept()[0] as connection:
                name = listener.getsockname()
                here = name[1] if isinstance(name, tuple) else "unix"
                if here == "end" or "end" in answering:
                    return
                connection.sendall(token.encode() if here in answering else b"somebody else")

    threads = [threading.Thread(target=serve, args=(each,)) for each in listeners]
    for thread in threads:
        thread.start()
    reported = {"listening": {"application": application}}
    shown: Any = SimpleNamespace(token=token, host_port=host, guest_port=guest, reported=reported)
    try:
        assert session.check_isolation(shown).status == "ok"
        for leak in (guest, application, "unix"):
            answering = {host, leak}
            result = session.check_isolation(shown)
            assert result.status == "failed"
            assert (token if leak == "unix" else str(leak)) in result.fact
        answering = set()
        assert session.check_isolation(shown).status == "failed"
    finally:
        answering = {"end"}
        for each in listeners[:3]:
            session.fetch(socket.AF_INET, each.getsockname())
        session.fetch(socket.AF_UNIX, f"\0{token}")
        for thread in threads:
            thread.join()
        for each in listeners:
            each.close()


# ---- nothing is left ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_in_the_middle(node: Node, number: int) -> None:
    before = ours_alive()
    words = node.as_owner(*node.program("--check"))
    caught = False
    while not caught:  # it may end before it is looked at
        with node.network.entered(node.network.host):
            process = as_user("root", words, env=environment(OWNER))
        try:
            wait_until(
                lambda: len(ours_alive() - before) > 3 or process.poll() is not None,  # noqa: B023
                what="its sessions",
            )
            caught = process.poll() is None
            if caught:
                os.kill(process.pid, number)
            process.communicate(timeout=10)
        finally:
            end(process)
    wait_until(lambda: not ours_alive() - before, 10, "the end of every process")


# ---- AppArmor ----------------------------------------------------------------------------------


@pytest.fixture
def installed(pyz: Path, world_dir: Path) -> Path:
    """A directory with both programs, one of them behind a link, and with a difficult name."""
    place = world_dir / "a dir[1]"
    place.mkdir(mode=0o755)
    shutil.copy2(pyz, place / "portwrap.pyz")
    single = place / "real-singleuser"
    single.write_text("#!/bin/sh\n")
    single.chmod(0o755)
    (place / "batchspawner-singleuser").symlink_to(single)
    (world_dir / "link.pyz").symlink_to(place / "portwrap.pyz")
    return place


def profiles(program: Path, path: str = "/usr/bin:/bin") -> str:
    words = [str(program), "--check", "--apparmor"]
    result = run_as(OWNER, words, env=environment(OWNER, {"PATH": path}))
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout


def test_profiles_where_the_one_that_sessions_need_is_missing(installed: Path) -> None:
    words = [str(installed / "portwrap.pyz"), "--check", "--apparmor"]
    result = run_as(OWNER, words, env=environment(OWNER, {"PATH": "/usr/bin:/bin"}))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (125, "", 2)
    assert "batchspawner-singleuser: not found on PATH\n" in result.stderr


def test_profiles_name_the_files_that_are_run(installed: Path) -> None:
    text = profiles(installed.parent / "link.pyz", f"{installed}:/usr/bin:/bin")
    escaped = str(installed).replace("[", "\\[").replace("]", "\\]")
    named = re.findall(r'^profile (\S+) "(.+)" flags=\(unconfined\) \{$', text, re.M)
    assert named == [
        ("batchspawner-portwrap", f"{escaped}/portwrap.pyz"),
        ("batchspawner-singleuser", f"{escaped}/real-singleuser"),
    ]
    assert text.count("\n  userns,\n") == 2


def test_profiles_of_programs_that_are_named(installed: Path) -> None:
    """Two of one name, and our own: that has one profile."""
    other = installed / "other"
    other.mkdir(mode=0o755)
    shutil.copy2(installed / "real-singleuser", other)
    program = installed / "portwrap.pyz"
    named = [program, installed / "batchspawner-singleuser", other / "real-singleuser"]
    result = run_as(OWNER, [program, "--check", "--apparmor", *named], env=environment(OWNER))
    names = re.findall(r"^profile (\S+) ", result.stdout, re.M)
    assert names == ["batchspawner-portwrap", "batchspawner-singleuser", "real-singleuser"]
    result = run_as(OWNER, [program, "--check", "--apparmor", "/no/such"], env=environment(OWNER))
    assert (result.returncode, result.stdout) == (125, "")
    assert "/no/such: no such file\n" in result.stderr


RULES = DEBIAN_13 / "etc" / "apparmor.d"
PARSER = f"""#!/bin/sh
exec {DEBIAN_13}/usr/sbin/apparmor_parser --config-file /dev/null --base {RULES} --skip-cache \\
 --skip-kernel-load --policy-features {RULES}/abi/4.0 --kernel-features {RULES}/abi/4.0 "$@"
"""
RESTRICTED = (
    "mount -t tmpfs -o mode=0755 tmpfs /proc/sys/kernel",
    "echo 1 > /proc/sys/kernel/apparmor_restrict_unprivileged_userns",
)


def own_etc(folder: Path) -> tuple[str, ...]:
    """Lines that give a node an /etc and a /usr/local/sbin of its own, with AppArmor's parser."""
    script = folder / "apparmor_parser"
    script.write_text(PARSER)
    script.chmod(0o755)
    upper = folder / "upper"
    upper.mkdir()
    return (
        f"mount -t tmpfs tmpfs {upper}",
        f"mkdir {upper}/etc {upper}/work",
        f"mount -t overlay -o lowerdir=/etc,upperdir={upper}/etc,workdir={upper}/work none /etc",
        "mkdir -p /etc/apparmor.d",
        "mount -t tmpfs -o mode=0755 tmpfs /usr/local/sbin",
        f"cp {script} /usr/local/sbin",
    )


def test_the_remedy_for_apparmor_works_as_it_is_printed(
    make_node: Any, pyz: Path, installed: Path, world_dir: Path
) -> None:
    """By root, with root's PATH. What refuses here is not AppArmor, which this kernel may not have,
    but a seccomp filter, with AppArmor's setting beside it."""
    if not (DEBIAN_13 / "usr" / "sbin" / "apparmor_parser").exists():
        cannot(f"no apparmor_parser in {DEBIAN_13}; on Debian 12 tests/setup.sh gets it")
    node = make_node(*own_etc(world_dir), *RESTRICTED)
    refused = node.portwrap.program("without.py", "unshare")
    profile = "/etc/apparmor.d/batchspawner-portwrap"
    for path in ("/usr/bin:/bin", f"{installed}:/usr/bin:/bin"):
        words = node.as_owner(*refused, pyz, "--check", "--json")
        answer = json.loads(node.run(words, env=environment(OWNER, {"PATH": path})).stdout)
        found = named(answer)["user namespaces"]
        assert "AppArmor" in found["remedy"], found
        if path.startswith("/usr"):  # nobody knows where batchspawner-singleuser is
            result = node.run(node.enter("sh", "-c", found["command"]))
            assert result.returncode == 125 and "not found on PATH" in result.stderr, result
            assert node.run(node.enter("cat", profile)).returncode == 1
    node.mend(found["command"])
    loaded = node.run(node.enter("apparmor_parser", "--names", profile)).stdout
    assert loaded == "batchspawner-portwrap\nbatchspawner-singleuser\n"


def test_profiles_are_what_apparmor_reads(installed: Path) -> None:
    """AppArmor's own parser compiles them. No kernel is asked, and so none of it is loaded."""
    parser = DEBIAN_13 / "usr" / "sbin" / "apparmor_parser"
    if not parser.exists():
        cannot(f"no {parser}; on Debian 12 tests/setup.sh gets it")
    rules = DEBIAN_13 / "etc" / "apparmor.d"
    features = rules / "abi" / "4.0"
    words = [parser, "--config-file", "/dev/null", "--base", rules, "--skip-kernel-load"]
    words += ["--skip-cache", "--policy-features", features, "--kernel-features", features]
    text = profiles(installed / "portwrap.pyz", f"{installed}:/usr/bin:/bin")
    for more, output in (
        ([], ""),
        (["--names"], "batchspawner-portwrap\nbatchspawner-singleuser\n"),
    ):
        result = subprocess.run(
            [*map(str, words), *more], input=text, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, output, "")
    broken = text.replace("userns,", "user namespaces,")
    result = subprocess.run([*map(str, words)], input=broken, capture_output=True, text=True)
    assert result.returncode != 0


# ---- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [["--json", "true"], ["--hub", "http://x/", "true"], ["--apparmor"], ["--check", "true"]],
)
def test_options_that_do_not_go_together(portwrap: Portwrap, options: list[str]) -> None:
    words = [portwrap.python, str(batchspawner_portwrap(portwrap)), *options]
    result = run_as(OWNER, words)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--check" in result.stderr and result.stderr.count("\n") == 2


def test_a_start_reads_nothing_of_it(portwrap: Portwrap) -> None:
    batchspawner_portwrap(portwrap)
    script = "import sys, batchspawner_portwrap\nprint(*sys.modules)"
    result = run_as(OWNER, [portwrap.python, "-c", script], cwd=portwrap.folder)
    loaded = result.stdout.split()
    assert "portwrap.launch.story" in loaded
    unwanted = {
        "portwrap.check",
        "portwrap.cli.help",
        "portwrap.diagnostics.lookup",
        "portwrap.diagnostics.remedies",
        "json",
        "subprocess",
        "re",
    }
    assert unwanted.intersection(loaded) == set()
