"""Where the programs are that a remedy names: to be run, or to be given a right."""

from __future__ import annotations

import os
import sys

NAME = "batchspawner-portwrap"
SINGLEUSER = "batchspawner-singleuser"


def own_path() -> str:
    """Where this program is: the archive, or the script that imported us."""
    place = os.path.abspath(__file__)
    if os.path.exists(place):
        return os.path.realpath(sys.argv[0])
    while not os.path.exists(place):  # inside the archive
        place = os.path.dirname(place)
    return os.path.realpath(place)


def check_program() -> str:
    """The program that has --check."""
    path = own_path()
    return path if os.path.basename(path).startswith(NAME) and os.access(path, os.X_OK) else NAME


def singleuser() -> str:
    """batchspawner-singleuser: the one that runs us in its process, or that a job would start; its
    name where it is not found."""
    with open("/proc/self/cmdline", "rb") as file:
        words = file.read().split(b"\0")
    running = [os.fsdecode(word) for word in words[:2] if word.endswith(SINGLEUSER.encode())]
    folders = [
        *os.environ.get("PATH", os.defpath).split(os.pathsep),
        os.path.dirname(sys.executable),
    ]
    for path in [*running, *(os.path.join(folder, SINGLEUSER) for folder in folders)]:
        if os.path.isabs(path) and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return SINGLEUSER
