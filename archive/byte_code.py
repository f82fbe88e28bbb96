"""Compile the modules for the Python that runs this, to the same bytes each time.

Usage: PYTHON -s -S -X no_debug_ranges byte_code.py SOURCES OUTPUT

OUTPUT gets a folder for the cache tag of this Python, where archive/__main__.py looks for it, and
the byte code of __main__.py itself, of which there is room for one Python's: each Python passes
over that of another. What is there already stays. Prints the tag and the version that compiled.
PYTHONHASHSEED must be set: before Python 3.11 the order of a set in byte code depends on it.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import sys
from pathlib import Path
from types import CodeType
from typing import Iterator

UNCHECKED_HASH = 0b01
"""Flags of the header: a hash of the source, and nobody compares it at an import (PEP 552)."""
OPTIMIZE = 2
"""No assertions and no docstrings, as with -OO."""
START = Path(__file__).with_name("__main__.py")


def parts(code: CodeType) -> Iterator[object]:
    """Every constant and every name of a module's code."""
    for thing in (code.co_consts, code.co_names, code.co_varnames, code.co_name):
        yield from flat(thing)
    yield from flat((code.co_freevars, code.co_cellvars, getattr(code, "co_qualname", "")))


def flat(thing: object) -> Iterator[object]:
    yield thing
    if isinstance(thing, CodeType):
        yield from parts(thing)
    elif isinstance(thing, (tuple, frozenset)):
        for each in thing:
            yield from flat(each)


def compiled(source: bytes, name: str) -> bytes:
    """What a .pyc file of this source holds."""
    code = compile(source, sys.intern(name), "exec", dont_inherit=True, optimize=OPTIMIZE)
    # marshal marks what has more than one reference, and whether a string has one depends on what
    # else this process knows. So everything gets one more.
    kept = list(flat(code))
    data = marshal.dumps(code)
    del kept
    header = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH.to_bytes(4, "little")
    return header + importlib.util.source_hash(source) + data


def compile_tree(sources: Path, folder: Path) -> None:
    for path in sorted(sources.rglob("*.py")):
        name = path.relative_to(sources)
        target = (folder / name).with_suffix(".pyc")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(compiled(path.read_bytes(), str(name)))


def main() -> None:
    sources, output = map(Path, sys.argv[1:])
    tag = sys.implementation.cache_tag
    if not tag or not os.environ["PYTHONHASHSEED"].isdigit():
        raise SystemExit("no byte code: a Python without a cache tag, or a random seed of hashes")
    if not (output / f"site-packages-{tag}").exists():
        compile_tree(sources, output / f"site-packages-{tag}")
        start = output / f"{START.name}c"
        if not start.exists():
            start.write_bytes(compiled(START.read_bytes(), START.name))
        print(f"{tag} (compiled by Python {sys.version.split()[0]})")


if __name__ == "__main__":
    main()
