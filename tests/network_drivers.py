"""The network drivers that the tests try: slirp4netns and pasta of this system, and of the next
Debian."""

from __future__ import annotations

from typing import Any

from conftest import TEST_ROOT
from helpers import SYSTEM_PATH, cannot, needs
from sessions import Inside, Portwrap

NEWER = TEST_ROOT / "newer-helpers" / "usr" / "bin"
"""Where tests/setup.sh puts slirp4netns and pasta of the next Debian."""


class ChosenDriver:
    """A network driver: the value of --network, and the PATH on which that version is found."""

    def __init__(self, name: str) -> None:
        self.network, _, self.newer = name.partition("-")
        path = f"{NEWER}:{SYSTEM_PATH}" if self.newer else SYSTEM_PATH
        self.options: dict[str, Any] = {"network": self.network, "extra_env": {"PATH": path}}
        if self.newer and not (NEWER / self.network).exists():
            cannot(f"no {NEWER / self.network}; on Debian 12 tests/setup.sh gets it")
        elif self.network != "none":
            needs(self.network)

    @property
    def has_ipv6(self) -> bool:
        return self.network == "pasta"

    def inside(self, portwrap: Portwrap, **options: Any) -> Inside:
        return Inside(portwrap, **{**self.options, **options})


OLD_AND_NEW = ["slirp4netns", "pasta", "slirp4netns-newer", "pasta-newer"]
