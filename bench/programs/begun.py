#!/usr/bin/python3
"""Say when we run, then run a Python program in this interpreter: begun.py PROGRAM [WORD ...]

What batchspawner-singleuser does with us, we do with the program: what comes after this moment is
the program's own.
"""

from __future__ import annotations

import runpy
import sys
import time

print(f"[{time.time_ns()}]", flush=True)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
