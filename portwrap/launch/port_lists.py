"""Lists and ranges of ports, as options have them: few sessions do."""

from __future__ import annotations

from .ports import parse_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def parse_pairs(text: str) -> list[tuple[int, int]] | None:
    """Return the pairs of ports that a list like "8787,9000:80,30000-30010:40000-40010" means:
    each port with itself where there is no second one. None if it is no such list."""
    pairs = []
    for item in text.split(","):
        first, colon, second = item.partition(":")
        firsts = parse_range(first)
        seconds = parse_range(second) if colon else firsts
        if firsts is None or seconds is None or len(firsts) != len(seconds):
            return None
        pairs += list(zip(firsts, seconds))
    return pairs


def parse_ranges(text: str) -> list[int] | None:
    """Return the ports that a list like "8787,30000-30010" means; None if it is no such list."""
    ranges = [parse_range(item) for item in text.split(",")]
    return None if None in ranges else [port for each in ranges if each for port in each]


def parse_range(text: str) -> range | None:
    """Return the ports that "30000" or "30000-30010" means; None if it is neither."""
    first, dash, last = text.strip().partition("-")
    start = parse_port(first)
    end = parse_port(last) if dash else start
    return None if start is None or end is None or end < start else range(start, end + 1)


def describe_pairs(pairs: Sequence[tuple[int, int]]) -> str:
    """The text that `parse_pairs` makes these pairs of, as short as it can be."""
    runs: list[tuple[int, int, int]] = []  # first, its other port, how many
    for one, other in pairs:
        if runs and (one, other) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((one, other, 1))
    return ", ".join(
        _describe_range(one, count) + ("" if one == other else f":{_describe_range(other, count)}")
        for one, other, count in runs
    )


def _describe_range(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"
