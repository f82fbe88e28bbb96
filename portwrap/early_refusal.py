"""The protocol's message of a keeper that cannot import the protocol."""

from __future__ import annotations

MORE, LAST = b"+", b"."
"""First byte of a part of a message: whether another one follows."""


def refusing_program(lifeline: int, reason: str, failure: str) -> str:
    """Python statements in one line that send `protocol.Refused` because of the exception `error`,
    for a keeper that has nothing of ours."""
    fields = f"('Refused', f'{reason}: {{error}}', {failure!r})"
    return f"import os, marshal; os.write({lifeline}, {LAST!r} + marshal.dumps({fields}))"
