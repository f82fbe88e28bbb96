"""Compile the modules for the Python that runs this, to the same bytes each time.

Usage: PYTHON -s -S -X no_debug_ranges byte_code.py SOURCES OUTPUT

OUTPUT gets one file of all modules (`portwrap/bundle.py`), named after the cache tag of this
Python, where archive/__main__.py looks for it, and the byte code of __main__.py itself, of which
there is room for one Python's: each Python passes over that of another. What is there already
stays. Prints the tag and the version that compiled.
PYTHONHASHSEED must be set: before Python 3.11 the order of a set in byte code depends on it.

A start of a session needs nothing but byte code. Other modules have none: it would be larger than
their sources, where they are found as well. Byte code is without what takes room and serves nobody
at run time: annotations, and in Python 3.11 and newer a line for each single instruction, and the
full names of functions.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import os
import re
import sys
from pathlib import Path
from types import CodeType
from typing import Iterator

UNCHECKED_HASH = 0b01
"""Flags of the header: a hash of the source, and nobody compares it at an import (PEP 552)."""
OPTIMIZE = 2
"""No assertions and no docstrings, as with -OO."""
NO_COLUMNS, NO_LOCATION = 13, 15
"""Kinds of entries of co_linetable."""
START = Path(__file__).with_name("__main__.py")
NOT_AT_A_START = re.compile(
    r"portwrap/((__main__|archive|bundle)\.py|check/|cli/(byte_code|help|mistakes|version)\.py"
    r"|diagnostics/(?!(__init__|errors|log)\.py)"
    r"|kernel/fatal_calls\.py|launch/(drivers/direct|ssh_cover)\.py)"
)
"""Modules that no session imports, or few do, in the process that has the sources as well. The
keeper has byte code only."""
LOADER = "portwrap/bundle.py"
BYTE_CODE = "byte-code-%s.bin"
"""The name of the file for a cache tag."""
NO_REFERENCES = 2
"""A version of marshal's format, in which nothing depends on who else refers to a value."""


class Untyped(ast.NodeTransformer):
    """Takes out of a module what only type checkers read."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        return passed(node) if node.module == "__future__" else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse or passed(node)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return passed(node)
        return self.generic_visit(ast.copy_location(ast.Assign([node.target], node.value), node))


def passed(node: ast.stmt) -> ast.Pass:
    """Nothing, in the place of this."""
    return ast.copy_location(ast.Pass(), node)


def shortened(code: CodeType) -> CodeType:
    """Without what only takes room: a line for each instruction where one for several would do, and
    the full names of functions (Python 3.11)."""
    if sys.version_info < (3, 11):
        return code
    consts = (shortened(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    code = code.replace(co_consts=tuple(consts), co_qualname=code.co_name)
    short = code.replace(co_linetable=location_table(code))
    return short if lines_of(short) == lines_of(code) else code


def lines_of(code: CodeType) -> list[tuple[int, int | None]]:
    """The line of each instruction, in units of code: how many in a row have it."""
    found: list[tuple[int, int | None]] = []
    for start, end, line in code.co_lines():
        units = (end - start) // 2
        if found and found[-1][1] == line:
            units += found.pop()[0]
        found.append((units, line))
    return found


def location_table(code: CodeType) -> bytes:
    """The lines of a code object as co_linetable (InternalDocs/code_objects.md of CPython)."""
    table = bytearray()
    last = code.co_firstlineno
    for units, line in lines_of(code):
        for start in range(0, units, 8):
            kind = NO_LOCATION if line is None else NO_COLUMNS
            table.append(0x80 | kind << 3 | min(units - start, 8) - 1)
            if line is not None:
                table += signed_varint(line - last)
                last = line
    return bytes(table)


def signed_varint(number: int) -> bytes:
    """Six bits in each byte, from the lowest on; the first of them is the sign."""
    rest = -number << 1 | 1 if number < 0 else number << 1
    digits = bytearray()
    while rest > 63:
        digits.append(0x40 | rest & 63)
        rest >>= 6
    return bytes((*digits, rest))


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
    tree = ast.fix_missing_locations(Untyped().visit(ast.parse(source)))
    name = sys.intern(name)
    code = shortened(compile(tree, name, "exec", dont_inherit=True, optimize=OPTIMIZE))
    # marshal marks what has more than one reference, and whether a string has one depends on what
    # else this process knows. So everything gets one more.
    kept = list(flat(code))
    data = marshal.dumps(code)
    del kept
    header = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH.to_bytes(4, "little")
    return header + importlib.util.source_hash(source) + data


def bundle(sources: Path) -> bytes:
    """All modules that a session imports, behind what finds them (`portwrap/bundle.py`)."""
    index: dict[str, tuple[bool, int, int]] = {}
    modules = b""
    names = [str(path.relative_to(sources)) for path in sorted(sources.rglob("*.py"))]
    for name in names:
        if not NOT_AT_A_START.match(name):
            code = code_of(sources, name)
            module = name[: -len(".py")].replace("/", ".")
            package, _, last = module.rpartition(".")
            is_package = last == "__init__"
            index[package if is_package else module] = (is_package, len(modules), len(code))
            modules += code
    head = marshal.dumps((code_of(sources, LOADER), index), NO_REFERENCES)
    return importlib.util.MAGIC_NUMBER + len(head).to_bytes(4, "little") + head + modules


def code_of(sources: Path, name: str) -> bytes:
    """The byte code of a module, without the header of a .pyc file."""
    return compiled((sources / name).read_bytes(), name)[16:]


def main() -> None:
    sources, output = map(Path, sys.argv[1:])
    tag = sys.implementation.cache_tag
    if not tag or not os.environ["PYTHONHASHSEED"].isdigit():
        raise SystemExit("no byte code: a Python without a cache tag, or a random seed of hashes")
    target = output / (BYTE_CODE % tag)
    if not target.exists():
        output.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bundle(sources))
        start = output / f"{START.name}c"
        if not start.exists():
            start.write_bytes(compiled(START.read_bytes(), START.name))
        print(f"{tag} (compiled by Python {sys.version.split()[0]})")


if __name__ == "__main__":
    main()
