"""The story: from the arguments to the command running in its sandbox. Read this first.

    P  the launching process, which the batch system started; it ends up being the command itself
    K  the keeper (package `keeper`), the one helper that stays, with the network driver as child

     1  P starts K, a fresh interpreter; the archive does so while it loads the rest of this
     2  P binds and listens on the host port, and on those to be published
     3  P moves into new user and network namespaces, has K start the network driver on them,
        listens there for the host services, and tells K to go, with all these sockets and what K
        needs of P
     4  K enters the sandbox too, to be the relay; it stays with the host for host services and for
        native forwarding
     5  K reports that it is ready: outbound works, and clients can connect
     6  P arms the lifeline and execs the command in place. Meanwhile K loads the code that serves;
        where it has to relay and is outside, a worker of it does so in the sandbox

There is no supervisor. The command keeps its PID, parent, terminal and exit status, because it is
exec'ed; K ends when the command does, because it holds a pidfd of it; and the command gets SIGTERM
when K ends, because the kernel sends it when K's end of the lifeline closes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from ..diagnostics.log import log
from ..kernel.processes import open_process
from ..protocol import Descriptors, Go, StartDriver
from . import lifeline as keeper
from . import ports, services
from .command import exec_command, find_command, keep_across_exec, restore_signals
from .startup_line import log_step, what_was_made

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from socket import socket
    from typing import NoReturn

    from .drivers.driver import NetworkDriver
    from .lifeline import Lifeline
    from .native import Native
    from .own_address import Node
    from .ports import HostPort
    from .sandbox import Sandbox

LIFELINE_FROM = 960
"""Lowest descriptor number of the lifeline: far above those a program expects to get next."""


def launch(sandbox: Sandbox, command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Make the sandbox and become the command. Returns only by raising PortwrapError: the caller
    is in the new namespaces then, with signals at their defaults, and has to end."""
    restore_signals()
    path = find_command(command[0], environ)
    log_step(sandbox, f"the command is {path}")
    lifeline = keeper.start(sandbox.program)
    log_step(sandbox, "the keeper is starting")
    port = ports.bind(sandbox.host, sandbox.host_port)
    log_step(sandbox, f"listening on {sandbox.address}")
    published = _bind_published(sandbox)
    # Imported here, and further below: while the keeper's interpreter and the driver start.
    from . import dns, drivers, hosts, namespaces, native, own_address, ssh_config

    known = hosts.read_hosts_file()
    names = [name for name, _ in sandbox.node_services]
    driver = drivers.choose_for(sandbox.network, sandbox.outward, names, environ, known)
    wanted = native.wanted_in(sandbox)
    resolvers = dns.needed(every=driver is not None and driver.name == drivers.DIRECT)
    covered = ssh_config.needed(environ)
    offered = services.distinct([*sandbox.host_services, *resolvers])
    node = own_address.read_node(sandbox.node_services, known)
    services.check(offered, sandbox.guest_port, sandbox.published)
    process = _open_this_process()
    namespaces.enter_new(0)
    if driver is not None and driver.path:
        _start_driver(lifeline, driver, has_pidfd=process[1])
    _give_own_addresses(sandbox, node, with_rules=driver is not None and bool(driver.path))
    if driver is not None:
        driver.configure({resolver.address for resolver in resolvers}, node.given)
    listeners = services.listen(offered)
    _send_go(lifeline, sandbox, process, wanted, port, published, node, driver, listeners)
    ssh_folders = _cover_ssh_config(sandbox, covered)
    log_step(sandbox, "entered new user and network namespaces")
    made = native.agree(lifeline, wanted, insist=sandbox.outward == "native")
    made.check(sandbox, driver)
    if made.why_relayed:
        log_step(sandbox, f"forward: relay, because {made.why_relayed}")
    lifeline.wait_until_ready()
    log_step(sandbox, "the keeper is ready" + (", and so is outbound" if driver else ""))
    if driver is not None and driver.warning:
        log(f"{sandbox.program}: {driver.warning}\n")
    _route_node_services(sandbox, node, driver)
    if sandbox.announce:
        facts = what_was_made(sandbox, made, driver, ssh_folders, resolvers)
        sandbox.announce(sandbox, facts)
    _arm(lifeline)
    exec_command(path, command, environ)


def _bind_published(sandbox: Sandbox) -> list[tuple[HostPort, int]]:
    """The ports of the host to be published, each with its guest port. Raises PortwrapError."""
    return [
        (ports.bind(sandbox.host, number, ports.PUBLISHED), guest)
        for number, guest in sandbox.published
    ]


def _open_this_process() -> tuple[int, bool]:
    """A descriptor for the keeper to watch this process by, and whether it is a pidfd."""
    from . import outer_filter

    return open_process(os.getpid(), not outer_filter.why_not(["pidfd_open"]))


def _start_driver(lifeline: Lifeline, driver: NetworkDriver, has_pidfd: bool) -> None:
    """Have the keeper start this driver on the namespaces of this process. Raises PortwrapError.

    As soon as they exist: it takes longer to be ready than what is left to do here.
    """
    argv, ready = driver.argv(os.getpid()), driver.ready_descriptor
    lifeline.send(StartDriver(driver.name, argv, ready, keeper.DRIVER_TIMEOUT, has_pidfd))


def _send_go(
    lifeline: Lifeline,
    sandbox: Sandbox,
    process: tuple[int, bool],
    wanted: Native,
    port: HostPort,
    published: Sequence[tuple[HostPort, int]],
    node: Node,
    driver: NetworkDriver | None,
    host_services: Sequence[socket],
) -> None:
    """Tell the keeper to go, with these sockets, and close them here. Raises PortwrapError.

    `published` are more ports of the host, each with its guest port; `host_services` listen in the
    sandbox.
    """
    command = os.getpid()
    descriptor, has_pidfd = process
    descriptors = _descriptors(descriptor, port, [other for other, _ in published], host_services)
    go = Go(
        program=sandbox.program,
        verbose=sandbox.verbose,
        command=command,
        has_pidfd=has_pidfd,
        lifeline=lifeline.socket.fileno(),
        guest_port=sandbox.guest_port,
        native_forward=not wanted.no_forward,
        native_outbound=not wanted.no_outbound,
        driver_networks=ports.parse_networks(",".join(driver.networks)) if driver else [],
        every_address_is_local=driver is not None and not driver.path,
        address=id(command),  # which in CPython is one
        allowed=sandbox.allowed,
        published_to=[guest for other, guest in published for _ in other.listeners],
        ephemeral=sandbox.ephemeral,
        own_addresses=node.given,
        routed_ports=node.routed,
        descriptors=descriptors,
    )
    try:
        lifeline.send(go, descriptors.in_order())
    finally:
        for descriptor in descriptors.in_order():
            os.close(descriptor)


def _descriptors(
    process: int,
    port: HostPort,
    published: Sequence[HostPort],
    host_services: Sequence[socket],
) -> Descriptors:
    """What the keeper gets from this process, which keeps no other reference to it."""
    return Descriptors(
        process,
        os.open("/proc/self/ns/user", os.O_RDONLY),
        os.open("/proc/self/ns/net", os.O_RDONLY),
        listeners=_detached(port.listeners),
        published=_detached(socket for other in published for socket in other.listeners),
        reserved=_detached(socket for each in (port, *published) for socket in each.reserved),
        services=_detached(host_services),
    )


def _detached(sockets: Iterable[socket]) -> list[int]:
    return [socket.detach() for socket in sockets]


def _give_own_addresses(sandbox: Sandbox, node: Node, with_rules: bool) -> None:
    """Give the sandbox the node's addresses."""
    from . import own_address

    try:
        own_address.give(node, with_rules)
    except OSError as error:  # a kernel without rules by port
        log_step(sandbox, f"without the node's own addresses: {error.strerror}")
        return
    log_step(sandbox, f"the node's own addresses: {', '.join(node.given) or 'none'}")


def _route_node_services(sandbox: Sandbox, node: Node, driver: NetworkDriver | None) -> None:
    """Have the network driver, which is ready, carry what is for the node's services by IPv6."""
    from . import own_address
    from .drivers import routes

    if driver is None or not driver.has_ipv6:
        return
    try:
        own_address.route_services(node, routes.DEVICE, routes.ROUTER6, routes.ADDRESS6)
    except OSError as error:
        log_step(sandbox, f"without the node's services by IPv6: {error.strerror}")


def _cover_ssh_config(sandbox: Sandbox, covered: Mapping[str, set[str]]) -> str:
    """Have ssh accept the configuration that root has given it; return which directories it is."""
    if not covered:
        return ""
    from . import ssh_cover

    why = ssh_cover.apply(covered)
    folders = ", ".join(sorted(covered))
    if why:
        log(f"{sandbox.program}: ssh rejects root-owned files in {folders}: {why}\n")
    return "" if why else folders


def _arm(lifeline: Lifeline) -> None:
    """Have the kernel send this process SIGTERM when the keeper's end of the lifeline closes.

    The setting belongs to the open file, so it outlives exec (fcntl(2)). Set first, looked at
    afterwards: in the other order a keeper that ends in between is never noticed.
    """
    descriptor = _high_descriptor(lifeline.socket.fileno())
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGTERM)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        lifeline.check_alive()
    finally:
        keep_across_exec([descriptor])


def _high_descriptor(descriptor: int) -> int:
    """A duplicate with a high number, or as high as the limit of descriptors allows."""
    for lowest in (LIFELINE_FROM, 200, 20, 3):
        try:
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EMFILE):
                raise
    return descriptor
