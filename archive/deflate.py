"""Compress to the deflate format of zip files (RFC 1951), the same bytes on every machine.

zlib's output differs between its versions and its rivals (zlib-ng on Fedora and RHEL 10); the
format itself does not. Fixed Huffman codes and the longest match of the last 32 kB: about 5 %
larger than zlib's for texts of this size.
"""

from __future__ import annotations

SHORTEST, LONGEST, FARTHEST = 3, 258, 32768
CANDIDATES = 64
"""How many earlier places with the same first three bytes are compared."""
END_OF_BLOCK = 256


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

    def code(self, value: int, count: int) -> None:
        """A Huffman code stands with its highest bit first."""
        self.number(int(f"{value:0{count}b}"[::-1], 2), count)

    def symbol(self, symbol: int) -> None:
        """A literal, the end of the block, or a length: the fixed codes of RFC 1951, 3.2.6."""
        if symbol < 144:
            self.code(0x30 + symbol, 8)
        elif symbol < 256:
            self.code(0x190 + symbol - 144, 9)
        elif symbol < 280:
            self.code(symbol - 256, 7)
        else:
            self.code(0xC0 + symbol - 280, 8)

    def match(self, length: int, distance: int) -> None:
        code = max(i for i, (value, _) in enumerate(LENGTHS) if value <= length)
        self.symbol(257 + code)
        self.number(length - LENGTHS[code][0], LENGTHS[code][1])
        code = max(i for i, (value, _) in enumerate(DISTANCES) if value <= distance)
        self.code(code, 5)
        self.number(distance - DISTANCES[code][0], DISTANCES[code][1])

    def finish(self) -> bytes:
        self.number(0, 7)  # fill the last byte
        return bytes(self.done)


def _longest_match(data: bytes, here: int, places: list[int]) -> tuple[int, int]:
    """(length, distance) of the longest earlier copy of what stands here; (0, 0) if none."""
    best, distance = 0, 0
    most = min(LONGEST, len(data) - here)
    for place in reversed(places[-CANDIDATES:]):
        if here - place > FARTHEST:
            break
        length = 0
        while length < most and data[place + length] == data[here + length]:
            length += 1
        if length > best:
            best, distance = length, here - place
    return best, distance


def deflate(data: bytes) -> bytes:
    """The data as one block with fixed codes."""
    bits = Bits()
    bits.number(1, 1)  # the last block
    bits.number(1, 2)  # of fixed codes
    seen: dict[bytes, list[int]] = {}
    here = 0
    while here < len(data):
        length, distance = _longest_match(data, here, seen.get(data[here : here + SHORTEST], []))
        if length >= SHORTEST:
            bits.match(length, distance)
        else:
            length = 1
            bits.symbol(data[here])
        for place in range(here, here + length):
            seen.setdefault(data[place : place + SHORTEST], []).append(place)
        here += length
    bits.symbol(END_OF_BLOCK)
    return bits.finish()
