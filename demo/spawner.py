"""The batchspawner class for the batch system in `batch.py`."""

# Checked with the hub's packages beside mypy or without them.
# mypy: disable-error-code="unused-ignore"

from __future__ import annotations

import shlex
from pathlib import Path

from batchspawner import BatchSpawnerRegexStates  # type: ignore
from batchspawner.batchspawner import UserEnvMixin  # type: ignore
from traitlets import Unicode  # type: ignore


class ProcessSpawner(UserEnvMixin, BatchSpawnerRegexStates):  # type: ignore
    """Each job is a process on this machine; submit, query and cancel are processes as well."""

    batch_script = Unicode("#!/bin/bash\n{{prologue}}\nexec {{cmd}}\n").tag(config=True)
    batch_command = Unicode(help="`batch.py` with its options").tag(config=True)
    homes = Unicode(help="the directory with the sessions' home directories").tag(config=True)

    state_pending_re = Unicode("^PENDING").tag(config=True)
    state_running_re = Unicode("^RUNNING").tag(config=True)
    state_exechost_re = Unicode(r"(\S+)$").tag(config=True)

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.batch_submit_cmd = (
            f"{self.batch_command} submit --home {{homedir}} --export {{keepvars}}"
        )
        self.batch_query_cmd = f"{self.batch_command} query {{job_id}}"
        self.batch_cancel_cmd = f"{self.batch_command} cancel {{job_id}}"

    def cmd_formatted_for_batch(self) -> str:
        """The command line in the job's script; paths may have spaces."""
        return shlex.join([self.batchspawner_singleuser_cmd, *self.cmd, *self.get_args()])

    def get_req_subvars(self) -> dict[str, str]:
        """The variables of the templates; the home directory is one that goes with the hub."""
        variables: dict[str, str] = super().get_req_subvars()
        variables["homedir"] = str(Path(self.homes) / self.user.name)
        return variables
