"""The archive's compressor: zlib reads what it has written."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deflate import Code, deflate
from fuzzing import examples
from helpers import PROJECT


def inflated(compressed: bytes) -> bytes:
    """What zlib reads; nothing may be missing or stand behind it."""
    reader = zlib.decompressobj(-zlib.MAX_WBITS)
    data = reader.decompress(compressed) + reader.flush()
    assert reader.eof and not reader.unused_data
    return data


def of_zlib(data: bytes) -> bytes:
    writer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return writer.compress(data) + writer.flush()


@pytest.mark.parametrize(
    "data",
    [b"", b"a", b"aa", 1000 * b"ab", 100_000 * b"x", bytes(range(256)), bytes(2000)],
    ids=lambda data: f"{data[:2]!r}-{len(data)}",
)
def test_simple_texts(data: bytes) -> None:
    assert inflated(deflate(data)) == data


@examples(100)
@given(st.lists(st.sampled_from([b"\0", b"a", b"def ", b"return self.", 300 * b"-", b"\xff"])))
def test_any_text(words: list[bytes]) -> None:
    data = b"".join(words)
    assert inflated(deflate(data)) == data


@examples(100)
@given(st.binary(max_size=2000))
def test_any_bytes(data: bytes) -> None:
    assert inflated(deflate(data)) == data


@pytest.mark.parametrize("most", [7, 15])
def test_symbols_so_rare_that_their_codes_would_be_too_long(most: int) -> None:
    """Fibonacci's numbers make the deepest tree, of one bit less than there are symbols."""
    counts = [1, 1]
    while len(counts) < 22:
        counts.append(counts[-1] + counts[-2])
    lengths = Code(dict(enumerate(counts)), most).lengths
    assert len(lengths) == 22 and max(lengths.values()) <= most
    assert sum(2 ** (most - length) for length in lengths.values()) == 2**most  # none is wasted


@pytest.mark.parametrize("name", ["relay", "check", "messages"])
def test_our_texts_are_as_small_as_zlib_makes_them(name: str) -> None:
    data = (PROJECT / "portwrap" / f"{name}.py").read_bytes()
    compressed = deflate(data)
    assert inflated(compressed) == data
    assert len(compressed) < 1.02 * len(of_zlib(data))
