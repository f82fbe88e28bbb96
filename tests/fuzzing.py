"""How long the fuzz tests look: PORTWRAP_TEST_FUZZ=50 makes them try fifty times as much.

By default they are short, and try the same each time; a long run tries something new each time.
One that is shorter than that, as PORTWRAP_TEST_FUZZ=0.2 makes it, is for one more Python.
"""

from __future__ import annotations

import os

import hypothesis

TIMES = float(os.environ.get("PORTWRAP_TEST_FUZZ") or 1)
LONGER = max(1.0, TIMES)
"""For the limits of time of these tests."""


def examples(count: int, **options: object) -> hypothesis.settings:
    """Settings for a test that tries so many examples by default."""
    return hypothesis.settings(
        **{  # type: ignore[arg-type]
            "max_examples": max(1, int(count * TIMES)),
            "deadline": None,
            "database": None,
            "derandomize": TIMES <= 1,
            "suppress_health_check": list(hypothesis.HealthCheck) if TIMES > 1 else [],
            **options,
        }
    )
