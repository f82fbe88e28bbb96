"""jupyterhub_config.py of the cluster's hub, as a site with Slurm writes it."""

# ruff: noqa: F821
# mypy: disable-error-code="name-defined, unused-ignore"

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# Importing it adds the hub's API by which a session tells its port.
import batchspawner  # type: ignore  # noqa: F401

c = get_config()

settings = json.loads(Path(os.environ["SLURM_HUB_SETTINGS"]).read_text())

c.JupyterHub.bind_url = settings["url"]
c.JupyterHub.hub_bind_url = settings["hub_url"]
c.JupyterHub.hub_connect_url = settings["hub_url"]
c.ConfigurableHTTPProxy.command = ["configurable-http-proxy"]
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 0}
c.JupyterHub.default_url = "/hub/home"  # who logs in starts nothing yet
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = settings["password"]
c.Authenticator.allowed_users = set(settings["users"])
c.JupyterHub.allow_named_servers = True

# A hub that ends leaves the servers alone, and finds them again.
c.JupyterHub.cleanup_servers = False

# ---- what a site with Slurm has ----------------------------------------------------------------

c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"
c.Spawner.start_timeout = 60
c.Spawner.http_timeout = 60
c.Spawner.poll_interval = 2
# sudo and sbatch reset PATH: the script sets it, and srun passes on what is named.
c.SlurmSpawner.req_prologue = f"export PATH={settings['path']}"
c.SlurmSpawner.req_keepvars_extra = "PATH"
c.Spawner.environment = {"JUPYTER_CONFIG_PATH": settings["server_config"]}

# ---- what it adds for us -----------------------------------------------------------------------

c.Spawner.cmd = [settings["archive"], "jupyterhub-singleuser"]

# ---- what the tests choose ---------------------------------------------------------------------


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
