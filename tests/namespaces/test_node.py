"""The node that these tests run on, and what is found that a test has left there."""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Sequence

import node
import pytest

from helpers import NEIGHBOUR, OWNER, PROJECT, run_as

pytestmark = pytest.mark.namespaces


def test_its_name_leads_to_the_address_of_its_interface() -> None:
    assert socket.gethostname() == node.NAME
    assert socket.gethostbyname(node.NAME) == node.ADDRESS
    names = {name for _, name in socket.if_nameindex()}
    assert names >= {"lo", "eth0"}  # a hub of another test may have a cable here
    assert set(os.listdir("/sys/class/net")) == names
    with socket.socket() as bound:
        bound.bind((node.NAME, 0))


def test_its_router_answers_and_no_way_leads_on() -> None:
    with node.peer():
        server = socket.create_server((node.PEER_NAME, 0))
    with server, socket.create_connection((node.PEER, server.getsockname()[1]), timeout=10):
        pass
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=10)


def test_the_accounts_are_the_nodes_own() -> None:
    uids = [pwd.getpwnam(account).pw_uid for account in (OWNER, NEIGHBOUR)]
    assert uids[0] >= node.FIRST_UID and uids[1] == uids[0] + 1
    for account, uid in zip((OWNER, NEIGHBOUR), uids):
        result = run_as(account, ["sh", "-c", "id -u; id -un; touch ~/it && ls ~"])
        assert (result.stdout, result.stderr) == (f"{uid}\n{account}\nit\n", "")
        Path(f"~{account}/it").expanduser().unlink()


# ---- other runs of the tests ------------------------------------------------------------------

START = """
import os, pytest, conftest
from helpers import OWNER, PREFIX, as_user, run_as
pytestmark = pytest.mark.namespaces
conftest.LEFTOVER_LIMIT = 0.1
kept = []
"""
SLEEP = r"process \d+ \(sleep\): sleep 600"
LEFT = {
    "a process": ("kept.append(as_user(OWNER, ['sleep', '600']))", SLEEP),
    "an orphan": ("os.system('sleep 600 & :')", SLEEP),
    "a mount": ("os.system('mount -t tmpfs tmpfs /mnt')", "mount /mnt"),
    "an interface": ("os.system('ip link add pw0 type veth peer pw1')", "interface pw0"),
    "the owner's file": ("run_as(OWNER, ['touch', '/tmp/NAME'])", "file /tmp/NAME"),
    "a file of the test's": ("os.system(f'touch /tmp/{PREFIX}NAME')", r"file /tmp/\S+NAME"),
}


def run_tests(
    text: str, folder: Path, *options: str, before: Sequence[str] = (), **extra_env: str
) -> subprocess.CompletedProcess[str]:
    """Run a file of such tests as another run of them."""
    (folder / "test_it.py").write_text(START + text)
    ours = [f"--rootdir={PROJECT}", f"--config-file={PROJECT}/pyproject.toml", "-p", "conftest"]
    more = ["-p", "no:cacheprovider", f"--basetemp={folder}/tmp", *options]
    return subprocess.run(
        [*before, sys.executable, "-B", "-m", "pytest", *ours, *more, folder / "test_it.py"],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "tests"), **extra_env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_run_on_a_node_has_accounts_of_its_own(tmp_path: Path) -> None:
    """Else its files in /tmp would be what a test of another run leaves: of the first node's."""
    uid = node.FIRST_UID + node.UIDS * 2 * node.MOST
    text = f"import pwd\ndef test_it(): assert pwd.getpwnam(OWNER).pw_uid == {uid}"
    result = run_tests(text, tmp_path, **{node.OUTER: "1"})
    assert result.returncode == 0, result.stdout
    assert int(os.environ[node.OUTER]) < node.MOST
    assert pwd.getpwnam(OWNER).pw_uid == node.FIRST_UID + node.UIDS * int(os.environ[node.OUTER])


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one", "workers"])
def test_what_a_test_leaves_is_its_failure(tmp_path: Path, workers: list[str]) -> None:
    name = tmp_path.parent.name + str(os.getpid())
    code = [f"def test_{number}(): {what}" for number, (what, _) in enumerate(LEFT.values())]
    text = "\n".join([*code, "def test_clean(): run_as(OWNER, ['true'])"])
    result = run_tests(text.replace("NAME", name), tmp_path, *workers)
    for path in Path("/tmp").glob(f"*{name}"):
        path.unlink()
    assert f"{len(LEFT) + 1} passed, {len(LEFT)} errors" in result.stdout, result.stdout
    for _, told in LEFT.values():
        assert re.search(told.replace("NAME", name), result.stdout), result.stdout


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("must", "status", "outcome"), [("0", 0, "1 skipped"), ("1", 1, "1 error")]
)
def test_where_there_can_be_no_node(tmp_path: Path, must: str, status: int, outcome: str) -> None:
    """The reason is given: a skip for a newcomer, a failure where everything must work."""
    text = "def test_it(): pass\n"
    before = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    result = run_tests(text, tmp_path, before=before, PORTWRAP_MUST_WORK=must)
    assert result.returncode == status, result.stdout
    assert outcome in result.stdout
    assert "no node of the tests' own here: [Errno 1] Operation not permitted" in result.stdout
    assert run_tests(text, tmp_path, PORTWRAP_MUST_WORK="1").returncode == 0  # here there can be
