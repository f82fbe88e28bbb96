"""jupyterhub_config.py for a cluster with Slurm: each user's server in a network namespace of its
own.

Change the four values below. Before the first start, run on a node, in a job, as a user:

    srun /nfs/bin/batchspawner-portwrap.pyz --check --hub http://hub.cluster.example:8081/hub/api
"""

# Registers the API handler through which jobs report their port.
import batchspawner  # noqa: F401

c = get_config()

# The file, in a directory that every node sees and only administrators can write to.
ARCHIVE = "/nfs/bin/batchspawner-portwrap.pyz"
# Where the nodes find jupyterhub-singleuser and batchspawner-singleuser, as new as the hub's own.
PROGRAMS = "/nfs/jupyterhub/bin"
# The hub's name or address as the nodes know it, and the partition of the sessions.
HUB = "hub.cluster.example"
PARTITION = "jupyter"

# The only line about batchspawner-portwrap.
c.Spawner.cmd = [ARCHIVE, "jupyterhub-singleuser"]

# Options; `batchspawner-portwrap.pyz --help` lists them. This one accepts connections to a session
# only from the hub's host. It implies the relay.
# c.Spawner.environment = {"PORTWRAP_ALLOW_FROM": "192.0.2.10"}

# ---- needed for any hub with Slurm --------------------------------------------------------------

c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"
c.SlurmSpawner.req_partition = PARTITION
c.SlurmSpawner.req_runtime = "8:00:00"
c.SlurmSpawner.req_memory = "4G"
c.SlurmSpawner.req_nprocs = "2"

# The sessions report to the hub from their nodes: its API must not listen on 127.0.0.1 only.
c.JupyterHub.hub_ip = "0.0.0.0"
c.JupyterHub.hub_connect_ip = HUB

# sudo and sbatch reset PATH. The prologue restores it, and srun passes it on.
c.SlurmSpawner.req_prologue = f"export PATH={PROGRAMS}:$PATH"
c.SlurmSpawner.req_keepvars_extra = "PATH"

# From the start of the job to the server's first answer: Python from a busy share is slow.
c.Spawner.http_timeout = 120

# The sessions are jobs: they outlive a restart of the hub, which finds them again.
c.JupyterHub.cleanup_servers = False
