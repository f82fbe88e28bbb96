"""portwrap: run a command in a network of its own, with one port of the host leading in.

`launch` is the whole story; read `launching.py` first.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .errors import PortwrapError
    from .launching import Sandbox, launch

BEGAN = time.monotonic()
"""When this program began, or a millisecond later: seconds of the monotonic clock."""
__version__ = "0.1.0"
__all__ = ["PortwrapError", "Sandbox", "__version__", "launch"]


def __getattr__(name: str) -> object:
    """The names above, once they are asked for: the keeper starts before all is loaded."""
    if name not in __all__:
        raise AttributeError(name)
    from . import errors, launching

    return getattr(errors if name == "PortwrapError" else launching, name)
