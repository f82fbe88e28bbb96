"""The same hub, and everything between hub, proxy and sessions is encrypted (internal SSL)."""

# ruff: noqa: F821
# mypy: disable-error-code="name-defined, unused-ignore"

from __future__ import annotations

import json
import os
import pwd
import shutil
from pathlib import Path

from demo import rig
from demo.spawner import ProcessSpawner

load_subconfig("versions_config.py", str(rig.PROJECT / "tests" / "e2e"))
c = get_config()

settings = json.loads(Path(os.environ["PORTWRAP_DEMO_SETTINGS"]).read_text())
node = f"IP:{settings['node']}"


class SpawnerWithCertificates(ProcessSpawner):  # type: ignore[misc,unused-ignore]
    """Gives a session its certificates, as a site does over the shared file system."""

    async def move_certs(self, paths: dict[str, str]) -> dict[str, str]:
        """Copy the files into the home directory; returns where they are there."""
        entry = pwd.getpwnam(self.user.name)
        directory = Path(self.homes) / self.user.name / ".certificates"
        directory.mkdir(mode=0o700, exist_ok=True)
        copies = {name: directory / Path(path).name for name, path in paths.items()}
        for name, path in paths.items():
            shutil.copyfile(path, copies[name])
        for path in (directory, *copies.values()):
            os.chown(path, entry.pw_uid, entry.pw_gid)
        return {name: str(path) for name, path in copies.items()}


c.JupyterHub.spawner_class = SpawnerWithCertificates
c.JupyterHub.internal_ssl = True
c.JupyterHub.internal_certs_location = f"{settings['run']}/hub/certificates"
c.JupyterHub.trusted_alt_names = [node]
c.Spawner.ssl_alt_names = [node]
c.JupyterHub.hub_bind_url = settings["hub_url"].replace("http:", "https:")
c.JupyterHub.hub_connect_url = c.JupyterHub.hub_bind_url
c.ConfigurableHTTPProxy.api_url = settings["proxy_api_url"].replace("http:", "https:")
