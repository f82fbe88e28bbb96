"""The hub of the demonstration. The lines that a site takes over stand at the end."""

# ruff: noqa: F821
# mypy: disable-error-code="name-defined, unused-ignore"

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

# Importing it adds the hub's API by which a session tells its port.
import batchspawner  # type: ignore  # noqa: F401

from demo.rig import SYSTEM_PATH
from demo.spawner import ProcessSpawner

c = get_config()

settings = json.loads(Path(os.environ["PORTWRAP_DEMO_SETTINGS"]).read_text())
run = Path(settings["run"])
PLAIN = ["jupyterhub-singleuser"]

# The public side is for browsers on this machine. The hub's own side is for the sessions: from
# inside a sandbox 127.0.0.1 is the sandbox itself, so this is an address of the machine.
c.JupyterHub.bind_url = settings["url"]
c.JupyterHub.hub_bind_url = settings["hub_url"]
c.JupyterHub.hub_connect_url = settings["hub_url"]
c.JupyterHub.db_url = f"sqlite:///{run}/hub/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = f"{run}/hub/cookie_secret"
c.ConfigurableHTTPProxy.command = ["configurable-http-proxy"]
c.ConfigurableHTTPProxy.api_url = settings["proxy_api_url"]
c.ConfigurableHTTPProxy.pid_file = f"{run}/hub/proxy.pid"

# A start is reported as it goes on, not only once it took long.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}

# One password, new at every start: who knows it runs programs as the owner's account.
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = settings["password"]
c.Authenticator.allowed_users = set(settings["users"])

c.JupyterHub.spawner_class = ProcessSpawner
c.ProcessSpawner.batch_command = shlex.join(
    ["/usr/bin/python3", f"{run}/bin/batch.py", "--jobs", f"{run}/jobs", "--node", settings["node"]]
)
c.ProcessSpawner.homes = f"{run}/home"
c.ProcessSpawner.exec_prefix = "runuser -u {username} --" if os.geteuid() == 0 else ""
c.ProcessSpawner.start_timeout = 60
c.ProcessSpawner.http_timeout = settings["http_timeout"]
c.ProcessSpawner.environment = {
    "PATH": f"{settings['root']}/hub-venv/bin:{SYSTEM_PATH}",
    "JUPYTER_CONFIG_PATH": f"{run}/etc/jupyter",
}
if settings["default_url"]:
    c.Spawner.default_url = settings["default_url"]

c.Spawner.options_form = """
<p><label><input type="radio" name="sandbox" value="yes" checked>
in a sandbox, as <code>batchspawner-portwrap</code> makes it</label></p>
<p><label><input type="radio" name="sandbox" value="no">
without one, for comparison: any account on this machine can reach your applications</label></p>
"""


def options_from_form(form: dict[str, list[str]]) -> dict[str, Any]:
    """What the form above says, in the words of `choose_command`."""
    return {"sandbox": form.get("sandbox", ["yes"])[0] != "no"}


def choose_command(spawner: Any) -> None:
    """Leave the sandbox out where that was asked for."""
    if not spawner.user_options.get("sandbox", True):
        spawner.cmd = PLAIN
    else:
        spawner.cmd = SANDBOXED


c.Spawner.options_from_form = options_from_form
c.Spawner.pre_spawn_hook = choose_command

# ---- what a site adds to its own jupyterhub_config.py ----------------------------------------

SANDBOXED = [settings["archive"], "jupyterhub-singleuser"]
c.Spawner.cmd = SANDBOXED
