"""Every refusal seen in the field: its signature, what it means, and what mends it.

The start (`errors.hint_for`) and `--check` both ask here, only once something has failed, and the
README's troubleshooting is made of the same rows (docs/generate.py).
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SYSCTL = "echo {0} >>/etc/sysctl.d/90-portwrap.conf; sysctl -p /etc/sysctl.d/90-portwrap.conf"
SYSTEMS = {
    "debian": "Debian, Ubuntu",
    "rhel": "RHEL 8 and 9",
    "rhel10": "RHEL 10",
}
"""The systems that have commands of their own; "" stands for all others."""


class Refusal:
    """One row: `pattern` finds it in a message, `shows` is that message for people, `cause` and
    `cure` are sentences, `commands` are for root, by system.

    `setting` is a file below /proc/sys and the content that it must have for this row to be the
    reason. `recorded` rows were taken from reports: no test can make them happen for real.
    """

    def __init__(
        self,
        pattern: str,
        shows: str,
        cause: str,
        cure: str = "",
        commands: Mapping[str, str] | str = "",
        setting: tuple[str, str] | None = None,
        recorded: bool = False,
    ) -> None:
        self.pattern = pattern
        self.shows = shows
        self.cause = cause
        self.cure = cure
        self.commands = {"": commands} if isinstance(commands, str) else commands
        self.setting = setting
        self.recorded = recorded

    def command(self, system: str) -> str:
        """What root is to run on this system; "" where no command mends it."""
        return self.commands.get(system) or self.commands.get("", "")

    def hint(self, system: str) -> str:
        """Cause, cure and command in one line."""
        command = self.command(system)
        parts = [self.cause, self.cure, f"As root: {command}" if command else ""]
        return " ".join(part for part in parts if part)


INSTALL = {
    "debian": "apt-get install slirp4netns",
    "rhel": "dnf install slirp4netns",
    "rhel10": "dnf install passt",
}

REFUSALS: Sequence[Refusal] = (
    # ---- namespaces ----------------------------------------------------------------------------
    Refusal(
        r"unshare.*: (No space|Invalid arg|Operation not)",
        "unshare(…): No space left on device",
        "User namespaces are switched off (user.max_user_namespaces is 0).",
        "",
        SYSCTL.format("user.max_user_namespaces=28633"),
        ("user/max_user_namespaces", "0"),
    ),
    Refusal(
        r"unshare.*: No space",
        "unshare(…): No space left on device",
        "Network namespaces are switched off (user.max_net_namespaces is 0).",
        "",
        SYSCTL.format("user.max_net_namespaces=28633"),
        ("user/max_net_namespaces", "0"),
    ),
    Refusal(
        r"unshare.*: No space",
        "unshare(…): No space left on device",
        "The limit of namespaces is reached (user.max_user_namespaces, user.max_net_namespaces).",
        "'lsns' shows who has them; raise the limit, or look for a program that leaks them.",
        SYSCTL.format("user.max_user_namespaces=65536"),
    ),
    Refusal(
        r"unshare.*: Operation not",
        "unshare(…): Operation not permitted",
        "User namespaces are for root only (kernel.unprivileged_userns_clone is 0, older Debian).",
        "",
        SYSCTL.format("kernel.unprivileged_userns_clone=1"),
        ("kernel/unprivileged_userns_clone", "0"),
        recorded=True,
    ),
    Refusal(
        r"(unshare|setting up the user namespace).*: (Operation not|Permission den)",
        "setting up the user namespace (/proc/self/uid_map): Operation not permitted",
        "AppArmor restricts user namespaces (Ubuntu 24.04 and later).",
        "A profile allows them to this program alone.",
        "batchspawner-portwrap.pyz --check --apparmor >/etc/apparmor.d/batchspawner-portwrap"
        " && apparmor_parser -r /etc/apparmor.d/batchspawner-portwrap",
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        recorded=True,
    ),
    Refusal(
        r"(unshare|setting up the user namespace).*: (Operation not|Permission den)",
        "unshare(…): Operation not permitted",
        "Something outside forbids user namespaces: a container, a chroot, a seccomp filter or a"
        " security module around the job.",
        "'unshare -Urn true' must work in the same place, inside a job.",
    ),
    Refusal(
        r"unshare.*threads",
        "unshare(…): Invalid argument, with … threads",
        "This interpreter starts a thread by itself, and a process with threads cannot enter a"
        " user namespace.",
        "Look at LD_PRELOAD and at the .pth files of this Python.",
    ),
    Refusal(
        r"(unshare|setting up the user namespace).*: (Invalid|Function not)",
        "unshare(…): Invalid argument",
        "This kernel has no user or network namespaces: Linux 4.18 or newer with both is needed.",
        "RHEL 7 needs a start of the kernel with user_namespace.enable=1 and"
        " namespace.unpriv_enable=1.",
        recorded=True,
    ),
    # ---- the network helper --------------------------------------------------------------------
    Refusal(
        r"pasta does not run for root",
        "pasta does not run for root",
        "It gives up root's rights, and with them those over the sandbox.",
        "Root needs slirp4netns, or --network none for loopback only.",
        {"debian": "apt-get install slirp4netns", "rhel": "dnf install slirp4netns"},
    ),
    Refusal(
        r"is not on PATH, and without it",
        "slirp4netns is not on PATH",
        "Install it on every node; batch jobs may have a shorter PATH than your shell.",
        "",
        INSTALL,
    ),
    Refusal(
        r"/dev/net/tun.{0,3}: No such file",
        "/dev/net/tun: No such file or directory",
        "The tun device is missing on this node.",
        "",
        "modprobe tun; [ -c /dev/net/tun ] || { mkdir -p /dev/net; mknod /dev/net/tun c 10 200; };"
        " chmod 0666 /dev/net/tun",
    ),
    Refusal(
        r"/dev/net/tun.{0,3}: (Permission|Operation)",
        "/dev/net/tun: Permission denied",
        "Every user must be able to open the tun device.",
        "Under Slurm's ConstrainDevices allow it in cgroup_allowed_devices_file.conf.",
        "chmod 0666 /dev/net/tun",
    ),
    Refusal(
        r"/dev/net/tun|TUNSETIFF|tun socket",
        "/dev/net/tun: …",
        "The tun device does not work: 'ls -l /dev/net/tun' must show crw-rw-rw- and 10, 200.",
        "If it does, 'ausearch -c pasta' shows whether SELinux forbids it.",
        "rm /dev/net/tun; mknod /dev/net/tun c 10 200; chmod 0666 /dev/net/tun",
    ),
    Refusal(
        r"unrecognized option",
        "… unrecognized option",
        "This network helper is too old: slirp4netns 0.4.0 or pasta 2022_07_14 is needed.",
        recorded=True,
    ),
    Refusal(
        r"netns dir open: Permission denied|pasta.*/ns/.*: Permission denied",
        "pasta …: netns dir open: Permission denied",
        "SELinux or AppArmor forbids pasta to enter the sandbox: see 'ausearch -c pasta'.",
        "PORTWRAP_NETWORK=slirp4netns is the way around it.",
        {"rhel": "dnf upgrade passt-selinux", "rhel10": "dnf upgrade passt-selinux"},
        recorded=True,
    ),
    Refusal(
        r"/ns/(net|user).*Permission denied",
        "/proc/…/ns/net: Permission denied",
        "AppArmor or SELinux forbids the helper to enter the sandbox.",
        "See 'ausearch -c slirp4netns' or 'journalctl -k --grep DENIED' as root;"
        " PORTWRAP_NETWORK=pasta is the way around it.",
        recorded=True,
    ),
    Refusal(
        r"External interface not usable",
        "pasta …: External interface not usable",
        "This pasta needs an interface with a route, and the node has none.",
        "Take slirp4netns, or --network none for loopback only.",
    ),
    Refusal(
        r"before it was ready|was not ready in",
        "slirp4netns ended before it was ready",
        "Run the same helper by hand on this node to see what it lacks: slirp4netns --configure on"
        " a process of 'unshare -Urn sleep 60'.",
    ),
    Refusal(
        r"Too many open files|descriptors",
        "… Too many open files",
        "Each connection through the relay takes two descriptors, and kernels and files theirs.",
        "Raise the hard limit: LimitNOFILE of slurmd, or /etc/security/limits.conf.",
    ),
    # ---- the host port and the configuration ---------------------------------------------------
    Refusal(
        r"^published port .*Address already in use",
        "published port …: Address already in use",
        "Another program of this node has it, or another session that publishes it: 'ss -ltnp'"
        " shows who; choose another port.",
    ),
    Refusal(
        r"^host port .*Address already in use",
        "host port …: Address already in use",
        "Another program of this node took it first: start the server again (it gets another"
        " port); 'ss -ltnp' shows who.",
    ),
    Refusal(
        r"^(host|published) port .*Cannot assign|look up the host address",
        "host port …: Cannot assign requested address",
        "This node has no such address; it comes from JUPYTERHUB_SERVICE_URL or --host.",
        "Set c.Spawner.ip to '0.0.0.0'.",
    ),
    Refusal(
        r"^(host|published) port .*Permission denied",
        "host port …: Permission denied",
        "Ports below net.ipv4.ip_unprivileged_port_start are root's: choose one from 1024 up.",
    ),
    Refusal(
        r"^(host|published) port ",
        "host port …",
        "'ip address' shows which addresses this node has, 'ss -ltnp' which ports are taken.",
    ),
    Refusal(
        r"no host port from 1 to",
        "no host port from 1 to 65535",
        "No port has arrived: batchspawner-singleuser did not start this, or did not choose one.",
        "See batchspawner_singleuser_cmd of the spawner; by hand, --port PORT says it.",
    ),
    Refusal(
        r"run_path.*NoneType",
        "run_path … NoneType (a traceback of batchspawner)",
        "The path in c.Spawner.cmd is wrong, or the file is not executable on the node.",
        recorded=True,
    ),
    Refusal(
        r"keeper|relay in the sandbox|^fork:",
        "the keeper process ended …, the keeper failed: …",
        "The node may be out of processor time, processes or memory: look at its load and at"
        " 'ulimit -a', then try again.",
    ),
    Refusal(
        r"; ending the command",
        "slirp4netns ended by signal …; ending the command (SIGTERM)",
        "The way out is gone, and the session with it.",
        "Something killed the helper: 'journalctl -k --grep oom' shows whether memory ran out.",
    ),
    # ---- what --check finds besides ------------------------------------------------------------
    Refusal(
        r"^no nameserver",
        "no nameserver answers inside",
        "Names cannot be looked up inside: pip, git and a hub that is named by name will fail.",
        "See /etc/resolv.conf: a nameserver must be reachable from this node.",
    ),
    Refusal(
        r"^ssh.*Bad owner",
        "Bad owner or permissions on /etc/ssh/ssh_config.d/…",
        "OpenSSH takes no file of root's that its configuration includes, because inside root is"
        " nobody.",
        "GIT_SSH_COMMAND='ssh -F none' is the way around it, or -F with a file of one's own.",
    ),
    Refusal(
        r"^the hub",
        "the hub … does not answer from inside",
        "The server must reach the hub's API from the node.",
        "See c.JupyterHub.hub_connect_ip, hub_ip, and firewalls between node and hub.",
    ),
)


UNKNOWN = "'batchspawner-portwrap.pyz --check' on this node, inside a job, may tell more."


def read_setting(name: str) -> str:
    """The content of a file below /proc/sys; "" where there is none."""
    try:
        with open(f"/proc/sys/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""


def find(message: str, setting: Callable[[str], str] = read_setting) -> Refusal | None:
    """The row that this message belongs to: the first that fits."""
    for row in REFUSALS:
        fits = re.search(row.pattern, message)
        if fits and (row.setting is None or setting(row.setting[0]) == row.setting[1]):
            return row
    return None


def hint_for(message: str) -> str:
    """What the message means and what mends it, on this system."""
    row = find(message)
    return row.hint(this_system()) if row else UNKNOWN


def os_release(path: str = "/etc/os-release") -> dict[str, str]:
    """os-release(5) as a dictionary; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            pairs = (line.strip().partition("=") for line in file)
            return {name: value.strip("\"'") for name, _, value in pairs if name.isidentifier()}
    except OSError:
        return {}


def this_system(release: Mapping[str, str] | None = None) -> str:
    """The key in SYSTEMS of this distribution or of the one that it is like; "" for others."""
    facts = os_release() if release is None else release
    names = [facts.get("ID", ""), *facts.get("ID_LIKE", "").split()]
    if "debian" in names or "ubuntu" in names:
        return "debian"
    if "rhel" in names or "fedora" in names:
        major = facts.get("VERSION_ID", "").partition(".")[0]
        newer = names[0] == "fedora" or len(major) > 1  # the first of them with two digits is 10
        return "rhel10" if newer else "rhel"
    return ""
