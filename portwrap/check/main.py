"""`--check`: would a session start on this node? Each requirement is found out by using it.

    1  a child makes the namespaces and a tap interface in them (`facts.py`)
    2  sessions are started as servers are, one with each network driver (`session.py`); their
       command is `probe.py`
    3  the probe queries a nameserver, requests the URL and has ssh read its configuration; from
       outside, we connect to the host port, and try every other way in

Everything ends with us: the probes wait for the end of their standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time

from .. import __version__
from ..cli import byte_code
from ..diagnostics.diagnostic import os_release
from ..diagnostics.errors import EXIT_SANDBOX
from ..launch import dns, drivers, services
from . import facts as node
from .report import FAILED, OK, Result, as_text
from .session import Session, check_other_driver, check_session, not_started
from .writable import check_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .api import Api

SCHEMA = 1
"""The version of the JSON object's keys: it changes when one goes or changes its meaning."""


def main(program: str, settings: Mapping[str, Any], api: Api | None, as_json: bool) -> int:
    """Check, and print what was found. Returns 0 if a session would start, else 125."""
    began = time.monotonic()
    plan = {**settings, "program": program, "verbose": False, "allow_from": ""}
    del plan["announce"]  # and what is in place of it, and of the networks of clients: ours
    if settings["allow_from"]:
        plan["forward"] = "relay"  # which it implies
    results = run(plan, api)
    failed = [result.name for result in results if result.status == FAILED]
    facts = {
        "schema": SCHEMA,
        "host": os.uname().nodename,
        "version": __version__,
        "system": os_release().get("PRETTY_NAME", ""),
        "kernel": os.uname().release,
        "python": ".".join(map(str, sys.version_info[:3])),
        "interpreter": byte_code.interpreter(),
        "uid": os.geteuid(),
        "job": node.job_here(),
        "would_start": not failed,
        "failed": failed,
        "milliseconds": round(1000 * (time.monotonic() - began)),
        "checks": [result.as_dict() for result in results],
    }
    sys.stdout.write(json.dumps(facts) + "\n" if as_json else as_text(program, facts))
    return EXIT_SANDBOX if failed else 0


def run(settings: Mapping[str, Any], api: Api | None) -> list[Result]:
    """Every check, in the order in which they build on each other. What needs something that has
    failed is left out."""
    found = node.in_child(node.use_kernel)
    results = [node.check_kernel(), node.check_account(), node.check_namespaces(found)]
    network, may_be_direct = settings["network"], settings["outward"] != "helper"
    if network not in (drivers.NONE, drivers.DIRECT) and results[-1].status == OK:
        results.append(node.check_tun(found, network == drivers.AUTO and may_be_direct))
    if results[-1].status != FAILED:
        results += node.check_driver(settings)
    if results[-1].status != FAILED:
        results += node.check_services(settings)
    sessions: list[tuple[str, Session]] = []
    try:
        if results[-1].status != FAILED:
            results += start_sessions(sessions, settings, api)
        results += [node.check_byte_code(), node.check_descriptors()]
        results += [node.check_limits(), node.check_security(), *node.check_gpu()]
        results.append(check_program())
        for name, session in sessions:
            results += [check_other_driver(name, session)] if name else check_session(session, api)
    finally:
        for _, session in sessions:
            session.end()
    return results


def targets(api: Api | None) -> dict[str, Any]:
    """What the probe is to try from the sandbox. Without a nameserver, the C library asks this
    host."""
    servers = dns.name_servers(dns.RESOLV_CONF) or [services.LOOPBACK_IPV4]
    groups = sorted({os.getegid(), *os.getgroups()})
    return {"servers": servers, "ssh": True, "groups": groups, "url": api.target if api else None}


def start_sessions(
    sessions: list[tuple[str, Session]], settings: Mapping[str, Any], api: Api | None
) -> list[Result]:
    """Start a session as a server's would be, and one with each other network driver that could be
    in use. They go into `sessions`; what comes back says which could not even be begun."""
    # Ports that are published may be in use, by a session that runs; whether programs can get them
    # for port 0 does not depend on that.
    plans = [("", {**settings, "published": []}, targets(api))]
    if settings["network"] == drivers.AUTO:
        nothing: dict[str, Any] = {"servers": [], "ssh": False, "groups": [], "url": None}
        for driver in drivers.usable(os.environ)[1:]:
            plans.append((driver.name, {**plans[0][1], "network": driver.name}, nothing))
    for name, plan, tried in plans:
        try:
            sessions.append((name, Session(plan, tried)))
        except OSError as error:
            return [not_started(name, error)]
    return []
