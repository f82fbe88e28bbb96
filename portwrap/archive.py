"""The archive, if this package runs from one: how modules are imported from it.

It has a folder of sources, and byte code in one piece for each Python that it was built for
(`bundle.py`), which `archive/__main__.py` uses if there is some for this one. Byte code is of those
modules that a session needs (`archive/byte_code.py`); the sources have the others.
"""

from __future__ import annotations

import os
import sys
from zipimport import zipimporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

PACKAGE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(PACKAGE)
"""The entry of sys.path that this package comes from."""


class Importer(zipimporter):
    """Imports from inside an archive, and reads and compiles each module once.

    zipimport does it twice, the first time only to tell where the module is: a fifth of a start.
    """

    def get_filename(self, fullname: str) -> str:
        module = self.prefix + fullname.rpartition(".")[2]
        return f"{self.archive}/{module}{'/__init__' if self.is_package(fullname) else ''}.py"

    def get_code(self, fullname: str) -> CodeType:
        """As byte code is: without docstrings. (Python 3.10; before, zipimport does not ask us.)"""
        path = self.get_filename(fullname)
        return compile(self.get_data(path), path, "exec", dont_inherit=True, optimize=2)


def importer_of(path: str) -> Importer:
    """An entry of sys.path_hooks, for our own modules only."""
    if not f"{path}/".startswith(f"{TREE}/"):
        raise ImportError(path)
    return Importer(path)


def compile_once() -> None:
    """Import the rest of this package, which is inside an archive, in this way."""
    sys.path_hooks.insert(0, importer_of)
    for path in [TREE, *(path for path in sys.path_importer_cache if path.startswith(PACKAGE))]:
        sys.path_importer_cache.pop(path, None)
