"""The rows of the table of remedies that only `--check` needs (`remedies.py` has the others)."""

from __future__ import annotations

from .diagnostic import Diagnostic
from .errors import Failure

CHECKS = (
    Diagnostic(
        Failure.PROGRAM_WRITABLE,
        "/…/batchspawner-portwrap.pyz: everybody can write to it",
        "Whoever can change the program, or a directory above it, chooses what its users' sessions"
        " run.",
        "Let only root and its owner write there: --check prints the commands.",
    ),
    Diagnostic(
        Failure.GPU_MEMORY,
        "/dev/nvidia0 without /dev/nvidia-uvm",
        "CUDA needs /dev/nvidia-uvm, and nvidia-modprobe, which makes it where it is missing, is"
        " setuid: it cannot do so in a session.",
        "Make it at boot (nvidia-persistenced) or in a prolog.",
        "nvidia-modprobe -u -c 0",
    ),
    Diagnostic(
        Failure.RELAYED,
        "relay (…)",
        "Native forwarding is not possible, for the reason given: the keeper relays.",
        "Sessions work. Native forwarding needs Linux 5.9 or newer and no other seccomp listener.",
    ),
    Diagnostic(
        Failure.BY_DRIVER,
        "slirp4netns (…)",
        "Native outbound is not possible, for the reason given: the network driver is used.",
        "Sessions work. Native outbound needs Linux 5.19 or newer and no other seccomp listener.",
    ),
    Diagnostic(
        Failure.NAMES,
        "no nameserver answers in the sandbox",
        "Names cannot be resolved in the sandbox: pip, git and a hub given by name will fail.",
        "Check /etc/resolv.conf: one of its nameservers must be reachable from this node.",
    ),
    Diagnostic(
        Failure.SSH_OWNER,
        "ssh: Bad owner or permissions on /etc/ssh/ssh_config.d/…",
        "OpenSSH rejects root-owned included files because root appears as nobody in the sandbox.",
        "Work around it with GIT_SSH_COMMAND='ssh -F none', or -F with a file of the user's own.",
    ),
    Diagnostic(
        Failure.SSH,
        "ssh: …",
        "ssh cannot read its configuration in the sandbox.",
        "'ssh -G localhost' prints the error, outside the sandbox too where the file is wrong.",
    ),
    Diagnostic(
        Failure.API_LOOPBACK,
        "the hub http://127.0.0.1:8081/hub/api does not answer: Connection refused",
        "No program on this node listens there.",
        "Start the hub here, or give the URL at which nodes reach it.",
    ),
    Diagnostic(
        Failure.API_ANSWER,
        "… is not the API of JupyterHub: …",
        "Another program answers at this URL, or its path is wrong.",
        "The port is that of the hub's API, 8081 by default, and the path /hub/api behind"
        " c.JupyterHub.base_url.",
    ),
    Diagnostic(
        Failure.API_SANDBOX,
        "the hub … answers this node, but not the sandbox: …",
        "The network driver cannot reach it, for example because it has IPv6 only.",
        "Try --network pasta.",
    ),
    Diagnostic(
        Failure.HIDDEN,
        "the hub … answers this node, but not the sandbox: … (10.0.2.7 is in the sandbox's own"
        " network)",
        "The network driver uses that network in the sandbox. A session avoids the networks of"
        " addresses that it knows at its start, but it does not query nameservers then.",
        "List the hub in the hosts file of each node, or use --network pasta.",
        "echo {subject} >>/etc/hosts",
    ),
    Diagnostic(
        Failure.SUBNETS,
        "slirp4netns hides 192.168.202.0/24 from the session, and this node's …",
        "This node has routes to every network that a session could use for itself, or needs"
        " hosts there.",
        "Use --network pasta, which hides none.",
    ),
    Diagnostic(
        Failure.API,
        "the hub https://… does not answer: [SSL…",
        "The program there does not use TLS, or has a certificate that this Python does not trust.",
        "Without TLS the URL begins with http://.",
        answer="SSL",
    ),
    Diagnostic(
        Failure.API,
        "the hub … does not answer: Name or service not known",
        "This node does not know the name of the hub's host.",
        "'getent hosts {subject}' must print its address. Set c.JupyterHub.hub_connect_ip to a name"
        " that nodes know, or to a numeric address.",
        answer="[Nn]ame|address associated",
    ),
    Diagnostic(
        Failure.API,
        "the hub … does not answer: Connection refused",
        "No program listens at this address and port: by default the hub's API is at 127.0.0.1"
        " only, port 8081.",
        "Set c.JupyterHub.hub_ip = '0.0.0.0', and check the port.",
        answer="Connection refused",
    ),
    Diagnostic(
        Failure.API,
        "the hub … does not answer: timed out",
        "The server must reach the hub's API from the node, but the node cannot.",
        "Check c.JupyterHub.hub_connect_ip, and firewalls between node and hub.",
    ),
    Diagnostic(
        Failure.APPARMOR_PROGRAM,
        "batchspawner-singleuser: not found on PATH",
        "Sessions of batchspawner run in this program, so it needs a profile.",
        "Give its path: {check} --check --apparmor /path/of/batchspawner-singleuser",
    ),
)
