#!/usr/bin/python3
"""Become the words that follow under the least filter of system calls: any_filter.py WORD ...

It is one instruction, "allow". Whatever a program loses by it, it loses in every container.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

NUMBERS = {"x86_64": 317, "aarch64": 277}  # of seccomp(2)
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 4  # linux/seccomp.h
SECCOMP_RET_ALLOW = 0x7FFF0000
BPF_RET_K = 0x06  # linux/filter.h

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result != 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


# struct sock_filter: code, jump if true, jump if false, constant
instruction = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW))
# struct sock_fprog: how many, and where
program = ctypes.create_string_buffer(struct.pack("HP", 1, ctypes.addressof(instruction)))
number = ctypes.c_long(NUMBERS[os.uname().machine])
checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
# Without that flag older kernels slow the program down against Spectre; ours has it, too.
flag = ctypes.c_long(SECCOMP_FILTER_FLAG_SPEC_ALLOW)
checked(libc.syscall(number, ctypes.c_long(SECCOMP_SET_MODE_FILTER), flag, program), "seccomp")
os.execvp(sys.argv[1], sys.argv[1:])
