"""The rows of the table of remedies for jobs with a seccomp filter around them."""

from __future__ import annotations

from .diagnostic import Diagnostic
from .errors import Failure
from .surroundings import FILTER

NATIVE_CALLS = "pidfd_getfd, seccomp, kcmp and process_vm_readv"
DRIVER_CALLS = "setns, mount, umount2, pivot_root and seccomp"
FORBIDDEN = "seccomp filter|not permitted|not supported"
"""What a message has where a filter may be the reason. EAFNOSUPPORT is the answer of systemd's
RestrictAddressFamilies=."""

FILTERED = (
    Diagnostic(
        Failure.KEEPER,
        "the keeper failed: setns: Operation not permitted",
        "A seccomp filter around the job (SystemCallFilter= of a systemd unit, the profile of a"
        " container engine) may forbid what the keeper needs.",
        "PORTWRAP_FORWARD=relay and PORTWRAP_OUTWARD=helper need fewer system calls. Native"
        f" forwarding and outbound take {NATIVE_CALLS}.",
        around=FILTER,
        answer="not permitted|denied|process ended",
    ),
    Diagnostic(
        Failure.DRIVER_START,
        "pasta ended before it was ready (ended by signal 31)",
        "A seccomp filter around the job forbids what the network driver needs.",
        f"Allow {DRIVER_CALLS} in it, and for pasta AF_NETLINK. --network direct needs no driver,"
        " where native outbound is possible.",
        words=r"ended by signal 31\b|Operation not permitted|netlink socket",
        around=FILTER,
    ),
    Diagnostic(
        Failure.SYSTEM,
        "setting up (…): Operation not permitted",
        "A seccomp filter around the job (SystemCallFilter= or RestrictAddressFamilies= of a"
        " systemd unit, the profile of a container engine) may forbid this step.",
        "'{check} --check' in the same place may show more.",
        around=FILTER,
        answer=FORBIDDEN,
    ),
    Diagnostic(
        Failure.NATIVE,
        "--forward native is not possible: a seccomp filter kills the callers of …",
        "A seccomp filter around the job forbids what it needs.",
        f"Allow {NATIVE_CALLS} in it, or set PORTWRAP_FORWARD=relay.",
        around=FILTER,
        answer=FORBIDDEN,
    ),
    Diagnostic(
        Failure.NATIVE_OUTBOUND,
        "--outward native is not possible: a seccomp filter kills the callers of …",
        "A seccomp filter around the job forbids what it needs.",
        f"Allow {NATIVE_CALLS} in it, or set PORTWRAP_OUTWARD=helper, which takes a network"
        " driver.",
        around=FILTER,
        answer=FORBIDDEN,
    ),
    Diagnostic(
        Failure.RELAYED,
        "relay (a seccomp filter kills the callers of …)",
        "A seccomp filter around the job prevents native forwarding: the keeper relays.",
        f"Sessions work, as with PORTWRAP_FORWARD=relay. Native forwarding takes {NATIVE_CALLS}.",
        around=FILTER,
        answer=FORBIDDEN,
    ),
    Diagnostic(
        Failure.BY_DRIVER,
        "slirp4netns (a seccomp filter kills the callers of …)",
        "A seccomp filter around the job prevents native outbound: the network driver is used.",
        f"Sessions work, as with PORTWRAP_OUTWARD=helper. Native outbound takes {NATIVE_CALLS}.",
        around=FILTER,
        answer=FORBIDDEN,
    ),
)
