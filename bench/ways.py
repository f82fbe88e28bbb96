"""The ways to lead one port of the host to a server: ours, and what a site could use instead.

A way is a name and the words that stand before the command. {host-port}, {guest-port}, {python},
{archive} and {rivals} are filled in, here and in the command, which also has {port} and {address}.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GUEST_PORT = 8888
BARE, CONTROL = "bare", "bare again"
ANY_FILTER = "any filter"
OURS = "portwrap"
"""Our own ways' names begin with it."""
BYTE_CODE = "portwrap from byte code"
LEAN = ("{python}", "-I", "-S")
OUR_WORDS = ("{python}", "{archive}", "-P", "{guest-port}")
SERVICE = {"JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:{host-port}/"}
FORWARDS = {
    "native": "batchspawner-portwrap, the server accepts by itself, outbound by the host's sockets",
    "relay": "batchspawner-portwrap, the keeper relays",
}
PORTS = ("{host-port}", "{guest-port}")


class Port(str):
    """A port of the host: its number, or the word that stands for it until it is known."""

    def __new__(cls, value: int | str) -> Port:
        return super().__new__(cls, str(value))


class Way:
    """How a command is started."""

    def __init__(
        self,
        name: str,
        prefix: Sequence[str],
        about: str,
        needs: Sequence[str] = (),
        waits: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.prefix = tuple(prefix)
        self.about = about
        self.needs = tuple(needs)
        self.environ = dict(environ or {})
        self.waits = waits  # sleeps; its forward is that of another way

    @property
    def is_ours(self) -> bool:
        """Whether it is this project."""
        return self.name.startswith(OURS)

    @property
    def is_bare(self) -> bool:
        """Whether the command itself listens on the host's port."""
        return not self.prefix

    @property
    def rank(self) -> int:
        """Its place among the columns."""
        kinds = (self.is_bare, self.is_ours, self.name == ANY_FILTER, True)
        return kinds.index(True)

    def words(
        self, command: Sequence[str], host_port: Port, values: Mapping[str, str]
    ) -> list[str]:
        """The whole command line."""
        filled = {
            **values,
            "host-port": host_port,
            "guest-port": str(GUEST_PORT),
            "port": host_port if self.is_bare else str(GUEST_PORT),
            # slirp4netns's forward arrives at an address of its own inside, not at 127.0.0.1
            "address": "127.0.0.1" if self.is_bare else "0.0.0.0",
        }
        return [fill_in(word, filled) for word in (*self.prefix, *command)]

    def variables(self, host_port: Port, other_port: Port) -> dict[str, str]:
        """Variables that the environment has besides; `other_port` is another one of the host."""
        filled = {"host-port": host_port, "other-port": other_port}
        return {name: fill_in(value, filled) for name, value in self.environ.items()}

    def missing(self) -> list[str]:
        """The programs it needs that are not here."""
        return [name for name in self.needs if not shutil.which(name)]


def fill_in(word: str, values: Mapping[str, str]) -> str:
    """The word with each {name} replaced by its value."""
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word


class Choice(NamedTuple):
    """The ways that are measured, and why the others are not."""

    ways: list[Way]
    left_out: dict[str, str]


def ours() -> list[Way]:
    """Our own rows: one for each way of forwarding."""
    return [
        Way(
            f"{OURS} {forward}",
            (*OUR_WORDS, "--forward", forward),
            f"{about} (--forward {forward})",
            environ=SERVICE,
        )
        for forward, about in FORWARDS.items()
    ]


def choose_published(only: Sequence[str]) -> Choice:
    """Our own rows once more, with the server on a published port, beside bare."""
    published = [
        Way(
            f"{OURS} {forward}",
            (
                *("{python}", "{archive}", "-P", str(GUEST_PORT + 1)),
                *("--publish", "{host-port}:{guest-port}", "--forward", forward),
            ),
            about,
            environ={"JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:{other-port}/"},
        )
        for forward, about in FORWARDS.items()
    ]
    return _available([*BARE_WAYS[:1], *published], only)


def choose_byte_code(only: Sequence[str]) -> Choice:
    """Our own row of an archive with byte code, for what depends on that: start and memory."""
    python, _, *options = OUR_WORDS
    way = Way(
        BYTE_CODE,
        (python, "{fast-archive}", *options, "--forward", "native"),
        f"as {OURS} native, from an archive with byte code (build.sh --for)",
        environ=SERVICE,
    )
    return _available([way], only)


RIVALS = (
    Way(
        "slirp4netns",
        ("{rivals}/slirp4netns.sh", *PORTS),
        "slirp4netns's own forwarding (add_hostfwd), started as soon as it is ready",
        ("slirp4netns", "nc", "unshare"),
    ),
    Way(
        "fixed wait",
        ("{rivals}/fixed-wait.sh", *PORTS),
        "bubblewrap, slirp4netns with add_hostfwd, and a wait of 2 s",
        ("slirp4netns", "nc", "bwrap"),
        waits=True,
    ),
    Way(
        "pasta",
        (
            *("pasta", "--config-net", "-t", "127.0.0.1/{host-port}:{guest-port}"),
            *("-u", "none", "-T", "none", "-U", "none", "--no-map-gw", "--"),
        ),
        "pasta -t",
        ("pasta",),
    ),
    Way(
        "socket-proxyd",
        ("{rivals}/socket-proxyd.sh", *PORTS),
        "systemd-socket-proxyd on a socket of the host, slirp4netns for outbound",
        ("slirp4netns", "systemd-socket-activate", "unshare", "nsenter"),
    ),
    Way(
        "rootlesskit",
        (
            *("rootlesskit", "--net=slirp4netns", "--mtu=65520", "--disable-host-loopback"),
            *("--port-driver=builtin", "--publish", "127.0.0.1:{host-port}:{guest-port}/tcp"),
        ),
        "RootlessKit with its builtin port driver, slirp4netns for outbound",
        ("rootlesskit", "slirp4netns", "newuidmap"),
    ),
)


def parse_extra(text: str) -> Way:
    """A way from the command line: NAME=WORD WORD …; our URL is there for one of our programs."""
    name, _, prefix = text.partition("=")
    return Way(name, prefix.split(), prefix, environ=SERVICE)


BARE_WAYS = (
    Way(BARE, (), "no sandbox: the limit"),
    Way(CONTROL, (), "the same once more: how far it is from bare is the noise of this run"),
)


def choose(extra: Sequence[str], only: Sequence[str]) -> Choice:
    """Every way that can run here; `only` names those that are wanted besides bare."""
    return _available(
        [
            *BARE_WAYS,
            *ours(),
            *RIVALS,
            *map(parse_extra, extra),
        ],
        only,
    )


def _available(every: Sequence[Way], only: Sequence[str]) -> Choice:
    choice = Choice([], {})
    for way in every:
        wanted = way.is_bare or not only or any(way.name.startswith(name) for name in only)
        if not wanted:
            continue
        if way.missing():
            choice.left_out[way.name] = "not installed: " + ", ".join(way.missing())
        else:
            choice.ways.append(way)
    return choice


# -- system calls ----------------------------------------------------------------------------------

SECCOMP_KNOWN = ("x86_64", "aarch64")


def choose_calls(machine: str) -> Choice:
    """What there is to compare system calls with: a filter that has nothing to do with us."""
    way = Way(
        ANY_FILTER,
        (*LEAN, "{programs}/any_filter.py"),
        "no sandbox, but a seccomp filter of one instruction, which allows every system call",
    )
    if machine in SECCOMP_KNOWN:
        return Choice([way], {})
    return Choice([], {ANY_FILTER: f"seccomp's number on {machine} is not known here"})


# -- outbound --------------------------------------------------------------------------------------


def choose_out(newer: Path, path: str, only: Sequence[str]) -> Choice:
    """Native outbound, each network driver, those in the folder `newer` too, and rivals."""
    ways = [
        *BARE_WAYS,
        *(way for way in ours() if way.name.endswith("native")),
        *(_ours_out(driver, path, "") for driver in DRIVERS),
    ]
    for driver in DRIVERS:
        if (newer / driver).exists():
            ways.append(_ours_out(driver, f"{newer}:{path}", " of Debian 13"))
    ways += [way for way in RIVALS if way.name in (*DRIVERS, "rootlesskit")]
    return _available(ways, only)


DRIVERS = ("slirp4netns", "pasta")


def _ours_out(driver: str, path: str, version: str) -> Way:
    return Way(
        f"{OURS} {driver}{version}",
        ("env", f"PATH={path}", *OUR_WORDS, "--outward", "helper", "--network", driver),
        f"batchspawner-portwrap, outbound by {driver}{version} (--outward helper)",
        () if version else (driver,),
        environ=SERVICE,
    )
