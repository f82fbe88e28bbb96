"""How long listen(2) takes, on ports that the kernel chooses: the median of some."""

from __future__ import annotations

import socket
import time

times = []
for _ in range(300):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        begin = time.perf_counter_ns()
        listener.listen()
        times.append(time.perf_counter_ns() - begin)
print(f"microseconds: {sorted(times)[len(times) // 2] / 1000:.3f}", flush=True)
