"""Run a command as a process with this number, which nobody may have: numbered.py PID COMMAND ...

Needs CAP_CHECKPOINT_RESTORE (clone3(2), set_tid). Ends with the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys

SYS_CLONE3 = 435  # the same on all

libc = ctypes.PyDLL(None, use_errno=True)  # the child is to hold Python's lock, too
wanted = ctypes.c_int(int(sys.argv[1]))
# struct clone_args: exit_signal is the fifth, set_tid and set_tid_size are the last of version 1
words = [0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1]
arguments = ctypes.create_string_buffer(struct.pack("=10Q", *words))
child = libc.syscall(SYS_CLONE3, arguments, ctypes.c_size_t(80))
if child < 0:
    sys.exit(f"clone3: {os.strerror(ctypes.get_errno())}")
if child == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
os.waitpid(child, 0)
