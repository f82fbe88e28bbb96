"""A keeper as it must not be: continuing_keeper.py OUTSIDE COMMAND [ARG ...]

It has connect(2) of the command, which runs in namespaces of its own, wait for it, and puts a
socket of the host's in the place of the caller's where the address is the one outside. But then the
caller's own call connects it: to whatever address is there by then.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys

from portwrap.kernel import seccomp
from portwrap.kernel.callers import Memory
from portwrap.kernel.machines import this_machine
from portwrap.kernel.seccomp_filter import Trap, install_filter
from portwrap.launch import namespaces

OUTSIDE = socket.inet_aton(sys.argv[1])
machine = this_machine()
assert machine is not None


def run(channel: socket.socket) -> None:
    """In the child: be the command."""
    assert machine is not None
    namespaces.enter_new(0)
    trap = Trap(machine.connect, argument=2, values=(16,))
    listener = install_filter(machine, [trap], True)
    rights = struct.pack("=i", listener)
    channel.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(listener)
    os.execvp(sys.argv[2], sys.argv[2:])


def serve(listener: int) -> None:
    """Until nobody is left."""
    memory = Memory(16)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while dict(poll.poll())[listener] & select.POLLIN:
        try:
            notification = seccomp.receive(listener)
            if memory.read(notification.thread, notification.arguments[1], 16)[4:8] == OUTSIDE:
                with socket.socket() as made:
                    seccomp.addfd(notification, made.fileno(), 0)
            seccomp.respond(notification, None)
        except OSError:
            continue


ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
child = os.fork()
if child == 0:
    run(theirs)
theirs.close()
ancillary = ours.recvmsg(1, socket.CMSG_SPACE(4))[1]
serve(struct.unpack("=i", ancillary[0][2])[0])
sys.exit(os.WEXITSTATUS(os.waitpid(child, 0)[1]))
