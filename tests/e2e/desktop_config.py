"""The demonstration's hub for both accounts."""

# ruff: noqa: F821
# mypy: disable-error-code="name-defined, unused-ignore"

from __future__ import annotations

import json
import os
from pathlib import Path

from demo import rig

load_subconfig("jupyterhub_config.py", str(rig.HERE))
c = get_config()

settings = json.loads(Path(os.environ["PORTWRAP_DEMO_SETTINGS"]).read_text())
c.Authenticator.allowed_users = {settings["owner"], settings["stranger"]}
