"""Sessions on Debian 13, with its AppArmor, systemd and cgroups, and on Debian 11's kernel."""

from __future__ import annotations

import pytest
from vm.machine import Machine
from vm.units import HUB_PAGE, Server, Session, check_passes, named, processes

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

DRIVERS = {"trixie": ("slirp4netns", "pasta", "direct"), "bullseye": ("slirp4netns",)}
"""Debian 11 has no pasta, and its kernel no native outbound."""
NEIGHBOURS_ANSWER = 7  # curl(1): failed to connect


@pytest.mark.parametrize("forward", ["native", "relay"])
def test_a_session(machine: Machine, forward: str, subtests: pytest.Subtests) -> None:
    for driver in DRIVERS[machine.name]:
        with subtests.test(driver):
            environ = {"PORTWRAP_FORWARD": forward, "PORTWRAP_NETWORK": driver}
            session = Session(machine, environ)
            use(session)
            assert f"({forward}" in session.log()
            session.stop()
            assert processes(machine) == ""


def use(session: Server) -> None:
    """By its owner, from another host, and by its neighbour, who gets nothing."""
    session.wait_ready()
    assert session.get(f"fetch/{HUB_PAGE}") == "hub01\n"
    assert session.neighbours().status == NEIGHBOURS_ANSWER


def test_without_the_sandbox(machine: Machine) -> None:
    """The control: the same server, the same neighbour."""
    session = Session(machine, program=())
    session.wait_ready()
    assert session.neighbours().output == "served by 1000"
    session.stop()


def test_the_check(machine: Machine, subtests: pytest.Subtests) -> None:
    for driver in DRIVERS[machine.name]:
        with subtests.test(driver):
            found = named(check_passes(machine, {"PORTWRAP_NETWORK": driver}))
    assert "AppArmor" in found["security modules"]["fact"]
    assert machine.kernel in found["kernel"]["fact"]
