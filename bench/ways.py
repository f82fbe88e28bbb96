"""The ways to lead one port of the host to a server: ours, and what a site could use instead.

A way is a name and the words that stand before the command. {host-port}, {guest-port}, {python},
{archive} and {rivals} are filled in, here and in the command, which also has {port} and {address}.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GUEST_PORT = 8888
BARE = "bare"
OURS = ("{python}", "{archive}", "-P", "{guest-port}")
SERVICE = {"JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:{host-port}/"}
FORWARDS = {
    "native": "batchspawner-portwrap, the server accepts by itself",
    "relay": "batchspawner-portwrap, the keeper relays",
}
PORTS = ("{host-port}", "{guest-port}")


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
    def is_bare(self) -> bool:
        """Whether the command itself listens on the host's port."""
        return not self.prefix

    def words(self, command: Sequence[str], host_port: int, values: Mapping[str, str]) -> list[str]:
        """The whole command line."""
        filled = {
            **values,
            "host-port": str(host_port),
            "guest-port": str(GUEST_PORT),
            "port": str(host_port if self.is_bare else GUEST_PORT),
            # slirp4netns's forward arrives at an address of its own inside, not at 127.0.0.1
            "address": "127.0.0.1" if self.is_bare else "0.0.0.0",
        }
        return [_fill_in(word, filled) for word in (*self.prefix, *command)]

    def variables(self, host_port: int) -> dict[str, str]:
        """Variables that the environment has besides."""
        filled = {"host-port": str(host_port)}
        return {name: _fill_in(value, filled) for name, value in self.environ.items()}

    def missing(self) -> list[str]:
        """The programs it needs that are not here."""
        return [name for name in self.needs if not shutil.which(name)]


def _fill_in(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word


class Choice(NamedTuple):
    """The ways that are measured, and why the others are not."""

    ways: list[Way]
    left_out: dict[str, str]


def ours(values: Mapping[str, str]) -> list[Way]:
    """Our own rows: one for each way of forwarding that this build has."""
    help_text = subprocess.run(
        [values["python"], values["archive"], "--help"], stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    if "--forward" not in help_text:
        return [Way("portwrap", OURS, "batchspawner-portwrap", environ=SERVICE)]
    return [
        Way(
            f"portwrap, {forward}",
            (*OURS, "--forward", forward),
            f"{about} (--forward {forward})",
            environ=SERVICE,
        )
        for forward, about in FORWARDS.items()
    ]


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
        "systemd-socket-proxyd on a socket of the host, slirp4netns for the way out",
        ("slirp4netns", "systemd-socket-activate", "unshare", "nsenter"),
    ),
    Way(
        "rootlesskit",
        (
            *("rootlesskit", "--net=slirp4netns", "--mtu=65520", "--disable-host-loopback"),
            *("--port-driver=builtin", "--publish", "127.0.0.1:{host-port}:{guest-port}/tcp"),
        ),
        "RootlessKit with its builtin port driver, slirp4netns for the way out",
        ("rootlesskit", "slirp4netns", "newuidmap"),
    ),
)


def parse_extra(text: str) -> Way:
    """A way from the command line: NAME=WORD WORD …; our URL is there for one of our programs."""
    name, _, prefix = text.partition("=")
    return Way(name, prefix.split(), prefix, environ=SERVICE)


def choose(values: Mapping[str, str], extra: Sequence[str], only: Sequence[str]) -> Choice:
    """Every way that can run here; `only` names those that are wanted besides bare."""
    every = [Way(BARE, (), "no sandbox: the limit"), *ours(values)]
    every += [*RIVALS, *map(parse_extra, extra)]
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
