"""The one exception for expected failures, the identifiers of failures, and the exit statuses.

The identifier chooses the remedy in the table of `remedies.py`, which is read only once something
has failed.
"""

from __future__ import annotations

import errno

EXIT_USAGE = 2
"""Exit status: invalid command line or environment."""
EXIT_SANDBOX = 125
"""Exit status: the sandbox could not be made."""
EXIT_NOT_EXECUTABLE = 126
"""Exit status: the command was found but cannot be executed."""
EXIT_NOT_FOUND = 127
"""Exit status: the command was not found."""


class Failure:
    """Identifiers of failures. The keeper sends them, too, with its refusals."""

    USAGE = "usage"
    NO_HOST_PORT = "no-host-port"

    COMMAND_NOT_FOUND = "command-not-found"
    COMMAND_MISSING = "command-missing"
    COMMAND_IS_DIRECTORY = "command-is-directory"
    COMMAND_NOT_EXECUTABLE = "command-not-executable"
    COMMAND_INTERPRETER = "command-interpreter"
    COMMAND_EXEC = "command-exec"

    HOST_PORT_BUSY = "host-port-busy"
    PUBLISHED_PORT_BUSY = "published-port-busy"
    HOST_ADDRESS = "host-address"
    PRIVILEGED_PORT = "privileged-port"
    HOST_PORT = "host-port"

    HOST_SERVICE_LISTEN = "host-service-listen"
    HOST_SERVICES_MAX = "host-services-max"
    HOST_SERVICE_FORWARDED = "host-service-forwarded"

    NAMESPACE_LIMIT = "namespace-limit"
    NAMESPACE_FORBIDDEN = "namespace-forbidden"
    NAMESPACE_THREADS = "namespace-threads"
    NAMESPACE_MISSING = "namespace-missing"
    NAMESPACE = "namespace"

    DRIVER_NOT_FOUND = "driver-not-found"
    DRIVER_NOT_FOR_ROOT = "driver-not-for-root"
    DRIVER_START = "driver-start"
    DRIVER_TOO_OLD = "driver-too-old"
    DRIVER_CONFINED = "driver-confined"
    DRIVER_INTERFACE = "driver-interface"
    DRIVER_ENDED = "driver-ended"
    OTHER_PORT = "other-port"
    OTHER_NETWORK = "other-network"
    TUN_MISSING = "tun-missing"
    TUN_MODE = "tun-mode"
    TUN_FORBIDDEN = "tun-forbidden"
    TUN_BROKEN = "tun-broken"

    NATIVE = "native"
    NATIVE_OUTBOUND = "native-outbound"
    EPHEMERAL = "ephemeral"
    KEEPER = "keeper"
    DESCRIPTORS = "descriptors"
    RESOURCES = "resources"
    INCOMPLETE = "incomplete"
    SYSTEM = "system"

    # What only `--check` finds.
    PROGRAM_WRITABLE = "program-writable"
    FEW_DESCRIPTORS = "few-descriptors"
    FEW_NAMESPACES = "few-namespaces"
    GPU_MEMORY = "gpu-memory"
    NO_BYTE_CODE = "no-byte-code"
    RELAYED = "relayed"
    BY_DRIVER = "by-driver"
    NAMES = "names"
    SSH_OWNER = "ssh-owner"
    SSH = "ssh"
    API = "api"
    API_LOOPBACK = "api-loopback"
    API_SANDBOX = "api-sandbox"
    API_ANSWER = "api-answer"
    SUBNETS = "subnets"
    HIDDEN = "hidden"
    APPARMOR_PROGRAM = "apparmor-program"

    SPAWNER_CMD = "spawner-cmd"


class PortwrapError(Exception):
    """An expected failure: what was tried and the answer, its identifier, and the exit status.

    `subject` is what the remedy is about, a file or a port. `remedy` is for those that only the
    caller can name, and takes the place of the table's.
    """

    def __init__(
        self,
        message: str,
        failure: str,
        exit_code: int = EXIT_SANDBOX,
        subject: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.failure = failure
        self.exit_code = exit_code
        self.subject = subject
        self.remedy = remedy


def failure_of(error: BaseException, otherwise: str) -> str:
    """The identifier of a system call's failure: used-up file descriptors are a failure of their
    own, whichever call meets them first."""
    # ETOOMANYREFS: descriptors on their way between processes count as open files (unix(7))
    number = getattr(error, "errno", None)
    used_up = number in (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS)
    return Failure.DESCRIPTORS if used_up else otherwise


def reason_of(error: BaseException) -> str:
    """What an exception says, without the number that Python puts before an errno's text."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
