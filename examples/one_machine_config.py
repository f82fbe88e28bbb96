"""jupyterhub_config.py for one machine that many people share, without a batch system.

The hub runs as root and starts each server as its user. Other users cannot connect to what the
server starts, such as RStudio or a dashboard.
"""

c = get_config()

# The file, in a directory that only administrators can write to.
ARCHIVE = "/usr/local/bin/batchspawner-portwrap.pyz"

# The only line about batchspawner-portwrap. It works with every Spawner that starts local programs.
c.Spawner.cmd = [ARCHIVE, "jupyterhub-singleuser"]

# JupyterHub's own. The hub stays on 127.0.0.1: its API is forwarded into the sandbox automatically.
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"

# Or, with jupyterhub-systemdspawner, each server in its own service:
# c.JupyterHub.spawner_class = "systemd"
# c.SystemdSpawner.isolate_devices = False  # true hides /dev/net/tun from the network driver
# It expands braces itself: in c.Spawner.cmd write {{guest-port}} there.
