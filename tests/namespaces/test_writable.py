"""Who can change the program: what `--check` reports is what a neighbour can do."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Callable

import pytest

from portwrap.check import writable

from helpers import NEIGHBOUR, OWNER, PROJECT, identity, run_as

pytestmark = pytest.mark.namespaces

# As the neighbour: write to the file, and rename each thing on the way to it.
ATTACK = """
import os, sys
def can(action):
    try:
        action()
    except OSError:
        return False
    return True
file, *entries = sys.argv[1:]
done = [file] if can(lambda: open(file, "a").write("evil")) else []
done += [entry for entry in entries if can(lambda: os.rename(entry, entry + ".gone"))]
print(bool(done))
"""


def can_be_changed(file: Path) -> bool:
    """Whether the neighbour can really change what runs under this path."""
    entries = [path for path in writable.on_the_way(str(file)) if path != "/"][::-1]
    result = run_as(NEIGHBOUR, ["/usr/bin/python3", "-c", ATTACK, file, *entries])
    assert result.stderr == ""
    return result.stdout == "True\n"


def group_of(account: str) -> int:
    return int(identity(account)["group"])


def let_group_write(path: Path) -> None:
    os.chown(path, -1, group_of(NEIGHBOUR))
    path.chmod(0o775)


def give(path: Path, account: str, mode: int) -> None:
    shutil.chown(path, account, account)
    path.chmod(mode)


def allow_by_list(path: Path) -> None:
    """An access control list that lets the neighbour write (acl(5), in the kernel's form)."""
    entries = [(1, 6, -1), (2, 6, identity(NEIGHBOUR)["user"]), (4, 4, -1), (16, 6, -1)]
    entries += [(32, 4, -1)]
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, writable.ACL, struct.pack("<I", 2) + packed)


def owners_alone(file: Path) -> None:
    give(file, OWNER, 0o775)
    give(file.parent, OWNER, 0o775)


def writable_by_list(file: Path) -> None:
    give(file, OWNER, 0o664)
    allow_by_list(file)


def replace_by_link(path: Path, folder: Path) -> None:
    """Have the path be a symbolic link to what was there, in this folder now."""
    folder.mkdir()
    path.rename(folder / path.name)
    path.symlink_to(os.path.relpath(folder / path.name, path.parent))


def link_from_open_folder(file: Path) -> None:
    (file.parent.parent / "real").mkdir()
    file.rename(file.parent.parent / "real" / file.name)
    file.symlink_to(f"../real/{file.name}")
    file.parent.chmod(0o777)


def link_into_open_folder(file: Path) -> None:
    replace_by_link(file, file.parent / "open")
    (file.parent / "open").chmod(0o777)


def folder_by_link(file: Path) -> None:
    replace_by_link(file.parent, file.parent.parent / "open")
    (file.parent.parent / "open").chmod(0o777)


def neighbours_link_in_sticky_folder(file: Path) -> None:
    replace_by_link(file, file.parent.parent / "real")
    ids = identity(NEIGHBOUR)
    os.chown(file, ids["user"], ids["group"], follow_symlinks=False)
    file.parent.chmod(0o1777)


LAYOUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "root's": (lambda file: None, ""),
    "the owner's, with a group of his own": (owners_alone, ""),
    "a sticky folder": (lambda file: file.parent.chmod(0o1777), ""),
    "links between safe folders": (lambda file: replace_by_link(file, file.parent / "safe"), ""),
    "the file": (lambda file: file.chmod(0o757), "chmod o-w"),
    "the file's group": (let_group_write, "chmod g-w"),
    "its folder": (lambda file: file.parent.chmod(0o777), "chmod o-w"),
    "the folder's group": (lambda file: let_group_write(file.parent), "chmod g-w"),
    "another one's folder": (lambda file: give(file.parent, NEIGHBOUR, 0o755), "chown -h root"),
    "a folder further up": (lambda file: file.parent.parent.chmod(0o777), "chmod o-w"),
    "a link from an open folder": (link_from_open_folder, "chmod o-w"),
    "a link into an open folder": (link_into_open_folder, "chmod o-w"),
    "a folder that is a link into an open one": (folder_by_link, "chmod o-w"),
    "another one's link in a sticky folder": (neighbours_link_in_sticky_folder, "chown -h root"),
    "a list, with a group of one's own": (writable_by_list, "chmod g-w"),
}


@pytest.fixture
def file(world_dir: Path) -> Path:
    """A program of root's, two folders deep."""
    made = world_dir / "above" / "folder" / "program"
    made.parent.mkdir(parents=True)
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    return made


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_neighbour_can_change_what_is_reported(file: Path, name: str) -> None:
    """And nothing else: a real neighbour tries."""
    prepare, command = LAYOUTS[name]
    prepare(file)
    assert can_be_changed(file) == bool(command)


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_is_reported_with_its_remedy(file: Path, name: str) -> None:
    prepare, command = LAYOUTS[name]
    prepare(file)
    found = writable.weaknesses([str(file)])
    assert [weakness.command for weakness in found] == list(filter(None, [command]))
    for weakness in found:
        words = [*weakness.command.split(), weakness.path]
        assert run_as("root", words).returncode == 0
    assert writable.weaknesses([str(file)]) == []
    assert not can_be_changed(file)


def checked(program: Path) -> tuple[int, dict[str, str]]:
    """The exit status of --check of this program, and what it reports of the program itself."""
    words = ["/usr/bin/python3", str(program), "--check", "--json", "--network", "none"]
    result = run_as(OWNER, words)
    checks = json.loads(result.stdout)["checks"]
    return result.returncode, next(check for check in checks if check["name"] == "program")


def test_the_check_warns(world_dir: Path) -> None:
    """Of any file of a package; sessions start all the same."""
    shutil.copytree(PROJECT / "portwrap", world_dir / "portwrap")
    program = Path(shutil.copy(PROJECT / "batchspawner_portwrap.py", world_dir))
    status, found = checked(program)
    assert (status, found["status"]) == (0, "ok"), found
    assert found["fact"].startswith(f"{program}: ")
    weak = [world_dir / "portwrap" / "launch" / name for name in ("story.py", "ports.py")]
    for path in weak:
        path.chmod(0o666)
    world_dir.chmod(0o777)
    status, found = checked(program)
    assert (status, found["status"]) == (0, "warning"), found
    for path in (world_dir, *weak):
        assert f"{path}: everybody can write to it" in found["fact"]
    assert "chooses what its users' sessions run" in found["remedy"]
    assert run_as("root", ["sh", "-c", found["command"]]).returncode == 0
    assert checked(program)[1]["status"] == "ok"


def test_the_check_of_an_archive(pyz: Path) -> None:
    assert checked(pyz)[1] == {
        "name": "program",
        "status": "ok",
        "fact": f"{pyz}: only root and its owner can change it",
    }
    pyz.chmod(0o757)
    try:
        found = checked(pyz)[1]
    finally:
        pyz.chmod(0o755)
    assert (found["status"], found["command"]) == ("warning", f"chmod o-w {pyz}")
