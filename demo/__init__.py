"""A JupyterHub with batchspawner on this one machine, to see batchspawner-portwrap work.

`./demo.sh` runs it; the end-to-end tests use the same hub (`demo.rig`) for theirs.
"""
