"""jupyterhub_config.py for a cluster with Grid Engine: each user's server in a network namespace of
its own.

Change the three values below. The hub's environment needs SGE_ROOT and SGE_CELL, and its host must
be a submit host. Before the first start, run on a node, in a job, as a user:

    qrsh /nfs/bin/batchspawner-portwrap.pyz --check --hub http://hub.cluster.example:8081/hub/api
"""

# Registers the API handler through which jobs report their port.
import batchspawner  # noqa: F401

c = get_config()

# The file, in a directory that every node sees and only administrators can write to.
ARCHIVE = "/nfs/bin/batchspawner-portwrap.pyz"
# Where the nodes find jupyterhub-singleuser and batchspawner-singleuser, as new as the hub's own.
PROGRAMS = "/nfs/jupyterhub/bin"
# The hub's name or address as the nodes know it.
HUB = "hub.cluster.example"

# The only line about batchspawner-portwrap.
c.Spawner.cmd = [ARCHIVE, "jupyterhub-singleuser"]

# ---- needed for any hub with Grid Engine --------------------------------------------------------

c.JupyterHub.spawner_class = "batchspawner.GridengineSpawner"
# The script is for bash; a queue's own shell may be csh. Request time and memory here, too.
c.GridengineSpawner.req_options = "-S /bin/bash -l h_rt=8:00:00"
# Jobs start with Grid Engine's PATH.
c.GridengineSpawner.req_prologue = f"export PATH={PROGRAMS}:$PATH"

# The sessions report to the hub from their nodes: its API must not listen on 127.0.0.1 only.
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_ip = HUB

# From the start of the job to the server's first answer: Python from a busy share is slow.
c.Spawner.http_timeout = 120

# The sessions are jobs: they outlive a restart of the hub, which finds them again.
c.JupyterHub.cleanup_servers = False
