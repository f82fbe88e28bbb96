"""portwrap: run a command in a network of its own, with one port of the host forwarded into it.

Read `launch/story.py` first. The interface are the commands `portwrap` and `batchspawner-portwrap`:
what is in here may change with each version.
"""

from __future__ import annotations

import time

BEGAN = time.monotonic()
"""When this program began, or a millisecond later: seconds of the monotonic clock."""
__version__ = "0.1.0"
