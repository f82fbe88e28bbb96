"""What may be around this process, where it makes one cause likelier than another."""

from __future__ import annotations

from ..kernel.seccomp_filter import has_outer_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILTER = "seccomp filter"
OWN_DEVICES = "own devices"
APPARMOR = "AppArmor profile"


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


def is_confined_by_apparmor() -> bool:
    """Whether a profile of AppArmor's, which is enforced, is that of this process (proc(5))."""
    try:
        with open("/proc/self/attr/apparmor/current", errors="surrogateescape") as file:
            return file.read().rstrip("\0\n").endswith(" (enforce)")
    except OSError:
        return False


SURROUNDINGS: Mapping[str, Callable[[], bool]] = {
    FILTER: has_outer_filter,
    OWN_DEVICES: has_own_devices,
    APPARMOR: is_confined_by_apparmor,
}
