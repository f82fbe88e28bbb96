"""jupyterhub_config.py of the hub in the virtual machine, which starts each server as a service."""

# ruff: noqa: F821
# mypy: disable-error-code="name-defined, unused-ignore"

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATE = Path("/run/hub")

c = get_config()

c.JupyterHub.spawner_class = "systemd"
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.db_url = f"sqlite:///{STATE}/hub.sqlite"
c.JupyterHub.cookie_secret_file = f"{STATE}/cookie_secret"
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 0}
c.JupyterHub.services = [{"name": "tests", "api_token": "the-token-of-the-tests"}]
scopes = ["admin:users", "admin:servers", "access:servers"]
c.JupyterHub.load_roles = [{"name": "tests", "scopes": scopes, "services": ["tests"]}]
c.ConfigurableHTTPProxy.should_start = False  # the hub would wait for ten seconds only
c.ConfigurableHTTPProxy.auth_token = "the-token-of-the-proxy"
c.SystemdSpawner.unit_name_template = "jupyter-{USERNAME}"  # as The Littlest JupyterHub has it
c.Spawner.start_timeout = c.Spawner.http_timeout = 900


def configure(spawner: Any) -> None:
    """As the test wants it: a hub of its own would take long to start here."""
    chosen = json.loads((STATE / "settings.json").read_text())
    for name in spawner.traits(config=True):
        if name in chosen:
            setattr(spawner, name, chosen[name])
        elif name in ALL:
            setattr(spawner, name, spawner.trait_defaults(name))


ALL = json.loads((STATE / "all.json").read_text())
c.Spawner.pre_spawn_hook = configure
