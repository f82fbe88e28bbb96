"""Starts the programs that it is asked for, with a socket as their standard input and output.

A request is one JSON list of words; the answer is the process number, and the other end of that
socket.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket

asker = socket.socket(fileno=0)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps


def spawn(words: list[str]) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    actions = [(os.POSIX_SPAWN_DUP2, number, target) for target in (0, 1, 2)]
    default = [signal.SIGCHLD]
    pid = os.posix_spawnp(words[0], words, os.environ, file_actions=actions, setsigdef=default)
    theirs.close()
    return pid, ours


while True:
    message = asker.recv(65536)
    if not message:
        os._exit(0)
    pid, channel = spawn(json.loads(message))
    rights = array.array("i", [channel.fileno()])
    asker.sendmsg([b"%d" % pid], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    channel.close()
