"""portwrap: run a command in a network of its own, with one port of the host leading in.

`launch` is the whole story; read `launching.py` first.
"""

from __future__ import annotations

from .errors import PortwrapError
from .launching import Sandbox, launch

__version__ = "0.1.0"
__all__ = ["PortwrapError", "Sandbox", "__version__", "launch"]
