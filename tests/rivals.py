"""A neighbour who wants a TCP port of the owner's."""

from __future__ import annotations

import json
import os
import select
import subprocess
from contextlib import contextmanager
from typing import Any, Iterator, Sequence

from helpers import NEIGHBOUR, as_user, end, run_as
from sessions import Portwrap


class Player:
    """A program of the tests that is told what to do, line by line."""

    def __init__(self, account: str, words: list[str], **options: Any) -> None:
        self.process = as_user(
            account, words, stdin=subprocess.PIPE, stderr=None, bufsize=1, **options
        )
        self.pid = self.process.pid
        assert self.process.stdout
        self.output = self.process.stdout.fileno()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *error: object) -> None:
        end(self.process)

    def give(self, *words: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(words) + "\n")

    def answer(self) -> Any:
        """Byte by byte: what is left in the pipe is seen by `has_answered`."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.output, 1)
            assert byte, "the program has ended"
            line += byte
        return json.loads(line)

    def has_answered(self) -> bool:
        return bool(select.select([self.output], [], [], 0)[0])

    def do(self, *words: object) -> Any:
        self.give(*words)
        return self.answer()


def taken(portwrap: Portwrap, port: int, addresses: Sequence[str]) -> set[str]:
    """Those of the addresses on which a neighbour gets this port, with whichever options."""
    result = run_as(NEIGHBOUR, portwrap.program("squat.py", str(port), *addresses))
    assert result.returncode == 0, result.stderr
    return {way[0] for way in json.loads(result.stdout)}


@contextmanager
def in_a_loop(rival: Player, port: int, *addresses: str) -> Iterator[list[Any]]:
    """The neighbour tries to get the port meanwhile; how often, and where he has got it, if so."""
    outcome: list[Any] = []
    rival.give("loop", port, *addresses)
    assert rival.answer() == "trying"
    yield outcome
    rival.give("stop")
    outcome += rival.answer()
    assert rival.answer() is None
