"""The table of causes and remedies, keyed by the identifier of a failure (`errors.Failure`).

What is printed where a start fails, `--check`, the documentation's troubleshooting and the manual
page (docs/generate.py) are made of the same rows.
"""

from __future__ import annotations

from ..launch.drivers import NETWORK_DRIVERS
from ..launch.drivers.driver import INSTALL_EVERYWHERE
from .check_remedies import CHECKS
from .diagnostic import Diagnostic
from .errors import Failure
from .filtered import FILTERED
from .running import RUNNING
from .surroundings import APPARMOR, FILTER, OWN_DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SYSCTL = "echo {0} >>/etc/sysctl.d/90-portwrap.conf; sysctl -p /etc/sysctl.d/90-portwrap.conf"
PROFILE = "/etc/apparmor.d/batchspawner-portwrap"
LOAD_PROFILE = (
    f"""p=$({{check}} --check --apparmor {{singleuser}}) && printf '%s\\n' "$p" >{PROFILE}"""
    f" && apparmor_parser -r {PROFILE}"
)

NAMESPACES = (
    Diagnostic(
        Failure.NAMESPACE_LIMIT,
        "unshare(…): No space left on device",
        "User namespaces are switched off (user.max_user_namespaces is 0).",
        commands=SYSCTL.format("user.max_user_namespaces=28633"),
        setting=("user/max_user_namespaces", "0"),
    ),
    Diagnostic(
        Failure.NAMESPACE_LIMIT,
        "unshare(…): No space left on device",
        "Network namespaces are switched off (user.max_net_namespaces is 0).",
        commands=SYSCTL.format("user.max_net_namespaces=28633"),
        setting=("user/max_net_namespaces", "0"),
    ),
    Diagnostic(
        Failure.NAMESPACE_LIMIT,
        "unshare(…): No space left on device",
        "A sandbox or container around the job has used up its user namespaces, or forbids them"
        " (bwrap --disable-userns): no setting changes that from within.",
        "'unshare -Urn true' must succeed in the same place. Start that sandbox without the option,"
        " or as the command of the session.",
        # what a new user namespace has (user_namespaces(7)): the limit is one further out
        setting=("user/max_user_namespaces", "2147483647"),
    ),
    Diagnostic(
        Failure.NAMESPACE_LIMIT,
        "unshare(…): No space left on device",
        "The limit of namespaces is reached (user.max_user_namespaces, user.max_net_namespaces).",
        "'lsns' lists them. Raise the limit, or find the program that leaks them.",
        SYSCTL.format("user.max_user_namespaces=65536"),
    ),
    Diagnostic(
        Failure.NAMESPACE_FORBIDDEN,
        "unshare(…): Operation not permitted",
        "Only root may create user namespaces (kernel.unprivileged_userns_clone is 0, older"
        " Debian).",
        commands=SYSCTL.format("kernel.unprivileged_userns_clone=1"),
        setting=("kernel/unprivileged_userns_clone", "0"),
        recorded=True,
    ),
    Diagnostic(
        Failure.NAMESPACE_FORBIDDEN,
        "setting up the user namespace (/proc/self/uid_map): Operation not permitted",
        "AppArmor restricts user namespaces (Ubuntu 24.04 and later).",
        "A profile allows them for this program alone.",
        LOAD_PROFILE,
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ),
    Diagnostic(
        Failure.NAMESPACE_FORBIDDEN,
        "unshare(…): Permission denied",
        "The AppArmor profile of this program or of the job forbids user namespaces: --check names"
        " it.",
        "Add 'userns,' to that profile; or, where it is attached to this program by a pattern, load"
        " one for this program alone.",
        LOAD_PROFILE,
        around=APPARMOR,
        answer="Permission denied",
    ),
    Diagnostic(
        Failure.NAMESPACE_FORBIDDEN,
        "a seccomp filter kills the callers of …, unshare(…): Operation not permitted",
        "A seccomp filter around the job forbids user namespaces: SystemCallFilter= or"
        " RestrictNamespaces= of a systemd unit, or the profile of a container engine.",
        "'unshare -Urn true' must succeed in the same place, inside a job.",
        around=FILTER,
    ),
    Diagnostic(
        Failure.NAMESPACE_FORBIDDEN,
        "unshare(…): Operation not permitted",
        "A container, chroot or security module around the job forbids user namespaces.",
        "'unshare -Urn true' must succeed in the same place, inside a job.",
    ),
    Diagnostic(
        Failure.NAMESPACE_THREADS,
        "unshare(…): Invalid argument, with … threads",
        "This interpreter starts a thread by itself, and a process with threads cannot enter a"
        " user namespace.",
        "Check /etc/ld.so.preload, and the libraries of this Python ('ldd').",
    ),
    Diagnostic(
        Failure.NAMESPACE_MISSING,
        "unshare(…): Invalid argument",
        "This kernel lacks user or network namespaces: Linux 4.18 or newer with both is required.",
        "RHEL 7 needs the kernel parameters user_namespace.enable=1 and namespace.unpriv_enable=1.",
        recorded=True,
    ),
    Diagnostic(
        Failure.NAMESPACE,
        "setting up the user namespace (/proc/self/setgroups): Read-only file system",
        "/proc is read-only in this job: ReadOnlyPaths=/ of a systemd unit, readonly_paths of"
        " systemdspawner.",
        "Except it: ReadWritePaths=/proc, readwrite_paths.",
        answer="Read-only file system",
    ),
    Diagnostic(
        Failure.NAMESPACE,
        "unshare(…): …",
        "The kernel refuses new user and network namespaces.",
        "'unshare -Urn true' must succeed in the same place, inside a job.",
    ),
)

WITHOUT_TUN = "--network direct needs none, where native outbound is possible."
TUN = (
    Diagnostic(
        Failure.TUN_MISSING,
        "/dev/net/tun: No such file or directory",
        "The job has a /dev of its own, without the node's tun device.",
        "Let it have that: --device /dev/net/tun (podman, docker), --bind /dev/net/tun (Apptainer"
        " with --contain), --dev-bind /dev/net/tun /dev/net/tun (bwrap), BindPaths=/dev/net/tun and"
        " DeviceAllow=/dev/net/tun (systemd with PrivateDevices=, isolate_devices of"
        f" systemdspawner). {WITHOUT_TUN}",
        words=r"/dev/net/tun.{0,3}: No such file",
        around=OWN_DEVICES,
    ),
    Diagnostic(
        Failure.TUN_MISSING,
        "/dev/net/tun: No such file or directory",
        "The tun device is missing on this node.",
        commands="modprobe tun; [ -c /dev/net/tun ] || { mkdir -p /dev/net; mknod /dev/net/tun c"
        " 10 200; }; chmod 0666 /dev/net/tun",
        words=r"/dev/net/tun.{0,3}: No such file",
    ),
    Diagnostic(
        Failure.TUN_MODE,
        "/dev/net/tun: Permission denied",
        "Every user must be able to open the tun device.",
        commands="chmod 0666 /dev/net/tun",
        words=r"/dev/net/tun.{0,3}: Permission",
    ),
    Diagnostic(
        Failure.TUN_FORBIDDEN,
        "/dev/net/tun: Operation not permitted",
        "A device cgroup forbids the tun device.",
        "Allow it where the job gets its devices: DeviceAllow=/dev/net/tun of a systemd unit,"
        f" --device /dev/net/tun (podman, docker). {WITHOUT_TUN}",
        words=r"/dev/net/tun.{0,3}: Operation",
    ),
    Diagnostic(
        Failure.TUN_BROKEN,
        "/dev/net/tun: …",
        "The tun device does not work: 'ls -l /dev/net/tun' must show crw-rw-rw- and 10, 200.",
        "If it does, 'ausearch -c pasta' shows whether SELinux forbids it.",
        "rm /dev/net/tun; mknod /dev/net/tun c 10 200; chmod 0666 /dev/net/tun",
        words=r"/dev/net/tun|TUNSETIFF|tun socket",
    ),
)

LIMITS = (
    Diagnostic(
        Failure.DESCRIPTORS,
        "…: Too many open files",
        "The limit of open files is too low: a start needs about 40, and each relayed connection"
        " uses two more, on top of those of kernels and open files.",
        "'ulimit -Hn' prints the hard limit. Raise it to 4096 or more: LimitNOFILE= of slurmd's"
        " unit, or nofile in /etc/security/limits.conf.",
        words=r"Too many (open files|references)",
    ),
    Diagnostic(
        Failure.FEW_DESCRIPTORS,
        "limit 1024, at most 1000; …",
        "Each relayed connection uses two file descriptors, on top of those of kernels and open"
        " files.",
        "Raise the hard limit: LimitNOFILE= of slurmd's unit, or nofile in"
        " /etc/security/limits.conf.",
    ),
    Diagnostic(
        Failure.FEW_NAMESPACES,
        "user.max_user_namespaces 100, …",
        "Each session needs a user and a network namespace: few sessions fit on this node.",
        commands=SYSCTL.format("user.max_user_namespaces=65536")
        + "; "
        + SYSCTL.format("user.max_net_namespaces=65536"),
    ),
    Diagnostic(
        Failure.NO_BYTE_CODE,
        "none for Python …: each start compiles the modules",
        "A session starts faster, and takes less memory, from byte code for its Python.",
        "Build the file with './build.sh --for {subject}'.",
    ),
    Diagnostic(
        Failure.KEEPER,
        "the keeper process ended …, the keeper failed: …",
        "The node may be out of processor time, processes or memory.",
        "Check its load and 'ulimit -a', then try again.",
    ),
    Diagnostic(
        Failure.RESOURCES,
        "setting up (…): Resource temporarily unavailable",
        "A limit of this job or of the node is used up.",
        "See 'ulimit -a', and the memory of the job.",
    ),
    Diagnostic(
        Failure.INCOMPLETE,
        "setting up (…): No module named …",
        "This Python or this program is incomplete or cannot be read, or a limit is used up.",
        "Start it again; if it fails again, see 'ulimit -a', and install the program anew.",
    ),
    Diagnostic(
        Failure.SYSTEM,
        "setting up (…): Input/output error",
        "The system refused a step that always succeeds on a healthy node.",
        "See 'journalctl -k' of the node; '{check} --check' inside a job may show more.",
    ),
)

PORTS = (
    Diagnostic(
        Failure.PUBLISHED_PORT_BUSY,
        "published port …: Address already in use",
        "Another program on this node uses it, or another session publishes it.",
        "'ss -ltnp' lists the programs that listen. Choose another port.",
    ),
    Diagnostic(
        Failure.HOST_PORT_BUSY,
        "host port …: Address already in use",
        "Another program on this node already uses this port, on this address or another.",
        "Start the server again: it gets another port. 'ss -ltnp' lists the programs that listen.",
    ),
    Diagnostic(
        Failure.HOST_ADDRESS,
        "host port …: Cannot assign requested address",
        "This node does not have this address; it comes from JUPYTERHUB_SERVICE_URL or --host.",
        "Set c.Spawner.ip = '0.0.0.0', or --host 0.0.0.0.",
    ),
    Diagnostic(
        Failure.PRIVILEGED_PORT,
        "host port …: Permission denied",
        "Ports below net.ipv4.ip_unprivileged_port_start are reserved for root.",
        "Choose one from 1024 up.",
    ),
    Diagnostic(
        Failure.HOST_PORT,
        "host port …",
        "The system does not allow this account to listen there.",
        "'ip address' lists the addresses of this node, 'ss -ltnp' the ports in use.",
    ),
    Diagnostic(
        Failure.NO_HOST_PORT,
        "no host port from 1 to 65535",
        "No port was given: not started by batchspawner-singleuser, or it chose none (check"
        " batchspawner_singleuser_cmd of the spawner).",
        "By hand, use --port PORT.",
    ),
    Diagnostic(
        Failure.HOST_SERVICE_LISTEN,
        "host service …: cannot listen in the sandbox",
        "Each address and port can be offered once.",
        "Choose another port.",
    ),
    Diagnostic(
        Failure.HOST_SERVICES_MAX,
        "… sockets for host services are more than 200",
        "Each uses a file descriptor, and a job may have 1,024.",
        "Offer fewer ports with --host-service.",
    ),
    Diagnostic(
        Failure.HOST_SERVICE_FORWARDED,
        "sandbox port … cannot be both a host service and a forwarding target",
        "The service would be open to the whole network, and the command could not listen there.",
        "Choose another guest port: -P, or the second number of --publish.",
    ),
)

COMMANDS = (
    Diagnostic(
        Failure.COMMAND_NOT_FOUND,
        "…: not found on PATH",
        "No directory on PATH contains this program.",
        "Give its absolute path, or set PATH in c.Spawner.environment.",
    ),
    Diagnostic(
        Failure.COMMAND_MISSING,
        "…: no such file",
        "This file does not exist on this node.",
        "Check the path: 'ls -l {subject}' on this node.",
    ),
    Diagnostic(
        Failure.COMMAND_IS_DIRECTORY,
        "…: is a directory",
        "Give the path of a program, not a directory.",
    ),
    Diagnostic(
        Failure.COMMAND_NOT_EXECUTABLE,
        "…: permission denied",
        "This account may not execute it.",
        "Its owner can fix that by 'chmod +x {subject}'; its file system must not be mounted"
        " noexec.",
    ),
    Diagnostic(
        Failure.COMMAND_INTERPRETER,
        "…: its interpreter … does not exist",
        "The first line of the script requires a program that this node does not have.",
        "Install it, or correct the line: 'head -1 {subject}'.",
    ),
    Diagnostic(
        Failure.COMMAND_EXEC,
        "…: Exec format error",
        "The file cannot be executed on this node.",
        "'file {subject}' and 'ldd {subject}' show what it needs.",
    ),
    Diagnostic(
        Failure.SPAWNER_CMD,
        "run_path … NoneType (a traceback of batchspawner)",
        "The path in c.Spawner.cmd is wrong, or the file is not executable on the node.",
        recorded=True,
    ),
    Diagnostic(
        Failure.NATIVE,
        "--forward native is not possible: …",
        "It needs Linux 5.9 or newer and no other seccomp listener.",
        "Use --forward auto, which relays where native forwarding is not possible.",
    ),
    Diagnostic(
        Failure.NATIVE_OUTBOUND,
        "--outward native is not possible: …",
        "It needs Linux 5.9 or newer and no other seccomp listener.",
        "Use --outward auto, which leaves connections to the network driver where native outbound"
        " is not possible.",
    ),
    Diagnostic(
        Failure.EPHEMERAL,
        "--publish-ephemeral is not possible: …",
        "It needs native forwarding or native outbound, and so Linux 5.9 or newer and no other"
        " seccomp listener.",
        "Use --publish, and configure programs to use its ports.",
    ),
)


def topics() -> Mapping[str, Sequence[Diagnostic]]:
    """Every row, by what it is about."""
    drivers = [row for driver in NETWORK_DRIVERS for row in driver.diagnostics()]
    return {
        "Namespaces": NAMESPACES,
        "The tun device": TUN,
        "Filters around the job": FILTERED,
        "Limits and resources": LIMITS,
        "Network drivers": (*drivers, *any_driver()),
        "Ports": PORTS,
        "The command": COMMANDS,
        "A running session": RUNNING,
        "The node check": CHECKS,
    }


def table() -> Sequence[Diagnostic]:
    """Every row; of those of one failure the first that fits counts."""
    return [row for rows in topics().values() for row in rows]


def any_driver() -> Sequence[Diagnostic]:
    """What is the same for every network driver."""
    names = [driver.name for driver in NETWORK_DRIVERS]
    packages: dict[str, str] = {}
    for driver in NETWORK_DRIVERS:
        packages = {**driver.packages, **packages}
    return (
        Diagnostic(
            Failure.DRIVER_NOT_FOUND,
            f"neither {' nor '.join(names)} found",
            "This node lacks a network driver.",
            INSTALL_EVERYWHERE,
            packages,
        ),
        Diagnostic(
            Failure.DRIVER_ENDED,
            f"{names[0]} ended by signal …; ending the command (SIGTERM)",
            "Outbound connections are lost, and the session with them.",
            "Something killed the driver: 'journalctl -k --grep oom' shows whether memory ran out.",
        ),
    )
