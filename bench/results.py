"""What a run of the bench has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .rig import Figure
    from .ways import Way


class Results(NamedTuple):
    """All that there is to tell."""

    figures: Sequence[Figure]
    ways: Sequence[Way]
    special: Sequence[Way]  # of one part only
    left_out: Mapping[str, str]
    notes: Sequence[str]
    command: str
    size: str
    versions: str

    @property
    def names(self) -> list[str]:
        """Every way's name, once: bare, then ours, the reference of some, then the rivals."""
        every = {way.name: way for way in (*self.ways, *self.special)}
        return sorted(every, key=lambda name: every[name].rank)
