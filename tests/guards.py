"""The guards that `mutants.py` takes out: where each stands, what would be there without it, and
the tests that are nearest to it. `tests/unit/test_guards.py` looks whether the list is true."""

from __future__ import annotations

from typing import NamedTuple


class Guard(NamedTuple):
    """A guard of the product."""

    file: str
    name: str
    text: str
    without: str
    tests: str
    """Arguments of pytest, from the folder of the tests."""

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def taken_out_of(self, whole: str) -> str:
        """The content of its file without it. Raises ValueError if it is not there, or twice."""
        if whole.count(self.text) != 1:
            raise ValueError(f"{self}: its text is there {whole.count(self.text)} times")
        return whole.replace(self.text, self.without)


def of(file: str, *rows: tuple[str, str, str, str]) -> list[Guard]:
    """The guards of one file: the name of each, its text, what is there without it, and tests."""
    return [Guard(file, *row) for row in rows]


PORTS = "unit/test_ports.py namespaces/test_host_port.py -k"
KEEPER = "namespaces/test_keeper.py -k"
LIFETIME = "namespaces/test_lifetime.py -k"
NATIVE = "namespaces/test_native.py -k"
OUTBOUND = "namespaces/test_outbound.py -k"
EPHEMERAL = "namespaces/test_ephemeral_ports.py -k"
OWN_ADDRESS = "namespaces/test_own_address.py -k"
IDENTITY = "namespaces/test_identity.py -k"
REFUSALS = "namespaces/test_refusals.py -k"
RELAY = "namespaces/test_relay.py -k"
LIMITS = "namespaces/test_relay_limits.py -k"
NETWORK = "namespaces/test_network.py -k"
ROUTES = "namespaces/test_routes.py -k"
CHECK = "namespaces/test_check.py -k"
CASES = (
    "namespaces/test_connect_cases.py -k 'native- and not native-beside and not native-and-relay'"
)
KINDS = "namespaces/test_native.py -k 'every_kind and ({})'"
JOB = "namespaces/test_job_environment.py -k"
DIRECT = "namespaces/test_direct.py -k"
SSH = "namespaces/test_ssh_config.py -k"

PROTOCOL = of(
    "portwrap/protocol.py",
    (
        "descriptors that got lost are noticed (MSG_CTRUNC)",
        "if result & _socket.MSG_CTRUNC:",
        "if False:",
        "unit/test_protocol.py -k no_room",
    ),
    (
        "a message that was cut off is noticed (MSG_TRUNC)",
        "if mark not in (MORE, LAST) or result & _socket.MSG_TRUNC:",
        "if mark not in (MORE, LAST):",
        "unit/test_protocol.py -k part",
    ),
    (
        "a part that is none is refused",
        "if mark not in (MORE, LAST) or result & _socket.MSG_TRUNC:",
        "if result & _socket.MSG_TRUNC:",
        "unit/test_protocol.py -k part",
    ),
    (
        "the fields of a message have their shapes",
        "if not _fits(tuple(values), tuple(shape for _, shape in kind.FIELDS)):",
        "if False:",
        "unit/test_protocol.py -k malformed",
    ),
    (
        "a message that is not expected is refused",
        "(kind for kind in expected if kind.__name__ == name)",
        "(kind for kind in Message.__subclasses__() if kind.__name__ == name)",
        "unit/test_protocol.py -k malformed",
    ),
    (
        "as many descriptors as the message says",
        "if len(counts) != 4 or min(counts) < 0 or len(descriptors) != 3 + sum(counts):",
        "if False:",
        "unit/test_protocol.py -k 'malformed or go_arrives'",
    ),
    (
        "a seccomp listener comes with its message",
        "if bool(descriptors) != message.is_installed:",
        "if False:",
        "unit/test_protocol.py -k 'malformed or seccomp'",
    ),
    (
        "a guest port for each published socket",
        "if len(self.published_to) != len(self.descriptors.published):",
        "if False:",
        "unit/test_protocol.py -k malformed",
    ),
)

KERNEL = [
    *of(
        "portwrap/kernel/processes.py",
        (
            "whoever enters the sandbox has no capabilities there",
            "        libc.setns(namespace)\n    libc.drop_capabilities()\n",
            "        libc.setns(namespace)\n",
            f"{KEEPER} 'no_capability and inside'",
        ),
        (
            "and lets programs in there trace nothing of ours",
            "    libc.prctl(libc.PR_SET_DUMPABLE, 0)",
            "    pass",
            f"{KEEPER} 'gets_nothing and relay-slirp4netns'",
        ),
        (
            "pidfds of threads may not be known to the kernel",
            "if error.errno != errno.EINVAL:  # before Linux 6.9",
            "if True:",
            f"{NATIVE} 'kernel_before_pidfds and plain'",
        ),
        (
            "a kernel without pidfds",
            "if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):",
            "if True:",
            "namespaces/test_in_process.py -k without_pidfds",
        ),
    ),
    *of(
        "portwrap/kernel/other_processes.py",
        (
            "a socket in a message is found",
            "                    found = _take_in_flight(process, descriptor, link)\n",
            "                    found = None\n",
            KINDS.format("in-flight-"),
        ),
        (
            "others of a message are closed again",
            "            else:\n                os.close(file)\n    return found",
            "    return found",
            "unit/test_other_processes.py",
        ),
        (
            "a server of another session is not reported",
            "    while os.fstat(namespace).st_ino != wanted:\n",
            "    while False:\n",
            "namespaces/test_unserved.py",
        ),
    ),
    *of(
        "portwrap/kernel/seccomp_filter.py",
        (
            "no signal interrupts a call that has been received (WAIT_KILLABLE_RECV)",
            "    if killable:\n        flags |=",
            "    if False:\n        flags |=",
            f"{OUTBOUND} storm_of_signals",
        ),
        (
            "the session is not slowed down (SPEC_ALLOW)",
            "FILTER_FLAG_NEW_LISTENER | FILTER_FLAG_SPEC_ALLOW",
            "FILTER_FLAG_NEW_LISTENER",
            f"{NATIVE} mitigations",
        ),
        (
            "programs of another kind are not asked",
            "        (JUMP_EQUAL, 1, 0, machine.arch),\n        ALLOW,\n",
            "",
            "unit/test_seccomp.py",
        ),
        (
            "Unix sockets are not asked",
            "        if self.argument is None:\n",
            "        if True:\n",
            "unit/test_seccomp.py",
        ),
    ),
    *of(
        "portwrap/kernel/seccomp.py",
        (
            "a caller that waits no more is noticed",
            "    fcntl.ioctl(notification.listener, NOTIF_ID_VALID,",
            "    print(end='') or (0,",
            f"{NATIVE} number_is_anothers",
        ),
    ),
    *of(
        "portwrap/kernel/procfs.py",
        (
            "a process ends with its last thread",
            'words[0] in (b"Z", b"X") and int(words[17]) <= 1',
            'words[0] in (b"Z", b"X")',
            f"{LIFETIME} last_thread",
        ),
        (
            "a zombie has ended",
            'words[0] in (b"Z", b"X") and int(words[17]) <= 1',
            "False",
            f"{LIFETIME} 'command_ends or command_is_killed'",
        ),
    ),
    *of(
        "portwrap/kernel/callers.py",
        (
            "a pidfd of a thread that is gone is opened anew",
            "            if taken != -errno.ESRCH:\n",
            "            if True:\n",
            "unit/test_callers.py",
        ),
        (
            "as many pidfds as there is room for",
            "        if len(self.known) >= MAX_CALLERS:\n",
            "        if False:\n",
            "unit/test_callers.py",
        ),
        (
            "another descriptor has flags of its own",
            "        if caller is None or self.flags_of != (caller, number):\n",
            "        if self.flags_file < 0:\n",
            "unit/test_callers.py -k flags",
        ),
        (
            "and so has one of a thread that has a number of before",
            "        if caller is None or self.flags_of != (caller, number):\n",
            "        if self.flags_of[1] != number:\n",
            "unit/test_callers.py -k flags",
        ),
        (
            "memory that only /proc gives",
            "        if result in (-errno.ENOSYS, -errno.EPERM):",
            "        if False:",
            f"{OUTBOUND} 'refused or lacks'",
        ),
        (
            "no less than was wanted of the memory",
            "        if result == length:\n",
            "        if True:\n",
            "unit/test_callers.py",
        ),
    ),
    *of(
        "portwrap/kernel/sockets.py",
        (
            "a client has a port that is published (SO_REUSEPORT)",
            "    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)\n",
            "",
            f"{EPHEMERAL} bound_to_one",
        ),
        (
            "in TIME_WAIT it does not keep the port (SO_REUSEADDR)",
            "    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)\n",
            "",
            f"{EPHEMERAL} next_session",
        ),
        (
            "SO_REUSEPORT is ours alone",
            "    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 0)\n",
            "",
            f"{EPHEMERAL} next_session",
        ),
        (
            "an accepted socket that somebody holds is seen",
            '        return b"\\ntfd:" in os.pread(self.entries, 4096, 0)\n',
            "        return bool(self.epoll.poll(0))\n",
            KINDS.format("in-flight- or shared-unseen"),
        ),
        (
            "a reset is passed on as one",
            "        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, RESET_AT_CLOSE)\n",
            "        pass\n",
            f"{RELAY} reset_is_passed_on",
        ),
    ),
    *of(
        "portwrap/kernel/addresses.py",
        (
            "[::] serves IPv4, and 0.0.0.0 no IPv6",
            "(not any(bound) and len(bound) >= len(address))",
            "not any(bound)",
            "unit/test_other_processes.py",
        ),
        (
            "a server that is bound to an IPv4 address in IPv6 serves that",
            "    bound = unmapped(bound)\n",
            "",
            f"{OWN_ADDRESS} written_as_an_ipv6_one",
        ),
    ),
    *of(
        "portwrap/kernel/waiting.py",
        (
            "time in which we are stopped does not count",
            "self.left -= min(part, time.monotonic() - began)",
            "self.left -= time.monotonic() - began",
            f"{REFUSALS} all_is_stopped",
        ),
    ),
    *of(
        "portwrap/kernel/threads.py",
        (
            "threads are noticed before unshare",
            'return len(os.listdir("/proc/self/task")) > 1',
            "return False",
            f"{JOB} library_that_starts",
        ),
    ),
    *of(
        "portwrap/kernel/sock_diag.py",
        (
            "a kernel without sock_diag",
            "    except OSError:\n        from . import socket_tables",
            "    except ZeroDivisionError:\n        from . import socket_tables",
            "unit/test_sock_diag.py",
        ),
    ),
]

LAUNCH = [
    *of(
        "portwrap/kernel/rtnetlink.py",
        (
            "an IPv6 address has its route at once",
            "        if family_of(packed) == _socket.AF_INET6:\n",
            "        if False:\n",
            "namespaces/test_own_address.py -k there_at_once",
        ),
    ),
    *of(
        "portwrap/launch/namespaces.py",
        (
            "the map files are ours (PR_SET_DUMPABLE)",
            "    libc.prctl(libc.PR_SET_DUMPABLE, 1)\n",
            "",
            f"{REFUSALS} may_not_be_dumped",
        ),
        (
            "root gets no capabilities back by exec (SECBIT_NOROOT)",
            "            libc.prctl(libc.PR_SET_SECUREBITS, libc.SECBIT_NOROOT_LOCKED)\n",
            "            pass\n",
            f"{IDENTITY} no_capability_is_left",
        ),
        (
            "the user may ping",
            "        _allow_ping(gid)\n",
            "",
            "namespaces/test_everyday.py -k 'without and capability'",
        ),
        (
            "threads are named in the refusal",
            "if error.errno == errno.EINVAL and threads > 1:",
            "if False:",
            f"{REFUSALS} starts_a_thread",
        ),
    ),
    *of(
        "portwrap/launch/command.py",
        (
            "signals end a start at once",
            "        if callable(signal.getsignal(number)):\n",
            "        if False:\n",
            "namespaces/test_signals.py -k at_this_step",
        ),
        (
            "a script whose interpreter is missing",
            'if first.startswith(b"#!") and words[0] and not os.path.exists(words[0]):',
            "if False:",
            "unit/test_messages.py -k interpreter_is_missing",
        ),
        (
            "what was printed before a start afresh is not lost",
            "    _flush_output()\n    os.execve(keeper_process",
            "    os.execve(keeper_process",
            "namespaces/test_in_process.py -k printed_before",
        ),
        (
            "what was printed before the command is not lost",
            "    _flush_output()\n    try:\n",
            "    try:\n",
            "namespaces/test_in_process.py -k printed_before",
        ),
        (
            "SIGPIPE and SIGXFSZ as without us",
            "    for number in (signal.SIGPIPE, signal.SIGXFSZ):\n",
            "    for number in ():\n",
            "namespaces/test_signal_settings.py -k 'native_exec or sigpipe_ends'",
        ),
        (
            "the command inherits the lifeline only",
            "os.set_inheritable(descriptor, descriptor in kept)",
            "os.set_inheritable(descriptor, True)",
            f"{IDENTITY} only_the_standard_three",
        ),
        (
            "a library that starts threads is not loaded again",
            "environ = {name: text for name, text in os.environ.items() if name not in preloading}",
            "environ = dict(os.environ)",
            f"{JOB} library_that_starts",
        ),
        (
            "LC_CTYPE of Python's own does not stay",
            '                del given["LC_CTYPE"]\n',
            "                pass\n",
            f"{IDENTITY} inside_is_as_outside",
        ),
    ),
    *of(
        "portwrap/launch/keeper_process.py",
        (
            "no keeper is begun beside threads",
            "        if not is_threaded():\n",
            "        if True:\n",
            "namespaces/test_in_process.py -k 'fresh_interpreter or beside_threads'",
        ),
        (
            "closed standard descriptors are filled",
            "        _reserve_standard_descriptors()\n",
            "",
            f"{IDENTITY} 'was_closed'",
        ),
        (
            "files may not be as large as the archive (RLIMIT_FSIZE)",
            "        kept, other = file, copy\n        if error.errno != errno.EFBIG:\n",
            "        kept, other = file, copy\n        if True:\n",
            "unit/test_modules.py -k size_of_files",
        ),
        (
            "nor as its byte code",
            "            raise\n        return False\n",
            "            raise\n        return True\n",
            "unit/test_modules.py -k byte_code",
        ),
        (
            "the keeper does not act on the job's signals",
            "        setsigmask=WAITING_SIGNALS,\n",
            "",
            f"{LIFETIME} every_process_of_the_job",
        ),
        (
            "the keeper hears of its children (SIGCHLD)",
            "        setsigdef=[signal.SIGCHLD],\n",
            "",
            f"namespaces/test_signal_settings.py {LIFETIME} 'native_exec or ignored_sigchld'",
        ),
        (
            "the keeper has no output of the job",
            "nobodys = (0, 1) if",
            "nobodys = (0,) if",
            f"{IDENTITY} leave_the_output",
        ),
        (
            "the keeper's standard error is the job's, or nobody's",
            " if os.get_inheritable(2) else (0, 1, 2)",
            "",
            "namespaces/test_in_process.py -k whose_standard_error",
        ),
        (
            "nothing of the environment changes the keeper",
            'if name == "PYTHONHOME" or not name.startswith(("PYTHON", *PRELOADING))',
            "if True",
            f"{JOB} keeper_loads_no_library",
        ),
        (
            "with PYTHONHOME the current directory is not looked into",
            '        text = f"import sys; sys.path[:] = filter(None, sys.path); exec({text!r})"\n',
            "        pass\n",
            "namespaces/test_in_process.py -k current_directory",
        ),
    ),
    *of(
        "portwrap/launch/lifeline.py",
        (
            "the command has no child that it does not know",
            "        _wait_for(self.child)\n",
            "",
            f"{IDENTITY} 'inside_is_as_outside'",
        ),
        (
            "a keeper that is gone just before exec is noticed",
            "        except OSError:\n            pass\n        raise _keeper_died()",
            "        except OSError:\n            pass",
            f"{LIFETIME} just_before",
        ),
        (
            "the refusal of a keeper that is gone is read",
            "            answer = self._take(socket.MSG_DONTWAIT)\n",
            "            answer = None\n",
            f"{REFUSALS} before_it_is_told",
        ),
        (
            "a keeper that was begun in vain is ended",
            "        lifeline.socket.close()\n        lifeline.reap()\n",
            "        pass\n",
            "namespaces/test_in_process.py -k does_not_know",
        ),
    ),
    *of(
        "portwrap/launch/story.py",
        (
            "the command is told of the keeper's end (O_ASYNC)",
            "    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)\n",
            "",
            f"{LIFETIME} 'keeper_dies and not just'",
        ),
        (
            "it is told so by SIGTERM (F_SETSIG)",
            "    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGTERM)\n",
            "",
            f"{LIFETIME} 'keeper_dies and not just'",
        ),
        (
            "a node's addresses that cannot be given",
            "    except OSError as error:  # a kernel without rules by port\n",
            "    except ZeroDivisionError as error:\n",
            "namespaces/test_own_address.py -k cannot_be_given",
        ),
        (
            "the lifeline has a high number",
            "    for lowest in (LIFELINE_FROM, 200, 20, 3):\n",
            "    for lowest in (3,):\n",
            f"{IDENTITY} 'standard_three or low_limit'",
        ),
        (
            "no host service is forwarded to",
            "    services.check(offered, sandbox.guest_port, sandbox.published)\n",
            "",
            f"{ROUTES} would_be_published",
        ),
    ),
    *of(
        "portwrap/launch/ports.py",
        (
            "the port is held on every other address",
            "        _reserve(port)\n",
            "",
            f"{PORTS} 'nobody_gets or nowhere_after'",
        ),
        (
            "nobody gets in beside what holds it",
            "    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)\n",
            "",
            f"{PORTS} 'nobody_gets or nowhere_after or slips'",
        ),
        (
            "nobody listens who was there before",
            "    _bind_everywhere(port.number).close()\n",
            "",
            f"{PORTS} 'slips_in or nowhere_before'",
        ),
        (
            "connections in TIME_WAIT are no obstacle",
            "        sock = _bind(family, place, socket.SO_REUSEADDR)\n",
            "        raise\n",
            f"{PORTS} time_wait",
        ),
        (
            "each family has its own listener (V6ONLY)",
            "            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)\n",
            "            pass\n",
            f"{PORTS} 'who_is_served or nobody_gets'",
        ),
        (
            "an address that another node has is passed over",
            "            if error.errno not in NOT_HERE:\n",
            "            if True:\n",
            f"{PORTS} 'of_another_node or not_of_this_node'",
        ),
        (
            "nothing is held after a refusal",
            "        port.close()\n        raise _cannot_bind",
            "        raise _cannot_bind",
            "unit/test_ports.py -k nothing_is_held",
        ),
        (
            "an IPv4 address in IPv6 is IPv4",
            "        if packed.startswith(MAPPED):\n            return socket.AF_INET",
            "        if False:\n            return socket.AF_INET",
            "unit/test_ports.py -k who_is_served",
        ),
        (
            "a network has no bits beyond its own",
            "    if number & ((1 << ignored) - 1):\n",
            "    if False:\n",
            "unit/test_allow_from.py -k 'no_network or beyond'",
        ),
    ),
    *of(
        "portwrap/launch/services.py",
        (
            "only the loopback of a hub is brought in",
            "for address in asked if is_loopback(address)]",
            "for address in asked]",
            "unit/test_fuzz_texts.py -k loopback_of_a_hub",
        ),
        (
            "a host service is not a forwarding target",
            "        if port in taken:\n",
            "        if False:\n",
            f"{ROUTES} would_be_published",
        ),
        (
            "sockets of host services are bounded",
            "    if len(services) > MAX_SOCKETS:\n",
            "    if False:\n",
            "unit/test_services.py",
        ),
        (
            "::1 answers only where the host's does",
            '    if is_held("tcp6", LOOPBACK_IPV6, port):\n',
            "    if True:\n",
            f"{ROUTES} ipv6_side",
        ),
        (
            "a sandbox without IPv6",
            "            if service.family == socket.AF_INET6 and error.errno in NO_IPV6:\n",
            "            if False:\n",
            f"{ROUTES} sandbox_has_one",
        ),
    ),
    *of(
        "portwrap/launch/dns.py",
        (
            "resolvers of the network are left alone",
            "    elif all(map(is_loopback, servers)):\n",
            "    elif True:\n",
            "namespaces/test_dns.py -k not_needed",
        ),
        (
            "nothing is done where nobody answers",
            'if is_held("udp", LOOPBACK_IPV4, PORT) else []',
            "",
            "namespaces/test_dns.py -k nobody_answers",
        ),
    ),
    *of(
        "portwrap/launch/own_address.py",
        (
            "no server of another user at the node's address",
            "                if waiting.uid <= highest:\n",
            "                if True:\n",
            "namespaces/test_own_address.py -k neighbour_does_not",
        ),
        (
            "rules are bounded",
            "list(distinct.values())[:MAX_RULES]",
            "list(distinct.values())",
            "namespaces/test_own_address.py -k many_system",
        ),
        (
            "the named address is not cut off",
            "    if len(own) > MAX_ADDRESSES:\n",
            "    if False:\n",
            f"{OWN_ADDRESS} named_address",
        ),
        (
            "the loopback's addresses are not the node's",
            " and not is_loopback(address.packed):\n",
            ":\n",
            f"{OWN_ADDRESS} every_scope",
        ),
        (
            "the driver's interface keeps its name",
            'if name not in ("lo", DEVICE):',
            'if name != "lo":',
            "namespaces/test_own_address.py -k name_of_the_drivers",
        ),
        (
            "services are found before their address is given",
            "        if with_rules and node.services:\n",
            "        if False:\n",
            "namespaces/test_own_address.py -k of_system_accounts",
        ),
        (
            "rules come before addresses",
            "            _add_rules(netlink, node.services)\n",
            "            _add_address(netlink, 1, node.addresses[0].packed)\n"
            "            _add_rules(netlink, node.services)\n",
            "namespaces/test_own_address.py -k no_address_without",
        ),
        (
            "addresses that are not usable are left out",
            "        if usable and not is_link_local",
            "        if not is_link_local",
            "namespaces/test_own_address.py -k is_down",
        ),
        (
            "a node without netlink",
            "    except OSError:  # an outer sandbox without netlink\n",
            "    except ZeroDivisionError:\n",
            "namespaces/test_own_address.py -k cannot_be_given",
        ),
    ),
    *of(
        "portwrap/launch/drivers/slirp4netns.py",
        (
            "the host's loopback is out of reach",
            '            "--disable-host-loopback",\n',
            "",
            f"{NETWORK} 'hosts_loopback and slirp4netns and not newer'",
        ),
    ),
    *of(
        "portwrap/launch/drivers/pasta.py",
        (
            "pasta's router is not the host",
            '            "--no-map-gw",\n',
            "",
            f"{NETWORK} 'hosts_loopback and pasta and not newer'",
        ),
        (
            "pasta opens no port of the sandbox on the host",
            '"--tcp-ports=none"',
            '"--tcp-ports=auto"',
            f"{NETWORK} 'of_the_sandbox_is_on and pasta'",
        ),
        (
            "pasta brings no port of the host in",
            '"--tcp-ns=none"',
            '"--tcp-ns=auto"',
            f"{NETWORK} 'hosts_loopback and pasta and not newer'",
        ),
        (
            "pasta is not for root",
            "        if os.geteuid() == 0:\n",
            "        if False:\n",
            "unit/test_network.py -k root",
        ),
    ),
    *of(
        "portwrap/launch/drivers/driver.py",
        (
            "hosts in the driver's subnet are reached natively",
            "[*used_addresses(self.subnet), f",
            '[f"{self.subnet}.0/24", f',
            f"{CHECK} own_network_natively",
        ),
        (
            "the subnet has no address that is needed",
            "used = [*routes, *routes_to(needed)]",
            "used = [*routes]",
            "unit/test_network.py -k needed",
        ),
    ),
    *of(
        "portwrap/launch/drivers/routes.py",
        (
            "a route that pasta does not take is none",
            ' and row[1] == "00" and int(row[4], 16) for',
            ' and not row[0].startswith(("fe80", "ff")) for',
            f"unit/test_network.py {NETWORK} 'routes_of_ipv6 or on_its_cable'",
        ),
    ),
    *of(
        "portwrap/launch/drivers/direct.py",
        (
            "TCP that is not native fails at once",
            "    netlink.add_unreachable(family, TCP, socket.IPPROTO_TCP)\n",
            "",
            f"{DIRECT} fails_at_once",
        ),
        (
            "a ping fails at once",
            "    netlink.add_unreachable(family, PING, ICMP[family])\n",
            "",
            f"{DIRECT} fails_at_once",
        ),
        (
            "without native outbound it is refused",
            "        if self.instead_of is not None:\n            raise self.instead_of\n",
            "",
            "unit/test_network.py -k nothing_can_be_native",
        ),
    ),
    *of(
        "portwrap/launch/native.py",
        (
            "signals that interrupt a connect: not natively",
            "            no_outbound = no_outbound or BEFORE_KILLABLE\n",
            "            pass\n",
            f"{OUTBOUND} 'refused or lacks or gives'",
        ),
        (
            "a kernel that does not know the flags",
            "            if error.errno != errno.EINVAL:  # it knows all the flags\n",
            "            if True:\n",
            f"{OUTBOUND} 'refused or lacks or gives'",
        ),
        (
            "an address longer than any Unix one is asked about",
            ", above=110)",
            ")",
            CASES,
        ),
        (
            "makers of epolls are asked",
            "        found += [Trap(number) for number in makers]\n",
            "",
            CASES,
        ),
    ),
    *of(
        "portwrap/launch/ssh_config.py",
        (
            "nobody waits at a FIFO",
            "        if not stat.S_ISREG(os.stat(path).st_mode):"
            "  # to open a device may do something\n"
            '            return ""\n        with open(open_regular(path), "rb") as file:',
            '        with open(path, "rb") as file:',
            f"{SSH} 'fifo or whatever'",
        ),
        (
            "files are bounded",
            "        return min(self.entries, self.files, self.text) <= 0",
            "        return False",
            f"{SSH} whatever",
        ),
        (
            "only root's files are covered",
            "        if os.stat(real).st_uid or os.stat(folder).st_uid:\n            return None\n",
            "",
            f"{SSH} files_are_the_users",
        ),
    ),
    *of(
        "portwrap/launch/ssh_cover.py",
        (
            "what the host mounts later appears (MS_SLAVE)",
            "namespaces.MS_REC | namespaces.MS_SLAVE)",
            "namespaces.MS_REC | (1 << 18))",
            f"{SSH} mounts_later",
        ),
        (
            "the copies cannot be written",
            '            namespaces.mount("", folder, "", TMPFS | read_only)\n',
            "            pass\n",
            f"{SSH} cannot_be_written",
        ),
        (
            "large directories are left alone",
            "        if len(names) > MAX_ENTRIES:\n            return\n",
            "",
            f"{CHECK} large_directory",
        ),
    ),
]

KEEPERS = [
    *of(
        "portwrap/keeper/setup.py",
        (
            "inherited descriptors are closed",
            "        processes.close_all_but({0, 1, 2, number, modules, *child.descriptors})\n",
            "",
            f"{KEEPER} 'handed_on and inside'",
        ),
        (
            "no directory is kept busy",
            '        os.chdir("/")\n',
            "",
            f"{IDENTITY} directory_busy",
        ),
        (
            "a keeper that only relays is in the sandbox",
            "        processes.enter(session.namespaces)\n        session.inside = True\n",
            "        pass\n",
            f"{KEEPER} 'is_in_the_sandbox'",
        ),
    ),
    *of(
        "portwrap/keeper/agreement.py",
        (
            "descriptors for later are there before the command begins",
            "    for number in [os.dup(0) for _ in range(LATER_DESCRIPTORS)]:\n",
            "    for number in ():\n",
            f"{REFUSALS} hardly_any_descriptor {LIFETIME[:-3]} -k 'descriptor'",
        ),
    ),
    *of(
        "portwrap/kernel/processes.py",
        (
            "the soft limit of descriptors is raised",
            "        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n",
            "        return soft\n",
            f"{RELAY} soft_limit",
        ),
        (
            "a hard limit that may not be used",
            "    except (OSError, ValueError):\n        return soft",
            "    except ZeroDivisionError:\n        return soft",
            f"{REFUSALS} hard_limit",
        ),
    ),
    *of(
        "portwrap/keeper/worker.py",
        (
            "a worker has nothing of the keeper's",
            "        close_all_but({0, 1, 2, link.fileno(), *listeners, *namespaces})\n",
            "",
            f"{KEEPER} worker_has_no",
        ),
        (
            "a worker that could not begin is noticed",
            "        if message != READY:\n",
            "        if False:\n",
            f"{NATIVE} 'may_not_enter or no_memory'",
        ),
    ),
    *of(
        "portwrap/keeper/driver.py",
        (
            "the driver dies with the keeper (PR_SET_PDEATHSIG)",
            "        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)\n",
            "",
            f"{LIFETIME} 'keeper_dies and not just'",
        ),
        (
            "a keeper that died before that is noticed",
            "        if os.getppid() != keeper:\n            os._exit(0)",
            "        if False:\n            os._exit(0)",
            f"{KEEPER} while_its_driver",
        ),
        (
            "the driver gets nothing of the keeper's",
            "        close_all_but({0, 1, 2, order, ready})\n",
            "",
            f"{KEEPER} 'driver_has_nothing and inside'",
        ),
        (
            "pasta does not give up where SIGPIPE is ignored",
            "        signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n",
            "",
            f"{NETWORK} 'first_moment and pasta'",
        ),
        (
            "the driver gets PATH only",
            "for name in VARIABLES if name in os.environ",
            "for name in os.environ",
            f"{JOB} path_only",
        ),
        (
            "a driver without its libraries is not tried for ever",
            "        if linker.items() <= self.environ.items():\n            return False",
            "        if False:\n            return False",
            f"{JOB} without_its_libraries",
        ),
        (
            "one that has ended is no slow one",
            "        os.close(ready_end)  # else one that has ended looks like a slow one\n",
            "",
            f"{REFUSALS} dies_at_its_start",
        ),
    ),
    *of(
        "portwrap/keeper/lifecycle.py",
        (
            "SIGTERM by hand where the command has let go",
            "            send_signal(self.command, signal.SIGTERM)\n",
            "            pass\n",
            f"{LIFETIME} 'does_not_know or network_helper_dies'",
        ),
        (
            "a command that ended before it began",
            "            if self.lifeline.fileno() in events:\n",
            "            if False:\n",
            f"{REFUSALS} while_the_helper_is_awaited",
        ),
        (
            "children end before the log is written",
            "            self.kill_children()  # now: the log may keep us for ever\n",
            "",
            "namespaces/test_stalled_log.py -k driver_is_ended",
        ),
        (
            "a driver that the kernel does not end is ended",
            "            ends.append(self.driver.kill)\n",
            "            pass\n",
            f"{KEEPER} does_not_end",
        ),
        (
            "what fails before the command begins is a refusal",
            "        if self.ready:\n            self.end_session(why)\n",
            "        self.end_session(why)\n",
            "namespaces/test_surroundings.py -k keeper_that_a_filter",
        ),
    ),
    *of(
        "portwrap/keeper/log.py",
        (
            "a writer holds nothing",
            "            close_all_but({2})\n",
            "            pass\n",
            "namespaces/test_stalled_log.py -k command_is_ended",
        ),
        (
            "a writer is ended",
            "        signal.alarm(WRITE_TIMEOUT)\n",
            "",
            "namespaces/test_stalled_log.py",
        ),
        (
            "one writer at a time",
            "        if self.is_writing():\n            return\n",
            "",
            "namespaces/test_stalled_log.py -k listen_is_answered",
        ),
    ),
    *of(
        "portwrap/keeper/main_loop.py",
        (
            "what listens on the loopback is not published by a port that it was given for port 0",
            "self.own if port in self.session.go.ephemeral else self.guests",
            "self.guests",
            f"{EPHEMERAL} 'for_the_loopback and relay'",
        ),
        (
            "the end of the lifeline is not the command's",
            "        if self.lifecycle.is_gone():\n            self.finish()\n"
            "        self.reactor.unwatch(self.lifecycle.lifeline.fileno())",
            "        self.finish()\n",
            f"{LIFETIME} end_of_the_lifeline",
        ),
        (
            "the end of the driver is the session's",
            '        self.lifecycle.end_session(f"{driver.name}',
            '        print(f"{driver.name}',
            f"{LIFETIME} network_helper_dies",
        ),
        (
            "the end of a worker is the session's",
            '        self.lifecycle.end_session(f"the relay in the sandbox',
            '        print(f"the relay in the sandbox',
            f"{ROUTES} 'ours_is_killed and worker'",
        ),
        (
            "the last words of the command are delivered",
            "        self.relay.finish(DELIVERY_TIMEOUT)\n",
            "",
            f"{ROUTES} last_words",
        ),
        (
            "and those that a worker has",
            "            worker.has_message(DELIVERY_TIMEOUT)\n",
            "            pass\n",
            f"{ROUTES} last_words",
        ),
        (
            "a keeper with host services stays with the host",
            "if go.descriptors.services or go.descriptors.published or self.session",
            "if False and self.session",
            f"{ROUTES} cannot_be_handed",
        ),
    ),
    *of(
        "portwrap/keeper/responder.py",
        (
            "an exception ends no session",
            "            result = None  # an exception must not end the session",
            "            raise",
            f"{NATIVE} cannot_work",
        ),
        (
            "a caller that is gone ends no session",
            "        except OSError:\n            pass  # the caller has been killed",
            "        except ZeroDivisionError:\n            pass  # the caller has been killed",
            f"{NATIVE} 'die_before or turns_to_it or killed_at_random'",
        ),
    ),
    *of(
        "portwrap/keeper/native.py",
        (
            "what listens on the loopback is not published by a port that it was given for port 0",
            "            if number in self.ephemeral and is_bound_to_loopback(socket):\n"
            "                return False\n",
            "",
            f"{EPHEMERAL} 'for_the_loopback and native'",
        ),
        (
            "it is the caller's socket (id_valid)",
            "            seccomp.id_valid(notification)\n            return 0",
            "            return 0",
            f"{NATIVE} number_is_anothers",
        ),
        (
            "a socket of the host is never replaced",
            "        if network == SANDBOX:\n",
            "        if True:\n",
            f"{NATIVE} host_is_never",
        ),
        (
            "another port is never replaced",
            "            port = self.ports.get(number)\n",
            "            port = next(iter(self.ports.values()))\n",
            f"{NATIVE} another_port",
        ),
    ),
    *of(
        "portwrap/keeper/forwarded_port.py",
        (
            "a second program does not get the socket",
            "        if self.relaying or self.served:\n",
            "        if self.relaying:\n",
            f"{NATIVE} second_program",
        ),
        (
            "the guest port is free for the next server",
            "        if self.served and not self.hosts.are_served():\n",
            "        if False:\n",
            KINDS.format("again-"),
        ),
        (
            "the host listens again when nobody serves",
            "                listen_again(host)\n            except",
            "                pass\n            except",
            f"{NATIVE} ends_its_listening_and_itself",
        ),
        (
            "a server that listens on its own socket is relayed",
            "            self.lookout.expect(why, SHORT_PAUSE)\n",
            "            pass\n",
            KINDS.format("shared- or signal-driven"),
        ),
        (
            "the queue is as long as the server wants",
            "        listen_again(host, backlog_of(notification))\n",
            "        listen_again(host)\n",
            f"{NATIVE} queue_is",
        ),
        (
            "no process for the relay ends no session",
            "            if error.errno not in self.MAY_PASS:\n",
            "            if True:\n",
            f"{NATIVE} 'no_process_for'",
        ),
    ),
    *of(
        "portwrap/keeper/published_sockets.py",
        (
            "clients of another family find the server, too",
            "                    listen_again(self.sockets[-1])\n",
            "                    pass\n",
            f"{ROUTES} where_a_server_listens",
        ),
    ),
    *of(
        "portwrap/keeper/host_sockets.py",
        (
            "a holder that is not watched is not known",
            "        except OSError:\n            os.close(pidfd)\n            raise\n",
            "        finally:\n            self.pidfd = pidfd\n",
            "unit/test_watched.py -k holder",
        ),
        (
            "a socket that was shut down serves nobody",
            "for each in self.sockets if listens(each)}",
            "for each in self.sockets}",
            "namespaces/test_host_port.py -k keeps_what",
        ),
        (
            "a child that serves on is seen",
            "link in links and self.watch(process) for",
            "False for",
            f"{NATIVE} child_that_serves",
        ),
        (
            "past what reserves the port (SO_REUSEPORT)",
            "    host.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)\n",
            "",
            "namespaces/test_host_port.py -k ends_its_listening",
        ),
    ),
    *of(
        "portwrap/keeper/guest_port.py",
        (
            "the guest port stays taken",
            "        stand_in.listen(BACKLOG)\n",
            "",
            f"{NATIVE} 'stays_taken or clients_inside'",
        ),
        (
            "and is free when nobody serves",
            "        if stand_in is not None:\n",
            "        if False:\n",
            f"{NATIVE} started_again",
        ),
        (
            "one that is not relayed can be let go",
            "            if self.relay.serves(stand_in):",
            "            if True:",
            "unit/test_watched.py -k guest_port",
        ),
    ),
    *of(
        "portwrap/keeper/lookout.py",
        (
            "the relay's socket stays the relay's",
            "        while self.watched:  # the relay may have the others by now\n"
            "            self.reactor.unwatch(self.watched.pop())\n",
            "        for host in self.hosts:\n"
            "            if self.reactor.is_watched(host.fileno()):\n"
            "                self.reactor.unwatch(host.fileno())\n",
            "unit/test_watched.py -k lookout",
        ),
    ),
    *of(
        "portwrap/keeper/exchange.py",
        (
            "a socket that somebody else has is put back",
            "            if found is not None:\n                place.put",
            "            if False:\n                place.put",
            KINDS.format("shared- or duplicate"),
        ),
        (
            "half an exchange is undone",
            "            place.put(old.fileno())\n            raise\n",
            "            raise\n",
            f"{OUTBOUND} 'is_refused and ENOSPC'",
        ),
    ),
    *of(
        "portwrap/keeper/server_socket.py",
        (
            "a server that wants signals is relayed",
            "    if fcntl.fcntl(socket.fileno(), fcntl.F_GETFL) & O_ASYNC:\n",
            "    if False:\n",
            KINDS.format("signal-driven"),
        ),
        (
            "a server whose descriptors we may not see",
            "    if not procfs.link(notification.thread, notification.descriptor):\n",
            "    if False:\n",
            KINDS.format("unreadable"),
        ),
        (
            "the flags of a server's socket stay",
            "    fcntl.fcntl(target.fileno(), fcntl.F_SETFL, flags)\n",
            "",
            f"{NATIVE} flags_of",
        ),
        (
            "a server without SO_REUSEADDR is served natively",
            "        each.setsockopt(SOL_SOCKET, _socket.SO_REUSEADDR, 1)\n",
            "        pass\n",
            f"{NATIVE} a_signal_arrives_for",
        ),
        (
            "SO_REUSEADDR of a server's socket comes back",
            "        socket.setsockopt(SOL_SOCKET, _socket.SO_REUSEADDR, reuse)\n",
            "        pass\n",
            f"{NATIVE} put_back_is_as_it_was",
        ),
    ),
    *of(
        "portwrap/keeper/ephemeral_ports.py",
        (
            "two sockets never share a port (SO_REUSEADDR, SO_REUSEPORT)",
            "            socket.setsockopt(_socket.SOL_SOCKET, option, 0)\n",
            "            pass\n",
            f"{EPHEMERAL} never_share",
        ),
        (
            "their options are the caller's again",
            "                socket.setsockopt(_socket.SOL_SOCKET, option, value)\n",
            "                pass\n",
            f"{EPHEMERAL} the_callers",
        ),
        (
            "the loopback's ports are the kernel's",
            "return None if is_loopback(address.address) else address",
            "return address",
            f"{EPHEMERAL} loopback",
        ),
        (
            "no port for clients (IP_BIND_ADDRESS_NO_PORT)",
            "            and not socket.getsockopt(_socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT)\n",
            "",
            f"{EPHEMERAL} 'left_to_the_kernel and port'",
        ),
        (
            "TCP and MPTCP only",
            "            socket.proto in PROTOCOLS\n",
            "            True\n",
            f"{EPHEMERAL} udp",
        ),
        (
            "ports of servers that have ended are free",
            "                self.free_ended(notification)\n",
            "                pass\n",
            f"{EPHEMERAL} 'free_again and native'",
        ),
    ),
    *of(
        "portwrap/keeper/outbound.py",
        (
            "we connect to what we have looked at",
            "            result = connect_new(new, destination.data, flags)\n",
            "            again = read_destination(notification, self.memory)\n"
            "            result = connect_new(new, again.data, flags)\n",
            f"{OUTBOUND} changes_meanwhile",
        ),
        (
            "sockets that we have made are known (mark)",
            "            mark(new)\n",
            "",
            f"{OUTBOUND} 'never_listens or never_binds or never_connects'",
        ),
        (
            "a host's socket never connects inside",
            "            return self.connect_inside(notification, socket, where == MISLED)\n",
            "            return None\n",
            f"{OUTBOUND} never_connects",
        ),
        (
            "a host's socket never binds",
            "        responder.before(machine.bind, self.on_bind)\n",
            "",
            f"{OUTBOUND} never_binds",
        ),
        (
            "a host's socket never listens",
            "        responder.before(machine.listen, self.on_listen)\n",
            "",
            f"{OUTBOUND} never_listens",
        ),
        (
            "to bind to an address of others fails",
            "            responder.before(machine.bind, self.on_bind_to_any_address)\n",
            "            pass\n",
            f"{DIRECT} anothers_address",
        ),
        (
            "a socket that others have stays",
            "            return None if outcome == PUT_BACK else",
            "            return",
            CASES,
        ),
        (
            "a socket that wants signals stays",
            "        if flags & O_ASYNC:\n",
            "        if False:\n",
            CASES,
        ),
        (
            "the socket blocks again as it did",
            "    finally:\n        fcntl.fcntl(socket.fileno(), fcntl.F_SETFL, flags)\n",
            "    finally:\n        pass\n",
            CASES,
        ),
        (
            "it is the caller's socket (id_valid)",
            "            seccomp.id_valid(notification)  # so it was",
            "            pass  # so it was",
            f"{OUTBOUND} 'number_is_anothers and connect'",
        ),
        (
            "and so it is where it is led back (id_valid)",
            "            seccomp.id_valid(notification)\n            return socket\n",
            "            return socket\n",
            f"{OUTBOUND} 'number_is_anothers and listen'",
        ),
        (
            "a call on what cannot be led back fails",
            "            return -errno.ENOBUFS\n",
            "            return None\n",
            f"{OUTBOUND} cannot_be_the_sandboxs",
        ),
        (
            "a socket that is bound to the loopback stays",
            '        raise NotMovable("it is bound to the loopback")\n',
            "        pass\n",
            f"{OUTBOUND} hosts_loopback_as",
        ),
        (
            "a socket with a filter stays",
            "        and not has_filter(socket)\n",
            "",
            "unit/test_options.py -k filter_stays",
        ),
        (
            "a listener of the sandbox comes before a service of the node",
            "                keep_inside(socket)\n",
            "                pass\n",
            f"{OWN_ADDRESS} own_server",
        ),
        (
            "and also for a socket that is led back",
            "                    keep_inside(new)\n",
            "                    pass\n",
            f"{OWN_ADDRESS} socket_of_the_hosts",
        ),
        (
            "a datagram socket gets no mark",
            "    if state_of(socket) == TCP_CLOSE:\n        # It",
            "    if True:\n        # It",
            f"{OWN_ADDRESS} cannot_be_native",
        ),
        (
            "sockets of ours are looked for as long as somebody has one",
            "            self.may_be_there = self.files.any_is_open()\n",
            "            self.may_be_there = False\n",
            "unit/test_given.py",
        ),
        (
            "and for ever where that cannot be known",
            "            self.look_at = NEVER\n",
            "            pass\n",
            "unit/test_given.py",
        ),
        (
            "a result that was not reported comes first",
            "        if not has_no_result(result):\n            return result\n        place",
            "        place",
            CASES,
        ),
    ),
    *of(
        "portwrap/keeper/destinations.py",
        (
            "no longer address than the kernel takes",
            "    if length > MAX_LENGTH:\n        return None\n",
            "",
            CASES,
        ),
        (
            "the loopback is inside",
            "    (4, 24, 127),  # 127.0.0.0/8\n",
            "",
            "unit/test_destinations.py",
        ),
        (
            "0.0.0.0, which is the loopback",
            "    (4, 24, 0),  # 0.0.0.0/8, by which Linux connects to the loopback\n",
            "",
            "unit/test_destinations.py",
        ),
        (
            ":: and ::1 are inside",
            "    (16, 1, 0),  # :: and ::1\n",
            "",
            "unit/test_destinations.py",
        ),
        (
            "IPv4 in IPv6 is what it is",
            "unmapped(data[place])",
            "data[place]",
            "unit/test_destinations.py",
        ),
        (
            "the driver's addresses are inside",
            "inside = [*ALWAYS_INSIDE, *go.driver_networks]",
            "inside = [*ALWAYS_INSIDE]",
            "unit/test_destinations.py",
        ),
        (
            "host services over UDP are none over TCP",
            "for kind, address, port in services if kind == STREAM}",
            "for kind, address, port in services}",
            "unit/test_destinations.py",
        ),
        (
            "a listener of the sandbox comes first at the node's address",
            " or not self.listens(address, port):\n",
            " or True:\n",
            f"{OUTBOUND} own_address",
        ),
        (
            "an address that the host got later is its own, too",
            "is_own or self.host.have(address)",
            "is_own",
            f"{OWN_ADDRESS} during_the_session",
        ),
        (
            "where the sandbox lacks the address nobody stands in",
            "            return REFUSED\n",
            "            return INSIDE\n",
            f"{OWN_ADDRESS} during_the_session",
        ),
        (
            "what listens is not taken from the command's network namespace",
            "        if self.diagnosis is not None:\n",
            "        if False:\n",
            f"unit/test_destinations.py {OWN_ADDRESS} network_namespace",
        ),
    ),
    *of(
        "portwrap/keeper/host_addresses.py",
        (
            "new addresses of the host are noticed",
            "        while self.news.poll(0):\n",
            "        while False:\n",
            f"{OWN_ADDRESS} during_the_session",
        ),
    ),
    *of(
        "portwrap/keeper/network_namespaces.py",
        (
            "sockets of other namespaces are left alone",
            "return {self.host: HOST, self.sandbox: SANDBOX}.get(inode, OTHER)",
            "return {self.host: HOST, self.sandbox: SANDBOX}.get(inode, SANDBOX)",
            CASES,
        ),
        (
            "a kernel without cookies",
            "            pass  # before Linux 5.14\n",
            "            raise\n",
            f"{OUTBOUND} lacks",
        ),
    ),
    *of(
        "portwrap/keeper/epolls.py",
        (
            "another process with the same number",
            "        if process is not None and is_gone(process.pidfd):\n",
            "        if False:\n",
            "unit/test_epolls.py -k same_number",
        ),
        (
            "an entry under an earlier number",
            "            if int(target) != number:\n",
            "            if False:\n",
            "unit/test_epolls.py -k earlier",
        ),
        (
            "an entry that is used up",
            "            if mask & EPOLLONESHOT and not mask & REPORTED:\n",
            "            if False:\n",
            "unit/test_epolls.py -k used_up",
        ),
        (
            "an io_uring with files of its own",
            "            if registers_files(thread, ring):\n",
            "            if False:\n",
            KINDS.format("uring-registered"),
        ),
        (
            "one that is being made is looked for",
            "        self.creating[thread] = now + SETTLE_TIMEOUT\n",
            "",
            "unit/test_epolls.py -k being_made",
        ),
        (
            "threads that are done are forgotten",
            "            del self.creating[next(iter(self.creating))]\n",
            "            break\n",
            "unit/test_epolls.py -k never_heard_of",
        ),
        (
            "no more of them than a few are remembered",
            "        if len(self.creating) >= MAX_CREATING:\n",
            "        if False:\n",
            "unit/test_epolls.py -k never_heard_of",
        ),
        (
            "the others are remembered together",
            "            thread = EVERY_THREAD\n",
            "            return\n",
            "unit/test_epolls.py -k 'never_heard_of or one_of_many'",
        ),
        (
            "a list without news is not kept",
            "process.known and shares and self.hears_of_new",
            "process.known and shares",
            "unit/test_epolls.py -k being_told",
        ),
        (
            "a thread with descriptors of its own",
            "shares = thread == leader or self.have_same_descriptors(thread, leader)",
            "shares = True",
            "unit/test_epolls.py -k descriptors_of_its_own",
        ),
        (
            "what we have under that number comes back",
            "            os.dup2(saved, number, inheritable)\n            os.close(saved)\n",
            "            os.close(saved)\n",
            "unit/test_epolls.py -k 'another_number or may_be'",
        ),
    ),
    *of(
        "portwrap/keeper/options.py",
        (
            "what was set before is undone",
            "                value = changes.get(option, pristine)\n",
            "                value = changes.get(option, read(target, option))\n",
            "unit/test_options.py -k undone",
        ),
        (
            "what a former connection has left is not set",
            "            if isinstance(locks, int) and locks & bit:\n",
            "            if True:\n",
            "unit/test_options.py -k former",
        ),
        (
            "a size of segments that cannot be set is left out",
            " and size > MAX_TCP_WINDOW:\n",
            " and False:\n",
            "unit/test_options.py -k former",
        ),
        (
            "sizes that the kernel doubles",
            "    if kind == HALF:\n",
            "    if False:\n",
            "unit/test_options.py",
        ),
        (
            "a socket filter is not read into our memory",
            "get_option(socket.fileno(), SOCKET, SO_ATTACH_FILTER, no_room, length_place)",
            "socket.getsockopt(SOCKET, SO_ATTACH_FILTER)",
            "unit/test_options.py -k seen_and_not_read",
        ),
        (
            "a filter of eBPF, which nobody can read",
            "return result != 0 or any(length.raw)",
            "return any(length.raw)",
            "unit/test_options.py -k nobody_can_read",
        ),
    ),
    *of(
        "portwrap/keeper/acceptor.py",
        (
            "clients from elsewhere are reset",
            "            if upstream.allowed and not is_among",
            "            if False and not is_among",
            "namespaces/test_allow_from.py -k who_is_served",
        ),
        (
            "IPv4 clients of a socket for both",
            "unmapped(_socket.inet_pton(family, address[0]))",
            "_socket.inet_pton(family, address[0])",
            "unit/test_allow_from.py -k who_is_allowed",
        ),
        (
            "no more connections than descriptors",
            "return len(self.streams.endpoints) + 2 <= 2 * self.max_connections",
            "return True",
            f"{RELAY} exhausted",
        ),
        (
            "a pause where the system has no descriptor",
            "                if error.errno in OUT_OF_RESOURCES:\n"
            "                    self.pause(RESUME_PAUSE)\n                continue",
            "                continue",
            f"{RELAY} 'no_descriptor_for'",
        ),
        (
            "a connection that cannot be made is reset",
            "            reset(client)\n            if error.errno in OUT_OF_RESOURCES:\n",
            "            raise\n            if error.errno in OUT_OF_RESOURCES:\n",
            f"{RELAY} takes_no_more",
        ),
    ),
    *of(
        "portwrap/keeper/connector.py",
        (
            "a client of an upstream without targets does not end the session",
            "        if not upstream.targets:",
            "        if False:",
            "unit/test_relay_turns.py -k without_targets",
        ),
        (
            "a full backlog is tried again",
            "            self.timer = self.reactor.call_in(self.pause, self.retry)\n\n",
            "            pass\n\n",
            f"{RELAY} short_backlog",
        ),
        (
            "the other family is tried",
            "        if following != pending.first:\n",
            "        if False:\n",
            f"{RELAY} 'server_is_asked'",
        ),
        (
            "a client without a server is reset",
            "            self.streams.abort(endpoint)\n            upstream",
            "            upstream",
            f"{RELAY} nobody_listens",
        ),
    ),
    *of(
        "portwrap/keeper/streams.py",
        (
            "what is kept is bounded for all together",
            "peek = MSG_PEEK if self.kept >= MAX_UNSENT else 0",
            "peek = 0",
            "unit/test_relay_turns.py -k bound",
        ),
        (
            "what is kept goes with its connection",
            "        self.forget_unsent(endpoint)\n        del",
            "        del",
            "unit/test_relay_turns.py -k goes_with_it",
        ),
        (
            "no cycle keeps what is dropped",
            "        del endpoint.peer  # a cycle",
            "        pass  # a cycle",
            "unit/test_relay_turns.py -k goes_with_it",
        ),
        (
            "nobody waits for one that has more",
            "        for _ in range(MAX_READS):\n            if not endpoint.readable:",
            "        while True:\n            if not endpoint.readable:",
            "unit/test_relay_turns.py",
        ),
        (
            "a reset reaches who does not read",
            "                if endpoint.broken:  # no reason",
            "                if False:  # no reason",
            f"{LIMITS} reset_reaches",
        ),
        (
            "an end that was announced is read",
            "            if not self.hung_up:\n",
            "            if True:\n",
            "unit/test_fuzz_relay.py",
        ),
        (
            "an answer before a reset is passed on",
            "            while not peer.full:\n",
            "            while False:\n",
            f"{RELAY} 'before_the_reset or before_a_request'",
        ),
        (
            "messages in a row are acknowledged",
            "            if self.continues or self.quick_acks:\n",
            "            if False:\n",
            f"{RELAY} acknowledgement",
        ),
        (
            "a kernel without splice",
            "            if error.errno in NOT_HERE:\n",
            "            if False:\n",
            f"{RELAY} splice_is_refused",
        ),
    ),
    *of(
        "portwrap/keeper/relay.py",
        (
            "what is on its way is delivered",
            "            self.acceptor.on_clients(descriptor, 0)\n",
            "            pass\n",
            f"{ROUTES} short_command",
        ),
        (
            "nobody keeps the keeper at the end",
            "        while time.monotonic() < until and self.is_undelivered():\n",
            "        while self.is_undelivered():\n",
            f"{LIFETIME} does_not_listen",
        ),
    ),
    *of(
        "portwrap/keeper/reactor.py",
        (
            "an event of the past meets no new descriptor",
            "if handler is not None and descriptor not in self.fresh:",
            "if handler is not None:",
            "unit/test_reactor.py -k past",
        ),
    ),
    *of(
        "portwrap/keeper/datagrams.py",
        (
            "a refused datagram is sent again",
            "            client.socket.send(data, MSG_DONTWAIT)  # that was about",
            "            pass  # that was about",
            "unit/test_datagrams.py -k refusal",
        ),
        (
            "nobody but the service is heard",
            "            socket.connect(self.service)\n",
            "            socket.connect_ex(self.service)\n            socket.connect_ex(('', 0))\n",
            "unit/test_datagrams.py -k nobody_but",
        ),
        (
            "clients are bounded",
            "            if len(self.clients) >= MAX_CLIENTS:\n",
            "            if False:\n",
            "unit/test_datagrams.py -k bounded",
        ),
        (
            "silent clients are forgotten",
            "            self.forget(client)\n",
            "            return\n",
            "unit/test_datagrams.py -k silent",
        ),
    ),
    *of(
        "portwrap/keeper/unserved.py",
        (
            "only for clients that wait for long",
            "        if self.next_look and now >= self.next_look:\n",
            "        if True:\n",
            "namespaces/test_unserved.py",
        ),
        (
            "our own listeners are none of the server's",
            "for each in listeners if each.inode not in self.ours}",
            "for each in listeners}",
            "namespaces/test_unserved.py",
        ),
    ),
    *of(
        "portwrap/keeper/sandbox_sockets.py",
        (
            "spare sockets are as new again",
            "            disconnect(connector)\n            disconnect(listener)\n",
            "            pass\n",
            f"{NATIVE} started_again",
        ),
    ),
]

PROGRAMS = [
    *of(
        "batchspawner_portwrap.py",
        (
            "an external portwrap loses no settings",
            "        _check_passed_on(values)\n",
            "",
            "unit/test_arguments.py -k would_not_be_told",
        ),
        (
            "an external portwrap gets no child",
            "    lifeline.abandon()\n",
            "",
            "namespaces/test_in_process.py -k does_not_know",
        ),
        (
            "a last argument that is the command's own",
            "return None if url_port and number not in (own, url_port) else number",
            "return number",
            "unit/test_arguments.py",
        ),
        (
            "a start beside threads is one afresh",
            "    if is_threaded() and not afresh:\n"
            '        reexec("batchspawner_portwrap:main", argv)\n'
            "    settings = common",
            "    settings = common",
            f"{JOB} agrees",
        ),
        (
            "a check beside threads is one afresh",
            "    if is_threaded() and not afresh:\n"
            '        reexec("batchspawner_portwrap:main", argv)\n'
            "    from portwrap.check",
            "    from portwrap.check",
            f"{CHECK} library_that",
        ),
        (
            "options of --check alone are refused",
            '            raise PARSER.error(f"--{key} needs --check"',
            '            PARSER.error(f"--{key} needs --check"',
            f"{CHECK} do_not_go_together",
        ),
    ),
    *of(
        "portwrap/cli/common.py",
        (
            "the host port is not published, too",
            "    if host_port in (port for port, _ in published):\n",
            "    if False:\n",
            "namespaces/test_mistakes.py -k 'host and published'",
        ),
        (
            "--allow-from needs the relay",
            '    if forward == "native":\n',
            "    if False:\n",
            "unit/test_allow_from.py -k relay",
        ),
        (
            "direct leaves nothing to a helper",
            '    if driver == drivers.DIRECT and outward == "helper":\n',
            "    if False:\n",
            f"{DIRECT} nothing_to_a_helper",
        ),
    ),
    *of(
        "portwrap/launch/sandbox.py",
        (
            "--allow-from is relayed",
            'self.forward = "relay" if allow_from else forward',
            "self.forward = forward",
            "namespaces/test_allow_from.py -k 'hand_over or who_is_served'",
        ),
    ),
    *of(
        "portwrap/cli/parser.py",
        (
            "an empty variable does not let everybody in",
            'if text is None or (text == "" and option.may_be_empty):',
            "if not text:",
            "unit/test_allow_from.py -k empty",
        ),
        (
            "a port is named once",
            "        if len({first for first, _ in pairs}) != len(pairs):\n",
            "        if False:\n",
            "unit/test_services.py",
        ),
    ),
    *of(
        "portwrap/cli/run.py",
        (
            "a name does not make a second line",
            """    return "".join(repr(char)[1:-1] if char.splitlines() == [""] else""",
            """    return "".join(char if True else""",
            "unit/test_messages.py -k line_end",
        ),
    ),
    *of(
        "portwrap/check/facts.py",
        (
            "the check tries namespaces in a child",
            "        namespaces.enter_new(0)\n",
            "        pass\n",
            f"{CHECK} 'namespaces'",
        ),
        (
            "the check makes a tap interface",
            "        make_device(open_tun(), DEVICE, IFF_TAP)\n",
            "        open_tun()\n",
            f"{CHECK} tun_device",
        ),
        (
            "few descriptors are reported",
            "few = hard < FEW_DESCRIPTORS or",
            "few = False and",
            f"{CHECK} few_descriptors",
        ),
        (
            "few namespaces are reported",
            "few = any(value.isdigit()",
            "few = any(False and value.isdigit()",
            f"{CHECK} few_namespaces",
        ),
    ),
    *of(
        "portwrap/check/session.py",
        (
            "a leak past the forward is seen",
            "        if fetch(family(place), place) == token:\n",
            "        if False:\n",
            f"{CHECK} past_the_forward",
        ),
        (
            "a server that does not answer is seen",
            '    if fetch(socket.AF_INET, ("127.0.0.1", session.host_port), SERVER_TIMEOUT)'
            " != token:\n",
            "    if False:\n",
            f"{CHECK} past_the_forward",
        ),
        (
            "a session of the check starts afresh beside threads",
            "        if is_threaded() and not afresh:\n",
            "        if False:\n",
            f"{JOB} agrees",
        ),
        (
            "a keeper that cannot go on is told",
            '        if "made" in self.reported:\n',
            "        if False:\n",
            f"{CHECK} cannot_go_on",
        ),
        (
            "the check waits for its keeper to end",
            "        self.read_errors(time.monotonic() + END_TIMEOUT)  # the keeper holds",
            "        pass  # the keeper holds",
            "unit/test_check_session.py",
        ),
        (
            "a session of the check may take as long as a start",
            "START_TIMEOUT = 60.0",
            "START_TIMEOUT = 5.0",
            "namespaces/test_mistakes.py -k 'agrees and never'",
        ),
        (
            "a session of the check that is late is told from one that ended",
            "        if self.process.poll() is None and",
            "        if False and",
            "unit/test_check_session.py",
        ),
        (
            "a busy node's server may take its time",
            "session.host_port), SERVER_TIMEOUT)",
            "session.host_port))",
            "unit/test_check_session.py",
        ),
        (
            "what the system refuses it is reported",
            "    except ANYWHERE as caught:\n        error = unexpected",
            "    except ZeroDivisionError as caught:\n        error = unexpected",
            "namespaces/test_mistakes.py -k 'agrees and netlink'",
        ),
        (
            "a clash is no firewall",
            "        if not hidden:\n",
            "        if True:\n",
            f"{CHECK} 'own_network and not natively'",
        ),
    ),
    *of(
        "portwrap/check/writable.py",
        (
            "who can change the program is reported",
            "        found = weaknesses(files)\n",
            "        found = list(weaknesses([]))\n",
            "namespaces/test_writable.py -k check_warns",
        ),
    ),
]

GUARDS: list[Guard] = [*PROTOCOL, *KERNEL, *LAUNCH, *KEEPERS, *PROGRAMS]
