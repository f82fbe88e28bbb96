"""Files of the node that we read for ourselves, against those whose files they are: the C library
for resolv.conf, ssh for its configuration. And whole sessions: what goes in comes out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
from hypothesis import Phase, example, given
from hypothesis import strategies as st
from launches import batchspawner_portwrap

from portwrap.launch import dns, services, ssh_config

from fuzzing import LONGER, examples
from helpers import OWNER, SYSTEM_PATH, as_user, end, identity, needs
from sessions import Portwrap, unused_port

pytestmark = [pytest.mark.namespaces, pytest.mark.fuzz, pytest.mark.timeout(60 * LONGER)]

# ---- resolv.conf -----------------------------------------------------------------------------


class Library:
    """The C library of another process, where /etc/resolv.conf is a file of ours."""

    def __init__(self, portwrap: Portwrap, folder: Path) -> None:
        file = folder / "resolv.conf"
        file.touch()
        script = f'mount --bind {file} /etc/resolv.conf; exec "$@"'
        words = ["unshare", "-m", "sh", "-ec", script, "sh", *portwrap.program("c_library.py")]
        self.process = as_user("root", words, stdin=subprocess.PIPE, stderr=None)

    def name_servers(self, content: bytes) -> list[str]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{content.hex()}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()


@pytest.fixture
def library(portwrap: Portwrap, world_dir: Path) -> Iterator[Library]:
    made = Library(portwrap, world_dir)
    try:
        yield made
    finally:
        end(made.process)


KEYWORDS = [b"nameserver ", b"nameserver\t", b" nameserver ", b"nameserver", b"Nameserver "]
KEYWORDS += [b"nameserver  \t ", b"#nameserver ", b"search ", b"options ", b"nameservers "]
ADDRESSES = [b"127.0.0.1", b"127.0.0.53", b"::1", b"198.18.0.1", b"127.1", b"0x7f.1", b"0177.0.0.1"]
ADDRESSES += [b"0.0.0.0", b"::", b"::ffff:127.0.0.1", b"1.2.3.400", b"2130706433", b"::1%lo", b""]
ADDRESSES += [b"fe80::1%lo", b"[::1]", b"localhost", b"1.2.3.4.5", b"127.0.0.1:53", b"::1::"]
TAILS = [b"", b" ", b"\r", b" # a comment", b"#1", b";", b"\t;x", b" 198.18.0.9", b"\x0b", b"\0"]
LINES = st.tuples(*map(st.sampled_from, (KEYWORDS, ADDRESSES, TAILS))).map(b"".join)
RESOLV_CONFS = st.lists(LINES | st.binary(max_size=12), max_size=6).map(b"\n".join)


def test_the_name_servers_are_those_of_the_c_library(library: Library, world_dir: Path) -> None:
    path = world_dir / "copy"

    @examples(250)
    @given(RESOLV_CONFS, st.sampled_from([b"", b"\n"]))
    def compare(content: bytes, last: bytes) -> None:
        path.write_bytes(content + last)
        known = [services.asked_at(address) for address in library.name_servers(content + last)]
        # without any, it asks this machine
        assert (dns.name_servers(str(path)) or ["127.0.0.1"]) == known

    compare()


# ---- ssh's configuration ---------------------------------------------------------------------

FILES = ["a.conf", "b.conf", "sub/c.conf", "sub/d.conf", "with space.conf", ".hidden.conf"]
PATTERNS = [
    *FILES,
    "*.conf",
    "?.conf",
    "[ab].conf",
    "[!a]*f",
    "[a-c]*.c*",
    "*b*[^x]",
    "s?b/*",
    "sub/*",
    "*",
    "*/c.conf",
    "none.conf",
]
NAMED = st.sampled_from(PATTERNS).map("{{here}}/{}".format)
ARGUMENTS = st.one_of(
    NAMED.filter(lambda name: " " not in name),
    NAMED.map('"{}"'.format),
    NAMED.map("'{}'".format),
    NAMED.map(lambda name: name.replace(" ", "\\ ")),
)
INCLUDES = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "", " ", "\t", "\x0c", "# ", "\ufeff"]),
    st.sampled_from(["Include", "include", "INCLUDE", "IncludeX", "XInclude", '"Include"']),
    st.sampled_from([" ", " ", "\t", "=", " = ", "  ", "", "\x0b"]),
    st.lists(ARGUMENTS, min_size=1, max_size=3).map(" ".join),
    st.sampled_from(["", "", " ", "\r", " # not {here}/b.conf", "#x", ' "', "\t"]),
)
CONTENTS = st.lists(
    INCLUDES | st.sampled_from(["Host nowhere", "Host *", "Match all", "", "Port 22", "nonsense"]),
    max_size=3,
).map("\n".join)


class Tree:
    """A configuration of ssh, and files that it may include."""

    def __init__(self, folder: Path, contents: list[str]) -> None:
        self.main = folder / "config"
        self.files = [self.main, *(folder / name for name in FILES)]
        for path, content in zip(self.files, contents):
            path.parent.mkdir(exist_ok=True)
            path.write_text(content.replace("{here}", str(folder)) + "\n")

    def read_by_ssh(self) -> tuple[bool, set[str]]:
        """Whether ssh takes it all, and the files that it reads."""
        words = ["ssh", "-G", "-v", "-F", str(self.main), "localhost"]
        result = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        mark = "Reading configuration data "
        lines = [line.partition(mark) for line in result.stderr.splitlines() if mark in line]
        read = {os.path.realpath(path) for _, _, path in lines}
        return result.returncode == 0, read - {os.path.realpath(self.main)}

    def found_by_us(self) -> set[str]:
        found = ssh_config.Search("/no/home").included(str(self.main), "/no/such")
        there = {os.path.realpath(path) for path in found if os.path.isfile(path)}
        return there - {os.path.realpath(self.main)}


def test_the_included_files_are_those_that_ssh_reads(world_dir: Path) -> None:
    needs("ssh")

    @examples(60, phases=[Phase.explicit, Phase.generate, Phase.shrink])
    @given(st.lists(CONTENTS, min_size=len(FILES) + 1, max_size=len(FILES) + 1))
    @example(["Include {here}/*.conf"] * (len(FILES) + 1))  # each includes each
    def compare(contents: list[str]) -> None:
        tree = Tree(world_dir, contents)
        accepted, read = tree.read_by_ssh()
        found = tree.found_by_us()
        assert read <= found  # where it gives up in the middle, it has read less
        assert not accepted or read == found

    compare()


# ---- whole sessions --------------------------------------------------------------------------

BYTES = st.binary(max_size=10).filter(lambda text: b"\0" not in text)
WORDS = st.lists(
    BYTES
    | st.sampled_from([b"--", b"-P", b"--port", b"--port=5000", b"-h", b"{port}", "ü".encode()]),
    max_size=5,
)
NAMES = st.binary(min_size=1, max_size=8).filter(lambda name: not set(b"=\0") & set(name))
SHOW = b"cat /proc/$$/cmdline /proc/$$/environ"


def test_the_words_and_the_environment_come_out_as_they_went_in(portwrap: Portwrap) -> None:
    """Any bytes; only what says the port is another word inside."""
    program: list[Any] = [portwrap.python, batchspawner_portwrap(portwrap), "-q", "--network=none"]

    @examples(20, phases=[Phase.generate])
    @given(WORDS, st.dictionaries(NAMES, BYTES, max_size=4), st.booleans())
    def compare(words: list[bytes], environ: dict[bytes, bytes], by_word: bool) -> None:
        port = unused_port()
        passed = {**environ, b"PATH": SYSTEM_PATH.encode()}
        url = b"JUPYTERHUB_SERVICE_URL"
        if not by_word:
            passed[url] = b"http://127.0.0.1:%d/u/" % port
        command = [b"sh", b"-c", SHOW, *words]
        last = [b"--port=%d" % port] if by_word else []
        result: Any = subprocess.run(
            [*program, *command, *last],
            env=passed,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            **identity(OWNER),
        )
        assert (result.returncode, result.stderr) == (0, b"")
        shown = result.stdout.split(b"\0")[:-1]
        inside = [*command, *([b"--port=8888"] if by_word else [])]
        if not by_word:
            passed[url] = b"http://127.0.0.1:8888/u/"
        assert shown[: len(inside)] == inside
        settings = [name + b"=" + value for name, value in passed.items()]
        assert sorted(shown[len(inside) :]) == sorted(settings)

    compare()
