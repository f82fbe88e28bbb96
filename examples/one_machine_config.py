"""jupyterhub_config.py for one machine that many people share, without a batch system.

The hub runs as root and starts each server as its user. What the server starts besides, such as
RStudio or a dashboard, is out of the other users' reach.
"""

c = get_config()

# The file, in a directory that only administrators can write to.
ARCHIVE = "/usr/local/bin/batchspawner-portwrap.pyz"

# The one line that is about us. It goes with every Spawner that starts programs on a machine.
c.Spawner.cmd = [ARCHIVE, "jupyterhub-singleuser"]

# JupyterHub's own. The hub stays on 127.0.0.1: the port of its API answers inside by itself.
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"

# Or, with jupyterhub-systemdspawner, each server in a service of its own:
# c.JupyterHub.spawner_class = "systemd"
# c.SystemdSpawner.isolate_devices = False  # true hides /dev/net/tun from network drivers
# It takes words in braces for its own: in c.Spawner.cmd write {{guest-port}} there.
