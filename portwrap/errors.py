"""The one exception for expected failures, and what to do about each of them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = 2
"""Exit status: the command line or the environment makes no sense."""
OURS = 125
"""Exit status: the sandbox could not be made."""
CANNOT_RUN = 126
"""Exit status: the command was found but cannot be run."""
NOT_FOUND = 127
"""Exit status: the command was not found."""


class PortwrapError(Exception):
    """An expected failure: what was tried and the answer, what to do, and the exit status."""

    def __init__(self, message: str, hint: str = "", exit_code: int = OURS) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def lines(self, program: str) -> str:
        """The message and its hint as they stand on standard error."""
        hint = f"\n  {_one_line(self.hint)}" if self.hint else ""
        return f"{program}: {_one_line(self.message)}{hint}\n"


def _one_line(text: str) -> str:
    """The text with the line ends in it spelled out: names of files may hold any."""
    return "".join(repr(char)[1:-1] if char.splitlines() == [""] else char for char in text)


HELPER_HINTS: Sequence[tuple[str, str]] = (
    (
        "pasta: unrecognized option",
        "This pasta is too old: 2022_07_14 or newer is needed; slirp4netns does as well.",
    ),
    (
        "External interface not usable",
        "This pasta needs an interface with a route, and the node has none: take slirp4netns, or"
        " --network none for loopback only.",
    ),
    (
        "Failed to open tun socket",
        "'ls -l /dev/net/tun' must show crw-rw-rw- (as root: 'modprobe tun', 'chmod 0666"
        " /dev/net/tun'); if it does, see 'ausearch -c pasta' for SELinux.",
    ),
    (
        "/dev/net/tun: No such file",
        "The tun device is missing on this node: as root, 'modprobe tun' and see that it is there.",
    ),
    (
        '/dev/net/tun"): No such file',
        "The tun device is missing on this node: as root, 'modprobe tun' and see that it is there.",
    ),
    (
        "/dev/net/tun",
        "Every user must be able to open the tun device: as root, 'chmod 0666 /dev/net/tun';"
        " under Slurm's ConstrainDevices allow it in cgroup_allowed_devices_file.conf.",
    ),
    (
        "unrecognized option",
        "This slirp4netns is too old: 0.4.0 or newer is needed.",
    ),
    *(
        (
            signature,
            "AppArmor or SELinux forbids the helper to enter the sandbox: as root, see 'ausearch -c"
            " slirp4netns', 'ausearch -c pasta' or 'journalctl -k --grep DENIED'; --network chooses"
            " another helper.",
        )
        for signature in (
            "/ns/net: Permission denied",
            "/ns/user: Permission denied",
            "netns dir open: Permission denied",
        )
    ),
)
"""What the network helper says when it gives up -> what an administrator can do."""


def helper_hint(text: str) -> str:
    """What to do about a network helper that ended with these words."""
    for signature, hint in HELPER_HINTS:
        if signature in text:
            return hint
    return "Run the same helper by hand on this node to see what it lacks; the README tells how."
