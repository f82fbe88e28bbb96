"""A hub and its users' servers on one machine: examples/one_machine_config.py, and what the tests
choose. Everything is on 127.0.0.1, JupyterHub's default, and there is no batch system."""

# ruff: noqa: F821
# mypy: disable-error-code="name-defined, unused-ignore"

from __future__ import annotations

import json
import os

c = get_config()

settings = json.loads(os.environ["PORTWRAP_TEST_SETTINGS"])
run = settings["run"]

load_subconfig(settings["example"])

c.JupyterHub.bind_url = settings["url"]
c.JupyterHub.hub_port = settings["hub_port"]  # its address is 127.0.0.1, JupyterHub's default
c.JupyterHub.db_url = f"sqlite:///{run}/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = f"{run}/cookie_secret"
c.ConfigurableHTTPProxy.api_url = settings["proxy_api_url"]
c.ConfigurableHTTPProxy.pid_file = f"{run}/proxy.pid"
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = settings["password"]
c.Authenticator.allowed_users = {settings["owner"]}
c.Spawner.environment = {
    "PATH": os.environ["PATH"],
    **{
        name: f"{settings['home']}/{name.lower()}"
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    },
}
c.Spawner.notebook_dir = settings["home"]
c.Spawner.http_timeout = 90  # of a busy machine

archive, *server = c.Spawner.cmd
if settings["kind"] == "plain":
    c.Spawner.cmd = server
elif settings["kind"] == "localhost":
    c.Spawner.ip = "localhost"
elif settings["kind"] == "relay":
    c.Spawner.cmd = [archive, "--forward", "relay", *server]
