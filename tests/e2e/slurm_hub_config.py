"""jupyterhub_config.py of the cluster's hub: examples/slurm_config.py and what the tests choose."""

# ruff: noqa: F821
# mypy: disable-error-code="name-defined, unused-ignore"

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

c = get_config()

settings = json.loads(Path(os.environ["SLURM_HUB_SETTINGS"]).read_text())

c.JupyterHub.bind_url = settings["url"]
c.ConfigurableHTTPProxy.command = ["configurable-http-proxy"]
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 0}
c.JupyterHub.default_url = "/hub/home"  # who logs in starts nothing yet
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = settings["password"]
c.Authenticator.allowed_users = set(settings["users"])
c.JupyterHub.allow_named_servers = True

# ---- what a site has, with its own words in it ---------------------------------------------------

load_subconfig(settings["example"])

# ---- what the tests choose -----------------------------------------------------------------------

c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 120
c.Spawner.poll_interval = 2
c.Spawner.environment = {"JUPYTER_CONFIG_PATH": settings["server_config"]}


def choose(spawner: Any) -> None:
    """Have the options of a start, which batchspawner puts into its script, change these, too."""
    options = spawner.user_options
    if options.get("plain"):
        spawner.cmd = ["jupyterhub-singleuser"]
    else:
        archive, *server = c.Spawner.cmd
        inside = options.get("inside", [])  # variables that the server alone is to have
        spawner.cmd = [archive, *(["env", *inside] if inside else []), *server]
    spawner.environment = {**c.Spawner.environment, **options.get("environment", {})}


c.Spawner.pre_spawn_hook = choose
