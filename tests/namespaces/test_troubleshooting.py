"""Five nodes on which a new administrator's first session does not start: the message has the way
out, and docs/troubleshooting.md has the same below the heading that one searches for."""

from __future__ import annotations

import re
import subprocess
from typing import Any, Sequence

import pytest
from checked_node import HIDE, LimitedNode, Node

from helpers import OWNER, PROJECT, SYSTEM_PATH, environment
from sessions import unused_port

pytestmark = pytest.mark.namespaces

PAGE = (PROJECT / "docs" / "troubleshooting.md").read_text()
REQUIREMENTS = (PROJECT / "docs" / "requirements.md").read_text()
SINGLEUSER = "batchspawner-singleuser"
HARDENED = "echo 0 > /proc/sys/user/max_{}_namespaces"
BY_DRIVER = ("--outward", "helper")
"""As on a kernel without native outbound, where a session needs a network driver."""


OLD_PYTHON = """
import sys, runpy
sys.version_info = (3, 6, 8)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def plain(text: str) -> str:
    """Without what sets words as code or in bold."""
    return re.sub(r"[`'*]", "", text)


def sections(message: str) -> list[str]:
    """What stands below the headings of the page that this message is found by."""
    parts = re.split(r"^### `(.+)`$", PAGE, flags=re.MULTILINE)
    headings = [".*".join(map(re.escape, heading.split("…"))) for heading in parts[1::2]]
    return [
        plain(text) for heading, text in zip(headings, parts[2::2]) if re.search(heading, message)
    ]


def assert_explained(message: str, remedy: str) -> None:
    """The page says the same of this message: each sentence, and the command as it stands."""
    words, _, command = remedy.partition(" As root: ")
    sentences = re.split(r"(?<=\.) ", plain(words))
    found = [text for text in sections(message) if all(each in text for each in sentences)]
    assert found, f"{message}\n{remedy}"
    assert any(plain(command) in text for text in found), command


def refusal(node: Node, *options: str, before: Sequence[str] = ()) -> tuple[str, str]:
    """The two lines of a start on this node that fails."""
    words = node.program("--port", str(unused_port()), *options, "echo", "it ran")
    env = environment(OWNER, {"PATH": SYSTEM_PATH})
    result = node.run(node.as_owner(*before, *words), env=env)
    assert (result.returncode, result.stdout) == (125, ""), result
    message, remedy = result.stderr.splitlines()
    return message, remedy.strip()


def test_python_is_too_old(pyz: Any) -> None:
    words = ["/usr/bin/python3", "-c", OLD_PYTHON, str(pyz)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    message, remedy = result.stderr.splitlines()
    assert "Python 3.8 or newer is required, this is 3.6.8 (/usr/bin/python3)" in message
    (section,) = sections(message)
    assert f"run in the Python of {SINGLEUSER}" in section and SINGLEUSER in remedy
    assert f"/path/of/python3 {pyz} ..." in remedy
    assert "bin/python /nfs/bin/batchspawner-portwrap.pyz" in section


def test_no_network_driver(make_node: Any) -> None:
    node = make_node(HIDE.format("slirp4netns"), HIDE.format("pasta"))
    message, remedy = refusal(node, *BY_DRIVER)
    assert "neither slirp4netns nor pasta found" in message
    assert_explained(message, remedy)
    (command,) = re.findall("As root: (.+)", remedy)
    assert f"`{command}`" in REQUIREMENTS
    assert f"`{command}`" in (PROJECT / "README.md").read_text()


@pytest.mark.parametrize("kind", ["user", "net"])
def test_namespaces_are_switched_off(make_node: Any, kind: str) -> None:
    node = make_node(HARDENED.format(kind), kind=LimitedNode)
    message, remedy = refusal(node)
    assert f"user.max_{kind}_namespaces is 0" in remedy
    assert_explained(message, remedy)
    assert f"`user.max_{kind}_namespaces`" in REQUIREMENTS


def test_apparmor_restricts_them(make_node: Any) -> None:
    """What refuses is a filter, with AppArmor's setting beside it, which not every kernel has."""
    setting = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
    node = make_node("mount -t tmpfs -o mode=0755 tmpfs /proc/sys/kernel", f"echo 1 > {setting}")
    _, remedy = refusal(node, before=node.portwrap.program("without.py", "unshare"))
    assert "AppArmor restricts user namespaces" in remedy
    heading = "setting up the user namespace (/proc/self/uid_map): Operation not permitted"
    words, _, command = remedy.partition(" As root: ")
    assert_explained(heading, words)
    load = "apparmor_parser -r /etc/apparmor.d/batchspawner-portwrap"
    assert command.endswith(load) and any(load in text for text in sections(heading))
    assert "kernel.apparmor_restrict_unprivileged_userns" in REQUIREMENTS
    assert "--check --apparmor" in REQUIREMENTS


@pytest.mark.parametrize(
    "url", ["http://no/hub/api", "https://HOST:PORT/hub/api", "http://HOST:PORT/", "http://HOST:9/"]
)
def test_the_url_of_the_hub_is_wrong(node: Node, url: str) -> None:
    host, _, port = node.hub_url.split("/")[2].partition(":")
    status, answer = node.check("--hub", url.replace("HOST", host).replace("PORT", port))
    (hub,) = (check for check in answer["checks"] if check["name"] == "hub")
    assert (status, hub["status"]) == (125, "failed"), answer
    assert_explained(hub["fact"], hub["remedy"].replace(" no'", " NAME'"))
