"""What may be around this process, where it makes one cause likelier than another."""

from __future__ import annotations

from ..kernel import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILTER = "seccomp filter"
OWN_DEVICES = "own devices"


def has_own_devices() -> bool:
    """Whether /dev is another one than the node's, which is a devtmpfs: that of a container, or of
    a systemd unit with PrivateDevices (proc(5), mountinfo)."""
    kind = ""
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            for line in file:
                fields, _, rest = line.partition(" - ")
                if fields.split()[4] == "/dev":
                    kind = rest.split()[0]  # the last one covers those before
    except OSError:
        return False
    return kind != "devtmpfs"


SURROUNDINGS: Mapping[str, Callable[[], bool]] = {
    FILTER: seccomp.has_outer_filter,
    OWN_DEVICES: has_own_devices,
}
