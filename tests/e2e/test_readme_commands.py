"""README and docs as a new administrator pastes them: in a fresh copy of the project, on a machine
of its own in which nothing of it is installed yet."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from http.server import HTTPServer
from pathlib import Path
from typing import Iterator

import pytest
from e2e.checkout import fresh_copy
from networks import SERVER, Host, HubApi

from conftest import why_namespaces_fail
from helpers import OWNER, PROJECT, SYSTEM_PATH, as_user, cannot, end, run_as

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

README = (PROJECT / "README.md").read_text()

RUN_ELSEWHERE = {
    "./demo.sh": "test_demo.py",
    "tests/run.sh": "this is it",
    "echo": "test_check.py, test_namespaces: it would change a setting of this machine",
    "p=$(/nfs/bin/batchspawner-portwrap.pyz": "test_check.py, with AppArmor's parser",
    "dnf": "another distribution's",
    "nsenter": "test_isolation.py, with a session to enter",
}
AS_USER = f"setpriv --reuid={OWNER} --regid={OWNER} --init-groups --"
SUBSTITUTED = {
    # test_slurm.py has a real one, which starts it as a user, too
    "srun -N4": AS_USER,
    "srun": AS_USER,
}
PAGES = ("install.md", "requirements.md", "troubleshooting.md", "inside-a-session.md")
"""Those with commands to paste."""
HUB_NAME, HUB_PORT = "hub.cluster.example", 8081
"""The hub of the README; it stands on the server of the test's network."""


MACHINE = """
place=$1
mount -t tmpfs tmpfs "$place"
mkdir "$place/new" "$place/work" "$place/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/new,workdir=$place/work" "$place/root"
cp -a --parents /etc ~OWNER "$place/new"
for each in /dev /proc /sys /run /tmp; do mount --rbind "$each" "$place/root$each"; done
cd "$place/root"
pivot_root . .
umount -l .
mkdir -p /nfs/bin /nfs/jupyterhub/bin
ln -s /usr/bin/python3 /nfs/jupyterhub/bin/python
printf '#!/usr/bin/python3\n' >/nfs/jupyterhub/bin/batchspawner-singleuser
chmod 755 /nfs/jupyterhub/bin/batchspawner-singleuser
echo 'ADDRESS NAME' >>/etc/hosts
echo ready
read -r _
"""


class Machine:
    """This machine, where everything that is written vanishes; with its own /nfs and /etc/hosts."""

    def __init__(self, folder: Path) -> None:
        script = MACHINE.replace("ADDRESS", SERVER).replace("NAME", HUB_NAME)
        script = script.replace("OWNER", OWNER)
        place = folder / "machine"
        place.mkdir()
        self.project = folder / "batchspawner-portwrap"
        words = ["unshare", "--mount", "bash", "-euc", script, "bash", str(place)]
        self.holder = as_user("root", words, stdin=subprocess.PIPE, stderr=None)
        try:
            assert self.holder.stdout and self.holder.stdout.readline() == "ready\n"
        except BaseException:
            end(self.holder)
            raise

    def paste(self, line: str, account: str = "root") -> subprocess.CompletedProcess[str]:
        """What a shell in the project's directory makes of this line."""
        enter = ["nsenter", "-t", str(self.holder.pid), "--mount", "--"]
        if account != "root":
            enter += ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups", "--"]
        words = [*enter, "bash", "-c", f"cd {self.project} && {line}"]
        pip = {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
        env = {"PATH": SYSTEM_PATH, "HOME": "/root", **pip}
        return run_as("root", words, env=env, seconds=200)

    def close(self) -> None:
        assert self.holder.stdin
        self.holder.stdin.close()
        self.holder.wait(10)
        end(self.holder)


@pytest.fixture
def machine(world_dir: Path) -> Iterator[Machine]:
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    made = Machine(world_dir)
    try:
        fresh_copy(made.project)
        yield made
    finally:
        made.close()


@pytest.fixture
def network() -> Iterator[Host]:
    """A network with the README's hub in it."""
    host = Host()
    with host.entered(host.server):
        hub = HTTPServer((SERVER, HUB_PORT), HubApi)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield host
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
        host.close()


def section(title: str) -> str:
    """The text below this heading."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def console_lines() -> list[str]:
    """Every line that the README has one paste, in its order."""
    blocks = re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_line_has_a_prompt_and_is_run_here_or_elsewhere() -> None:
    lines = console_lines()
    assert lines and all(line.startswith("$ ") for line in lines)
    named = [line[2:].split()[0] for line in lines]
    assert {"./demo.sh", "tests/run.sh"} <= set(named)


def requirements() -> list[str]:
    """How the README has one see what a node needs."""
    table = section("Requirements").partition("| distribution |")[0]
    rows = re.findall(r"^\|.*\| `(.+)` \|$", table, re.MULTILINE)
    assert len(rows) >= 4
    return list(rows)


def test_from_the_top(machine: Machine, network: Host) -> None:
    for line in requirements():
        result = machine.paste(line, OWNER)
        assert result.returncode == 0, result
        assert "yes" not in line or result.stdout == "yes\n"
    ran = []
    for line in (line[2:] for line in console_lines()):
        if line.split()[0] in RUN_ELSEWHERE:
            continue
        result = paste_with_substitutes(machine, network, line)
        assert result.returncode == 0, result
        ran.append(line)
        if "--check" in line:
            assert "A session would start here" in result.stdout
            assert "\nfailed" not in result.stdout and "JupyterHub 5.2.1" in result.stdout
    assert [line.split()[0] for line in ran] == ["./build.sh", "(cd", "install", "srun"]


RELEASE = """
./build.sh && cp dist/batchspawner-portwrap.pyz . &&
sha256sum batchspawner-portwrap.pyz >batchspawner-portwrap.pyz.sha256
"""
"""What a download brings, made as .github/workflows/release.yml makes it."""


def shell_lines(page: str) -> list[str]:
    """Every command of this page, but for the remedies that are made from the table."""
    text = (PROJECT / "docs" / page).read_text().partition("<!-- troubleshooting")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_pages(machine: Machine, network: Host) -> None:
    downloaded = machine.paste(RELEASE.replace("\n", " "))
    assert downloaded.returncode == 0, downloaded
    lines = [line for page in PAGES for line in shell_lines(page)]
    elsewhere = [line for line in lines if line.split()[0] in RUN_ELSEWHERE]
    ran = [line for line in lines if line not in elsewhere]
    for line in ran:
        result = paste_with_substitutes(machine, network, line)
        assert result.returncode == 0, result
    assert {line.split()[0] for line in elsewhere} | {"./demo.sh", "tests/run.sh"} == set(
        RUN_ELSEWHERE
    )
    assert len(ran) > 8


def paste_with_substitutes(
    machine: Machine, network: Host, line: str
) -> subprocess.CompletedProcess[str]:
    for words, others in SUBSTITUTED.items():
        if line.startswith(f"{words} "):
            with network.entered(network.host):
                return machine.paste(others + line[len(words) :])
    return machine.paste(line)
