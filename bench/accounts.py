"""Who runs what is measured."""

from __future__ import annotations

import os
import pwd
import signal
from typing import NamedTuple


class Account(NamedTuple):
    """Who runs what is measured."""

    name: str
    uid: int
    gid: int
    home: str

    @classmethod
    def named(cls, name: str) -> Account:
        """The account of this name. Raises KeyError if there is none."""
        entry = pwd.getpwnam(name)
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)

    def become(self) -> None:
        """Turn this process into one of the account's, if it is root's."""
        if os.geteuid() == 0 and self.uid != 0:
            os.initgroups(self.name, self.gid)
            os.setgid(self.gid)
            os.setuid(self.uid)


def fork() -> int:
    """os.fork, which runs hooks in Python: an interrupt that came there would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return os.fork()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
