"""Compress to the deflate format of zip files (RFC 1951), the same bytes on every machine.

zlib's output differs between its versions and its rivals (zlib-ng on Fedora and RHEL 10); the
format itself does not. One block with Huffman codes of its own, and the longest match of the last
32 kB: as small as zlib's best for texts of this size.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

SHORTEST, LONGEST, FARTHEST = 3, 258, 32768
CANDIDATES = 64
"""How many earlier places with the same first three bytes are compared."""
END_OF_BLOCK, FIRST_LENGTH = 256, 257
"""Symbols of the first code: 0-255 are bytes, these, and the other lengths of a match."""
LONGEST_CODE, LONGEST_CODE_OF_LENGTHS = 15, 7
"""Bits of a symbol at most (RFC 1951, 3.2.7)."""
ORDER_OF_LENGTHS = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
"""In which the code of the other two codes' lengths is described (RFC 1951, 3.2.7)."""
REPEAT_LAST, REPEAT_ZERO, REPEAT_ZERO_OFTEN = (16, 3, 6, 2), (17, 3, 10, 3), (18, 11, 138, 7)
"""Symbols of that code: how often, at least and at most, and in how many bits."""


def _table(first: int, extra_bits: list[int]) -> list[tuple[int, int]]:
    """(lowest value, number of extra bits) of each code, as in RFC 1951, 3.2.5."""
    rows, value = [], first
    for bits in extra_bits:
        rows.append((value, bits))
        value += 1 << bits
    return rows


LENGTHS = [*_table(3, [0] * 8 + [n for n in range(1, 6) for _ in range(4)])[:28], (258, 0)]
DISTANCES = _table(1, [0] * 4 + [n for n in range(1, 14) for _ in range(2)])


class Bits:
    """Bits in the order of the format: the lowest one of each byte first."""

    def __init__(self) -> None:
        self.value = 0
        self.count = 0
        self.done = bytearray()

    def number(self, value: int, count: int) -> None:
        self.value |= value << self.count
        self.count += count
        while self.count >= 8:
            self.done.append(self.value & 0xFF)
            self.value >>= 8
            self.count -= 8

    def finish(self) -> bytes:
        self.number(0, 7)  # fill the last byte
        return bytes(self.done)


class Code:
    """A Huffman code for symbols that occur so often.

    What is written is a symbol, and a number that stands behind it in so many bits.
    """

    def __init__(self, counts: dict[int, int], most: int) -> None:
        """With codes of `most` bits at most."""
        self.lengths = _code_lengths(counts, most)
        self.codes: dict[int, int] = {}
        code, last = 0, 0
        # RFC 1951, 3.2.2: the shorter ones come first, those of one length in the symbols' order.
        for symbol, length in sorted(self.lengths.items(), key=lambda item: (item[1], item[0])):
            code <<= length - last
            # It stands with its highest bit first.
            self.codes[symbol] = int(f"{code:0{length}b}"[::-1], 2)
            code, last = code + 1, length

    def write(self, bits: Bits, word: tuple[int, int, int]) -> None:
        symbol, extra, count = word
        bits.number(self.codes[symbol], self.lengths[symbol])
        bits.number(extra, count)

    def described(self, least: int) -> list[int]:
        """The length of each symbol's code from 0 on; 0: it does not occur."""
        most = max([least, *(symbol + 1 for symbol in self.lengths)])
        return [self.lengths.get(symbol, 0) for symbol in range(most)]


def _code_lengths(counts: dict[int, int], most: int) -> dict[int, int]:
    """How many bits each symbol has in the best code, or in a good one with `most` at most."""
    lengths = dict.fromkeys(counts, 1 if len(counts) == 1 else 0)
    heap = [(count, symbol, [symbol]) for symbol, count in counts.items()]
    heapq.heapify(heap)
    while len(heap) > 1:
        (count, first, some), (more, _, others) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in some + others:
            lengths[symbol] += 1
        heapq.heappush(heap, (count + more, first, some + others))
    if max(lengths.values(), default=0) > most:
        return _code_lengths({symbol: (count + 1) // 2 for symbol, count in counts.items()}, most)
    return lengths


class Matches:
    """Finds what stood in the data before."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.places: dict[bytes, list[int]] = {}  # where these first three bytes stand
        self.known = 0  # they are listed as far as here

    def longest(self, here: int) -> tuple[int, int]:
        """(length, distance) of the longest earlier copy of what stands here; (0, 0) if none."""
        data = self.data
        for place in range(self.known, here):
            self.places.setdefault(data[place : place + SHORTEST], []).append(place)
        self.known = max(self.known, here)
        best, distance = 0, 0
        most = min(LONGEST, len(data) - here)
        for place in reversed(self.places.get(data[here : here + SHORTEST], [])[-CANDIDATES:]):
            if here - place > FARTHEST or best == most:
                break
            length = 0
            while length < most and data[place + length] == data[here + length]:
                length += 1
            if length > best:
                best, distance = length, here - place
        return best, distance


def _said(data: bytes) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int] | None]]:
    """What the block says: a byte, or the length of a match with its distance."""
    matches = Matches(data)
    here, (length, distance) = 0, matches.longest(0)
    while here < len(data):
        following = matches.longest(here + 1)
        if length < SHORTEST or following[0] > length:
            yield (data[here], 0, 0), None
            here, (length, distance) = here + 1, following
        else:
            yield _valued(length, LENGTHS, FIRST_LENGTH), _valued(distance, DISTANCES, 0)
            here += length
            length, distance = matches.longest(here)
    yield (END_OF_BLOCK, 0, 0), None


def _valued(value: int, table: list[tuple[int, int]], first: int) -> tuple[int, int, int]:
    """The symbol of this length or distance."""
    row = max(i for i, (lowest, _) in enumerate(table) if lowest <= value)
    return first + row, value - table[row][0], table[row][1]


def _run_lengths(lengths: list[int]) -> Iterator[tuple[int, int, int]]:
    """The lengths of codes, with runs of the same one told as such (RFC 1951, 3.2.7)."""
    here = 0
    while here < len(lengths):
        length = lengths[here]
        run = next((i for i, n in enumerate(lengths[here:]) if n != length), len(lengths) - here)
        kinds = (REPEAT_ZERO_OFTEN, REPEAT_ZERO) if length == 0 else (REPEAT_LAST,)
        again = run if length == 0 else run - 1
        if length:
            yield length, 0, 0
        while again:
            kind = next((kind for kind in kinds if again >= kind[1]), None)
            if kind is None:
                yield length, 0, 0
                again -= 1
            else:
                symbol, least, most, bits = kind
                times = min(again, most)
                yield symbol, times - least, bits
                again -= times
        here += run


def deflate(data: bytes) -> bytes:
    """The data as one block with codes of its own."""
    said = list(_said(data))
    literals = Code(Counter(first[0] for first, _ in said), LONGEST_CODE)
    distances = Code(Counter(second[0] for _, second in said if second), LONGEST_CODE)
    lengths, steps = literals.described(FIRST_LENGTH), distances.described(1)
    runs = list(_run_lengths(lengths + steps))
    code = Code(Counter(run[0] for run in runs), LONGEST_CODE_OF_LENGTHS)
    order = [code.lengths.get(symbol, 0) for symbol in ORDER_OF_LENGTHS]
    while order[-1] == 0:
        order.pop()

    bits = Bits()
    bits.number(1, 1)  # the last block
    bits.number(2, 2)  # with codes of its own
    bits.number(len(lengths) - FIRST_LENGTH, 5)
    bits.number(len(steps) - 1, 5)
    bits.number(len(order) - 4, 4)
    for length in order:
        bits.number(length, 3)
    for run in runs:
        code.write(bits, run)
    for first, second in said:
        literals.write(bits, first)
        if second:
            distances.write(bits, second)
    return bits.finish()
