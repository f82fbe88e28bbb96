"""How long getppid(2) takes, called from Python: the best of some batches.

Of all calls it does the least, so what is added is the cost of a system call as such.
"""

from __future__ import annotations

import time
from os import getppid

BATCH = range(10_000)  # shorter than the time that a busy machine gives at once
times = []
for _ in range(100):
    begin = time.perf_counter_ns()
    for _ in BATCH:
        getppid()
    times.append(time.perf_counter_ns() - begin)
print(f"nanoseconds: {min(times) / len(BATCH):.1f}", flush=True)
