"""Run a command on a kernel that lacks something, as far as it can tell.

    without.py pidfds|thread-pidfds|unshare|ipv6|splice|epoll|… COMMAND [ARG ...]
    without.py mount,setns,…=kill|EPERM|… COMMAND [ARG ...]

A seccomp filter refuses the system calls, for good and for all that the command starts: those of
pidfds as a kernel as old as 4.18 does, pidfds of threads as one before 6.9 does, unshare as
containers do, IPv6 sockets as a kernel that was started with ipv6.disable=1, splice and
process_vm_readv as an outer sandbox may, new epoll sets as one does that has no descriptor left,
kcmp as a kernel without CONFIG_KCMP, cookies of network namespaces as one before 5.14, seccomp
listeners whose callers only fatal signals interrupt (killable-wait) as one before 5.19, and files
that such a listener puts into its callers (addfd) as one before 5.9. An answer of one's own takes
the place of that: "kill" is the end of the caller, as by systemd.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_NO_NEW_PRIVS = 38
PIDFDS = (424, 434, 438)  # pidfd_send_signal, _open, _getfd: the same on all but Alpha
PIDFD_THREAD = os.O_EXCL
PIDFD_SEND_SIGNAL, PIDFD_OPEN, PIDFD_GETFD = ([number] for number in PIDFDS)
UNSHARE = {"x86_64": 272, "aarch64": 97}
SETNS = {"x86_64": 308, "aarch64": 268}
MOUNT = {"x86_64": 165, "aarch64": 40}
SOCKET = {"x86_64": 41, "aarch64": 198}
SPLICE = {"x86_64": 275, "aarch64": 76}
KCMP = {"x86_64": 312, "aarch64": 272}
PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}
GETSOCKOPT = {"x86_64": 55, "aarch64": 209}
SECCOMP = {"x86_64": 317, "aarch64": 277}
IOCTL = {"x86_64": 16, "aarch64": 29}
NOTIF_ADDFD = 0x40182103
SO_NETNS_COOKIE = 71
KILLABLE_WAIT = 0x2C  # with the listener that it is for, and without mitigations
EPOLL_CREATE1 = {"x86_64": 291, "aarch64": 20}
LOAD_NUMBER = (0x20, 0, 0, 0)
FIRST, SECOND, THIRD = ((0x20, 0, 0, 16 + 8 * place) for place in range(3))  # load an argument
RET_ALLOW = (0x06, 0, 0, 0x7FFF0000)
RET_ERRNO, RET_KILL_PROCESS = 0x00050000, 0x80000000

machine = os.uname().machine
CALLS = {  # the numbers of the calls, the argument that matters and its value, and the answer
    "pidfds": (PIDFDS, None, 0, errno.ENOSYS),
    "thread-pidfds": ([434], SECOND, PIDFD_THREAD, errno.EINVAL),
    "unshare": ([UNSHARE[machine]], None, 0, errno.EPERM),
    "ipv6": ([SOCKET[machine]], FIRST, socket.AF_INET6, errno.EAFNOSUPPORT),
    "splice": ([SPLICE[machine]], None, 0, errno.ENOSYS),
    "epoll": ([EPOLL_CREATE1[machine]], None, 0, errno.EMFILE),
    "kcmp": ([KCMP[machine]], None, 0, errno.ENOSYS),
    "process_vm_readv": ([PROCESS_VM_READV[machine]], None, 0, errno.ENOSYS),
    "cookies": ([GETSOCKOPT[machine]], THIRD, SO_NETNS_COOKIE, errno.ENOPROTOOPT),
    "addfd": ([IOCTL[machine]], SECOND, NOTIF_ADDFD, errno.EINVAL),
    "killable-wait": ([SECCOMP[machine]], SECOND, KILLABLE_WAIT, errno.EINVAL),
    "seccomp": ([SECCOMP[machine]], None, 0, errno.EPERM),
    "setns": ([SETNS[machine]], None, 0, errno.EPERM),
    "netlink": ([SOCKET[machine]], FIRST, socket.AF_NETLINK, errno.EAFNOSUPPORT),
    "mount": ([MOUNT[machine]], None, 0, errno.EPERM),
    "pidfd_open": (PIDFD_OPEN, None, 0, errno.EPERM),
    "pidfd_getfd": (PIDFD_GETFD, None, 0, errno.EPERM),
    "pidfd_send_signal": (PIDFD_SEND_SIGNAL, None, 0, errno.EPERM),
}
names, _, own = sys.argv[1].partition("=")
words = []
for name in names.split(","):
    numbers, load_argument, value, answer = CALLS[name]
    refusal = RET_ERRNO | getattr(errno, own, answer)
    refusal = RET_KILL_PROCESS if own == "kill" else refusal
    test = [] if load_argument is None else [load_argument, (0x15, 0, 1, value)]
    for number in numbers:
        words += [LOAD_NUMBER, (0x15, 0, len(test) + 1, number), *test, (0x06, 0, 0, refusal)]
words.append(RET_ALLOW)
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
os.execvp(sys.argv[2], sys.argv[2:])
