"""Start a program as batchspawner-singleuser does: by runpy in this very interpreter.

    in_process.py SETTINGS PROGRAM [ARG ...]

SETTINGS is a list of words between commas: "threads" runs a thread meanwhile, "memory" holds
100 MB, "talks" prints a line, "nameless" empties sys.executable, "undumpable" hides this process
in /proc (prctl(2)), "no errors" has a file of its own in the place of the standard error, as libffi
may have.
"""

import ctypes
import os
import runpy
import sys
import threading

settings = sys.argv[1].split(",")
if "threads" in settings:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if "memory" in settings:
    memory = b"x" * 100_000_000
if "talks" in settings:
    print("before")  # still in the buffer, where that is no terminal
if "nameless" in settings:
    sys.executable = ""
if "undumpable" in settings:
    PR_SET_DUMPABLE = 4
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
if "no errors" in settings:
    os.close(2)
    assert os.open(__file__, os.O_RDONLY) == 2
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
