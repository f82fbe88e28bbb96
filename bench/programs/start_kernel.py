"""How long a kernel of a notebook takes to start, until it answers: start_kernel.py TIMES

The best of so many.
"""

from __future__ import annotations

import sys
import time

from jupyter_client.manager import (  # type: ignore[import-not-found,unused-ignore]
    start_new_kernel,
)

times = []
for _ in range(int(sys.argv[1])):
    begin = time.perf_counter()
    manager, client = start_new_kernel()
    times.append(time.perf_counter() - begin)
    client.stop_channels()
    manager.shutdown_kernel(now=True)
print(f"milliseconds: {1000 * min(times):.1f}", flush=True)
