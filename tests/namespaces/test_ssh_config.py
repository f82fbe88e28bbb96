"""ssh and git from inside, against a real ssh server, where root has configured the client."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
from launches import run_in_sandbox
from networks import Host
from ssh_site import Site

from helpers import (
    OWNER,
    as_user,
    cannot,
    end,
    environment,
    identity,
    needs,
    run_as,
    wait_until,
)
from sessions import Inside, Portwrap, Session

pytestmark = pytest.mark.namespaces


@pytest.fixture
def site(host: Host, world_dir: Path) -> Iterator[Site]:
    made = Site(host, world_dir)
    try:
        yield made
    finally:
        made.close()


INCLUDE = "Include /etc/ssh/ssh_config.d/*.conf\n"
SITES: dict[str, dict[str, str]] = {
    "as Debian has it": {"etc/ssh_config": INCLUDE, "etc/ssh_config.d/10-site.conf": "SETTINGS"},
    "as RHEL has it": {
        "etc/ssh_config": INCLUDE,
        "etc/ssh_config.d/10-site.conf": "SETTINGS",
        "etc/ssh_config.d/50-redhat.conf": "Match final all\n\tInclude EXTRA/back/openssh.config\n",
        "extra/policy/openssh.txt": "Ciphers aes256-ctr\n",
    },
    "nested, with relative names": {
        "etc/ssh_config": "# a comment\n  include  = ssh_config.d/*.conf ssh_config.d/none-such\n",
        "etc/ssh_config.d/10-site.conf": 'Include "deeper/a file" deeper/[xy].conf\n',
        "etc/deeper/a file": "Host other\n  User nobody\n",
        "etc/deeper/x.conf": "INCLUDE /etc/ssh/site # not part of it\n",
        "etc/site": "SETTINGS",
    },
    "right in /etc/ssh": {
        "etc/ssh_config": "Include /etc/ssh/site.conf\n",
        "etc/site.conf": "SETTINGS",
    },
}


@pytest.fixture(params=SITES)
def configured(request: pytest.FixtureRequest, site: Site) -> Site:
    files = SITES[request.param]
    site.write(files)
    if "extra/policy/openssh.txt" in files:  # RHEL's is a symlink in a directory of symlinks
        (site.extra / "back").mkdir()
        (site.extra / "back" / "openssh.config").symlink_to("../policy/openssh.txt")
    return site


def test_ssh(portwrap: Portwrap, configured: Site) -> None:
    stdout, stderr, status = configured.run(portwrap, ["ssh", "site", "echo", "there"])
    assert (stdout, stderr, status) == ("there\n", "", 0)


def test_without_the_copies_ssh_refuses(configured: Site) -> None:
    """The control: the same files, in a user namespace made by another program."""
    words = [*configured.before(), "unshare", "--user", "--map-current-user", "ssh", "-G", "site"]
    result = run_as("root", words, env=environment(OWNER))
    assert result.returncode != 0
    assert "Bad owner or permissions" in result.stderr


def test_git(portwrap: Portwrap, site: Site) -> None:
    site.write(SITES["as Debian has it"])
    original, copy = site.mine / "original", site.mine / "copy"
    commit = ["-c", "user.name=n", "-c", "user.email=e", "commit", "--allow-empty", "-qm", "first"]
    assert run_as(OWNER, ["git", "init", "-q", original]).returncode == 0
    assert run_as(OWNER, ["git", "-C", original, *commit]).returncode == 0
    words = ["git", "clone", "-q", f"ssh://site{original}", str(copy)]
    assert site.run(portwrap, words) == ("", "", 0)
    assert run_as(OWNER, ["git", "-C", copy, "log", "--format=%s"]).stdout == "first\n"


def fingerprint(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every file below a folder: its identity, its owner, its time and its content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        status = path.stat()
        found[str(path)] = (status.st_ino, status.st_uid, status.st_mtime_ns, path.read_bytes())
    return found


def test_all_else_in_the_directory_stays_as_it_is(portwrap: Portwrap, site: Site) -> None:
    site.write(SITES["right in /etc/ssh"])
    site.write({"etc/ssh_known_hosts": "known", "etc/secret": "secret", "etc/sub/file": "deep"})
    (site.etc_ssh / "secret").chmod(0o600)
    (site.etc_ssh / "link").symlink_to("sub/file")
    before = fingerprint(site.etc_ssh)
    names = sorted(os.listdir(site.etc_ssh))
    script = "cd /etc/ssh; ls -m; ls -l site.conf; cat ssh_known_hosts sub/file link; cat secret"
    stdout, stderr, _ = site.run(portwrap, ["sh", "-c", script])
    listing, copy, contents = stdout.split("\n")
    assert listing == ", ".join(names)
    assert copy.startswith(f"-rw-r--r-- 1 {OWNER} {OWNER} ")
    assert contents == "knowndeepdeep"
    assert stderr == "cat: secret: Permission denied\n"
    assert fingerprint(site.etc_ssh) == before


def test_the_copies_cannot_be_written(portwrap: Portwrap, site: Site) -> None:
    """What the user changed there would be gone with the session."""
    site.write(SITES["as Debian has it"])
    script = "echo x >>/etc/ssh/ssh_config.d/10-site.conf"
    _, stderr, status = site.run(portwrap, ["sh", "-c", script])
    assert status != 0 and "Read-only file system" in stderr


def mount_namespace(site: Site, portwrap: Portwrap, **options: Any) -> bool:
    """Whether a session on this node gets a mount namespace of its own."""
    show = "readlink /proc/self/ns/mnt"
    before = site.before(f"{show} >{site.folder}/outside")
    stdout, stderr, status = site.run(portwrap, show.split(), before=before, **options)
    assert (stderr, status) == ("", 0)
    return stdout != (site.folder / "outside").read_text()


NO_NEED: dict[str, dict[str, str]] = {
    "no file": {},
    "nothing included": {"etc/ssh_config": "Host site\n  Port 1\n"},
    "nothing there to include": {"etc/ssh_config": INCLUDE},
    "a comment": {"etc/ssh_config": "# " + INCLUDE, "etc/ssh_config.d/10-site.conf": "SETTINGS"},
    "another suffix": {"etc/ssh_config": INCLUDE, "etc/ssh_config.d/10-site.old": "SETTINGS"},
    "a loop of nothing": {"etc/ssh_config": "Include /no/such/*.conf ~/none ssh_config.e/*\n"},
}


@pytest.mark.parametrize("case", NO_NEED)
def test_no_mount_namespace_without_need(portwrap: Portwrap, site: Site, case: str) -> None:
    site.write(NO_NEED[case])
    assert not mount_namespace(site, portwrap)


def test_with_need_there_is_one(portwrap: Portwrap, site: Site) -> None:
    """The control of the one above and below."""
    site.write(SITES["as Debian has it"])
    assert mount_namespace(site, portwrap)


def test_no_mount_namespace_without_an_ssh_client(portwrap: Portwrap, site: Site) -> None:
    site.write(SITES["as Debian has it"])
    command = "mount --bind /dev/null $(command -v ssh) && readlink /proc/self/ns/mnt >&2"
    stdout, stderr, status = site.run(
        portwrap, ["readlink", "/proc/self/ns/mnt"], before=site.before(command)
    )
    assert (stdout, status) == (stderr, 0)


def test_no_mount_namespace_where_the_files_are_the_users(portwrap: Portwrap, site: Site) -> None:
    site.write(SITES["as Debian has it"])
    ids = identity(OWNER)
    os.chown(site.etc_ssh / "ssh_config.d" / "10-site.conf", ids["user"], ids["group"])
    assert not mount_namespace(site, portwrap)


def test_root_needs_none(portwrap: Portwrap, site: Site) -> None:
    site.write(SITES["as Debian has it"])
    mounts = f"mount --make-rprivate / && mount --bind {site.etc_ssh} /etc/ssh"
    script = f'{mounts} && readlink /proc/self/ns/mnt >&2 && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    stdout, stderr, status = site.run(portwrap, ["readlink", "/proc/self/ns/mnt"], before=before)
    assert (stdout, status) == (stderr, 0)


def test_a_file_that_others_may_write_is_refused_as_ever(portwrap: Portwrap, site: Site) -> None:
    site.write(SITES["as Debian has it"])
    (site.etc_ssh / "ssh_config.d" / "10-site.conf").chmod(0o666)
    _, stderr, status = site.run(portwrap, ["ssh", "-G", "site"])
    assert status != 0 and "Bad owner or permissions" in stderr


def test_copies_that_cannot_be_made(portwrap: Portwrap) -> None:
    """Then the session starts all the same, and says what will not work: here for want of rights
    over the user namespace."""
    text = (
        f"import sys; sys.path.insert(0, {str(portwrap.folder)!r})\n"
        "from portwrap.launch import sandbox, story\n"
        "made = sandbox.Sandbox(host_port=1)\n"
        "print(story._cover_ssh_config(made, {'/etc/ssh': {'site.conf'}}))"
    )
    result = run_as(OWNER, [portwrap.python, "-c", text])
    assert (result.returncode, result.stdout) == (0, "\n")
    said = "portwrap: ssh rejects root-owned files in /etc/ssh: unshare: Operation not permitted\n"
    assert result.stderr == said


def test_what_the_host_mounts_later_appears(
    portwrap: Portwrap, site: Site, world_dir: Path
) -> None:
    """As autofs does with home directories and projects."""
    site.write(SITES["as Debian has it"])
    place = world_dir / "projects"
    place.mkdir()
    holder = as_user(
        "root",
        [
            "unshare",
            "--mount",
            "--propagation",
            "shared",
            "sh",
            "-c",
            f"mount --bind {site.etc_ssh} /etc/ssh && echo up && exec sleep 600",
        ],
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "up\n"
        there = ["nsenter", "-t", str(holder.pid), "-m"]
        ids = identity(OWNER)
        back = ["setpriv", f"--reuid={ids['user']}", f"--regid={ids['group']}", "--init-groups"]
        with Inside(portwrap, account="root", before=[*there, *back]) as session:
            session.wait_until_up()
            mounts = Path(f"/proc/{session.pid}/mountinfo")
            assert "/etc/ssh/ssh_config.d" in mounts.read_text()
            subprocess.run([*there, "mount", "-t", "tmpfs", "later", place], check=True)
            wait_until(lambda: str(place) in mounts.read_text(), what="the mount inside")
            subprocess.run([*there, "umount", place], check=True)
            wait_until(lambda: str(place) not in mounts.read_text(), what="its end inside")
    finally:
        end(holder)


@pytest.mark.parametrize("covered", [True, False], ids=["covered", "not covered"])
def test_an_automounter_of_the_host(
    portwrap: Portwrap, site: Site, world_dir: Path, covered: bool
) -> None:
    """What is first looked at inside is mounted by the host's automount(8), and seen inside."""
    needs("automount")
    if "autofs" not in Path("/proc/filesystems").read_text():
        cannot("this kernel has no autofs")
    site.write(SITES["as Debian has it"] if covered else {})
    for name in ("data", "projects"):
        (world_dir / name).mkdir()
    (world_dir / "data" / "file").write_text("of the project")
    (world_dir / "map").write_text(f"one -fstype=bind :{world_dir}/data\n")
    (world_dir / "master").write_text(f"{world_dir}/projects file:{world_dir}/map\n")
    options = f"--foreground --dont-check-daemon --pid-file {world_dir}/pid"
    daemon = f"automount {options} {world_dir}/master"
    mounts = f"mount -t tmpfs run /run && mount --bind {site.etc_ssh} /etc/ssh"
    shared = ["unshare", "--mount", "--propagation", "shared"]
    host = as_user("root", [*shared, "sh", "-c", f"{mounts} && exec {daemon}"])
    try:
        mounted = Path(f"/proc/{host.pid}/mountinfo")
        wait_until(lambda: " - autofs " in mounted.read_text(), what="the automounter")
        there = ["nsenter", "-t", str(host.pid), "-m"]
        ids = identity(OWNER)
        back = ["setpriv", f"--reuid={ids['user']}", f"--regid={ids['group']}", "--init-groups"]
        look = f"readlink /proc/self/ns/mnt; cat {world_dir}/projects/one/file"
        words = ["sh", "-c", look]
        with Session(portwrap, words, account="root", before=[*there, *back]) as session:
            stdout, stderr = session.process.communicate(timeout=30)
        namespace, content = stdout.splitlines()
        assert (content, stderr) == ("of the project", "")
        assert (namespace != os.readlink(f"/proc/{host.pid}/ns/mnt")) == covered
        assert f"{world_dir}/projects/one " in mounted.read_text()
    finally:
        host.terminate()
        host.wait(20)
        end(host)


# ---- configurations that are none ------------------------------------------------------------

MEMORY = 1 << 30
"""Bytes of address space of a session here: reading without a limit ends it, not this machine."""


def make_plain(config: Path) -> None:
    config.write_text("Include /etc/ssh/ssh_config.d/*.conf\n")


def make_fifo(config: Path) -> None:
    os.mkfifo(config)
    config.chmod(0o644)


def make_included_fifo(config: Path) -> None:
    make_fifo(config.parent / "fifo")
    config.write_text("Include fifo f?fo\n")


def make_sparse(config: Path) -> None:
    with config.open("wb") as file:
        file.truncate(MEMORY)


def make_long_lines(config: Path) -> None:
    names = "abcd"
    config.write_text(f"Include {' '.join(names)}\n")
    for name in names:
        config.with_name(name).write_text("Include " + "x " * ((1 << 19) - 8))


def make_many_lines(config: Path) -> None:
    config.write_text("".join(f"Include {number}*\n" for number in range(1 << 17)))


ODD_CONFIGURATIONS = {
    "a NUL": lambda config: config.write_bytes(b"Include a\0b\nInclude \0\n\0Include c\n"),
    "no text": lambda config: config.write_bytes(b"Include \xff\xfe\xed\xa0\x80*\xc3 /\xff/*\n"),
    "a FIFO": make_fifo,
    "a FIFO, included": make_included_fifo,
    "/dev/zero": lambda config: config.symlink_to("/dev/zero"),
    "/dev/zero, included": lambda config: config.write_text("Include /dev/zero /dev/zer[o]\n"),
    "a file of the kernel's": lambda config: config.symlink_to("/proc/self/maps"),
    "a directory": lambda config: config.mkdir(),
    "a loop of links": lambda config: config.symlink_to(config.name),
    "everything": lambda config: config.write_text("Include /*/*/*\nInclude /*/*/*/*/*/*\n"),
    "the kernel's own": lambda config: config.write_text("Include /proc/cmdline /sys/*/* /dev/*\n"),
    "a long pattern": lambda config: config.write_text(f"Include /{'*/' * 4000}x {'*a' * 4000}\n"),
    "a huge file": make_sparse,
    "long lines": make_long_lines,
    "a great many lines": make_many_lines,
}


@pytest.fixture
def home(world_dir: Path) -> Path:
    """A home of the owner's, with nothing in it but an empty .ssh."""
    made = world_dir / "home"
    made.joinpath(".ssh").mkdir(parents=True)
    return made


@pytest.mark.parametrize("name", ODD_CONFIGURATIONS)
def test_a_session_starts_whatever_the_users_configuration_is(
    portwrap: Portwrap, home: Path, name: str
) -> None:
    ODD_CONFIGURATIONS[name](home / ".ssh" / "config")
    result = run_in_sandbox(
        portwrap,
        *["sh", "-c", "echo there; test -r /proc/cmdline"],
        before=["prlimit", f"--as={MEMORY}", "--"],
        extra_env={"HOME": str(home), "PORTWRAP_NETWORK": "none"},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "there\n", ""), result


def test_who_waits_at_a_fifo_goes_on_waiting(portwrap: Portwrap, home: Path) -> None:
    """To open a device or a FIFO does something to it; the control reads what is written there."""
    config = home / ".ssh" / "config"
    make_fifo(config)
    config.chmod(0o666)
    with as_user(OWNER, ["sh", "-c", f"echo waited >{config}"]) as writer:
        try:
            place = Path(f"/proc/{writer.pid}/wchan")
            wait_until(lambda: "wait_for_partner" in place.read_text(), what="a writer that waits")
            extra = {"HOME": str(home), "PORTWRAP_NETWORK": "none"}
            assert run_in_sandbox(portwrap, "true", extra_env=extra).returncode == 0
            assert writer.poll() is None
            assert run_as(OWNER, ["cat", config]).stdout == "waited\n"
            assert writer.wait(timeout=10) == 0
        finally:
            end(writer)


def test_a_file_that_turns_into_a_fifo_is_not_waited_for(portwrap: Portwrap, home: Path) -> None:
    """Between the look at what it is and its opening."""
    config = home / ".ssh" / "config"
    make_fifo(config)
    text = (
        f"import sys; sys.path.insert(0, {str(portwrap.folder)!r})\n"
        f"from portwrap.launch import ssh_config; ssh_config.open_regular({str(config)!r})"
    )
    result = run_as(OWNER, [portwrap.python, "-c", text])
    assert "OSError: [Errno 22]" in result.stderr


def test_an_odd_configuration_keeps_whoever_reads_it_simply(home: Path) -> None:
    """The control: each kind of file is what it is meant to be."""
    config = home / ".ssh" / "config"
    make_fifo(config)
    with pytest.raises(subprocess.TimeoutExpired):
        run_as(OWNER, ["cat", config], seconds=0.5)
    config.unlink()
    make_sparse(config)
    read = ["prlimit", f"--as={MEMORY}", "python3", "-c", f"open({str(config)!r}, 'rb').read()"]
    assert "MemoryError" in run_as(OWNER, read).stderr


def test_what_root_includes_may_be_no_file(portwrap: Portwrap, site: Site) -> None:
    """Beside a file that ssh takes there are a FIFO and a directory that it would include."""
    site.write(SITES["as Debian has it"])
    make_fifo(site.etc_ssh / "ssh_config.d" / "20-fifo.conf")
    (site.etc_ssh / "ssh_config.d" / "30-folder.conf").mkdir()
    show = ["stat", "-c", "%U %F", *(f"/etc/ssh/ssh_config.d/{n}" for n in ("10*", "20*", "30*"))]
    stdout, stderr, status = site.run(
        portwrap, ["sh", "-c", " ".join(show).replace("%U %F", "%U_%F")]
    )
    assert (stdout.split("\n")[:-1], stderr, status) == (
        [f"{OWNER}_regular file", "nobody_fifo", "nobody_directory"],
        "",
        0,
    )
