"""Run a command on a kernel as old as 4.18 in one respect, without pidfds; or as in a container,
where there is no unshare.

    without_pidfd.py [--container] COMMAND [ARG ...]

A seccomp filter answers ENOSYS to pidfd_open, pidfd_getfd and pidfd_send_signal, or EPERM to
unshare, for good and for all that the command starts. The numbers of the first three are the same
on every architecture but Alpha.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_NO_NEW_PRIVS = 38
MISSING = {"pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438}
UNSHARE = {"x86_64": 272, "aarch64": 97}
LOAD_NUMBER = (0x20, 0, 0, 0)
RET_ALLOW = (0x06, 0, 0, 0x7FFF0000)
RET_ERRNO = 0x00050000

contained = sys.argv[1] == "--container"
command = sys.argv[2:] if contained else sys.argv[1:]
numbers = [UNSHARE[os.uname().machine]] if contained else list(MISSING.values())
refusal = (0x06, 0, 0, RET_ERRNO | (errno.EPERM if contained else errno.ENOSYS))
jumps = [(0x15, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
words = [LOAD_NUMBER, *jumps, RET_ALLOW, refusal]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *word) for word in words))
program = ctypes.create_string_buffer(struct.pack("@HP", len(words), ctypes.addressof(code)))

libc = ctypes.CDLL(None, use_errno=True)
unused = ctypes.c_ulong(0)
steps = [
    (PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), unused, unused, unused),
    (PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program, unused, unused),
]
for step in steps:
    if libc.prctl(*step) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execvp(command[0], command)
