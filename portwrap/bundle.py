"""Imports from byte code of all modules that a session needs, in one piece of the archive.

zipimport takes twice as long: it opens the archive for each module, and reads its list of contents
first. The piece has, behind a head (`archive/byte_code.py`), the code of this module itself, which
so can run before anything of ours is imported, and then that of the others.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.machinery import ModuleSpec
    from types import ModuleType

HEAD = 8
"""Bytes in front of what finds the modules: a magic number, and its size."""


class Bundle:
    """A finder and loader of modules (importlib.abc)."""

    def __init__(self, index: Mapping[str, tuple[bool, int, int]], sources: str) -> None:
        self.index = index  # of each module whether it is a package, its place and its size
        self.sources = sources  # where the other modules are, or nothing
        self.content = b""
        self.descriptor = -1  # of a file with this content, if it is not in memory
        self.start = 0  # of the modules in it

    def read(self, start: int, size: int) -> bytes:
        """What is there."""
        if self.descriptor < 0:
            return self.content[start : start + size]
        return os.pread(self.descriptor, size, start)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module of this name, if it is here."""
        if name not in self.index:
            return None
        is_package = self.index[name][0]
        place = f"{self.sources}/{name.replace('.', '/')}"
        # its class, without importing where that is
        spec: ModuleSpec = type(sys.__spec__)(name, self, is_package=is_package)  # type: ignore
        spec.origin = f"{place}/__init__.py" if is_package else f"{place}.py"
        spec.has_location = True  # so that __file__ tells it
        if is_package and self.sources and spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(place)
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """As it is made by default."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code."""
        _, place, size = self.index[module.__name__]
        exec(marshal.loads(self.read(self.start + place, size)), module.__dict__)

    def everything(self) -> bytes:
        """The whole content."""
        if self.descriptor < 0:
            return self.content
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)


def install(index: Mapping[str, tuple[bool, int, int]], content: bytes | int, sources: str) -> None:
    """Import from this content, or a descriptor of it. Finders that other programs have put first
    stay first."""
    bundle = Bundle(index, sources)
    if isinstance(content, bytes):
        bundle.content = content
    else:
        bundle.descriptor = content
    bundle.start = HEAD + int.from_bytes(bundle.read(4, 4), "little")
    names = [getattr(each, "__name__", "") for each in sys.meta_path]
    place = names.index("PathFinder") if "PathFinder" in names else len(names)
    sys.meta_path.insert(place, bundle)
