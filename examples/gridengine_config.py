"""jupyterhub_config.py for a cluster with Grid Engine: each user's server in a network of its own.

Change the three words below. The hub's environment must have SGE_ROOT and SGE_CELL, and its host
must be a submit host. Before the first start, run on a node, in a job, as a user:

    qrsh /nfs/bin/batchspawner-portwrap.pyz --check --hub http://hub.cluster.example:8081/hub/api
"""

# Adds to the hub's API what a session tells its port by.
import batchspawner  # noqa: F401

c = get_config()

# The file, in a directory that every node sees and only administrators can write to.
ARCHIVE = "/nfs/bin/batchspawner-portwrap.pyz"
# Where the nodes find jupyterhub-singleuser and batchspawner-singleuser, as new as the hub's own.
PROGRAMS = "/nfs/jupyterhub/bin"
# The hub's name or address as the nodes know it.
HUB = "hub.cluster.example"

# The one line that is about us.
c.Spawner.cmd = [ARCHIVE, "jupyterhub-singleuser"]

# ---- what a hub with Grid Engine needs in any case ---------------------------------------------

c.JupyterHub.spawner_class = "batchspawner.GridengineSpawner"
# The script is one for bash; a queue's own shell may be csh. Ask for time and memory here, too.
c.GridengineSpawner.req_options = "-S /bin/bash -l h_rt=8:00:00"
# Jobs start with a PATH of Grid Engine's.
c.GridengineSpawner.req_prologue = f"export PATH={PROGRAMS}:$PATH"

# The sessions report to the hub from their nodes: its own side must not be on 127.0.0.1.
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_ip = HUB

# From the start of the job to the server's first answer: Python from a busy share is slow.
c.Spawner.http_timeout = 120

# The sessions are jobs: they outlive a restart of the hub, which finds them again.
c.JupyterHub.cleanup_servers = False
