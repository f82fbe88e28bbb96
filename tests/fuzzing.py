"""How long the fuzz tests look: PORTWRAP_TEST_FUZZ=50 makes them try fifty times as much.

By default they are short, and try the same each time; a long run tries something new each time.
"""

from __future__ import annotations

import os

import hypothesis

TIMES = int(os.environ.get("PORTWRAP_TEST_FUZZ") or 1)


def examples(count: int, **options: object) -> hypothesis.settings:
    """Settings for a test that tries so many examples by default."""
    return hypothesis.settings(
        **{  # type: ignore[arg-type]
            "max_examples": count * TIMES,
            "deadline": None,
            "database": None,
            "derandomize": TIMES == 1,
            "suppress_health_check": list(hypothesis.HealthCheck) if TIMES > 1 else [],
            **options,
        }
    )
