"""The protocol's message of a keeper that cannot import the protocol."""

from __future__ import annotations

MORE, LAST = b"+", b"."
"""First byte of a part of a message: whether another one follows."""


def refusing_expression(lifeline: int, reason: str, failure: str) -> str:
    """A Python expression that sends `protocol.Refused` because of the exception `error`, for a
    keeper that has nothing of ours but `os` and `marshal`."""
    fields = f"('Refused', f'{reason}: {{error}}', {failure!r})"
    return f"os.write({lifeline}, {LAST!r} + marshal.dumps({fields}))"
