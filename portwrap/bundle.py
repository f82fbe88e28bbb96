"""Imports from byte code of all modules that a session needs, in one piece of the archive.

zipimport takes twice as long: it opens the archive for each module, and reads its list of contents
first. The piece begins with the code of this module, so that this can run before anything of ours
is imported (`archive/byte_code.py`, `archive/__main__.py`).
"""

import marshal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Optional

HEAD = 8
"""Bytes in front of the code of this module and the index: a magic number, and their length."""


class Bundle:
    """A finder and loader of modules (importlib.abc)."""

    def __init__(
        self,
        index: "Mapping[str, tuple[bool, int, int]]",
        read: "Callable[[int, int], bytes]",
        sources: str,
        content: bytes = b"",
    ) -> None:
        self.index = index  # whether it is a package, the place and the size of each module
        self.read = read
        self.sources = sources  # where the other modules are
        self.content = content  # all of it, where it is in memory

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> "Optional[ModuleSpec]":
        if name not in self.index:
            return None
        is_package = self.index[name][0]
        place = f"{self.sources}/{name.replace('.', '/')}"
        # importlib.machinery, where this class has its name, would be one more module
        spec = type(sys.__spec__)(name, self, is_package=is_package)  # type: ignore[arg-type]
        spec.origin = f"{place}/__init__.py" if is_package else f"{place}.py"
        spec.has_location = True  # so that __file__ tells it
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(place)
        return spec

    def create_module(self, spec: "ModuleSpec") -> None:
        return None

    def exec_module(self, module: "ModuleType") -> None:
        _, start, size = self.index[module.__name__]
        exec(marshal.loads(self.read(start, size)), module.__dict__)

    def install(self) -> "Bundle":
        """Import from here what is here. Finders that other programs have put first stay first."""
        names = [getattr(each, "__name__", "") for each in sys.meta_path]
        place = names.index("PathFinder") if "PathFinder" in names else len(names)
        sys.meta_path.insert(place, self)  # type: ignore[arg-type]
        return self

    def close(self) -> None:
        """Nothing more is imported from here."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
        self.index = {}
        self.content = b""
