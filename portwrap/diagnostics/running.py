"""The rows of the table of remedies for what may happen while a session runs."""

from __future__ import annotations

from .diagnostic import Diagnostic
from .errors import Failure

RUNNING = (
    # The keeper logs the remedies, with the ports in place of the dots (`keeper/unserved.py`).
    Diagnostic(
        Failure.OTHER_PORT,
        "clients of the host port find no server: nothing listens on the guest port …, only on …",
        "The server listens on another port of the sandbox, and the hub waits in vain.",
        "The server must listen on port …: remove the port from its configuration, or make it the"
        " guest port, for example with -P ….",
    ),
    Diagnostic(
        Failure.OTHER_NETWORK,
        "clients of the host port find no server: process … listens on port … in another network"
        " namespace",
        "A container or a sandbox in the session has a network of its own.",
        "The server must run in the session's own: podman run --network=host, apptainer without"
        " --net, bwrap without --unshare-net.",
    ),
)
