"""What systemd, sysctls and AppArmor refuse on Debian 13: what is reported, and that the remedy is
one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import pytest
from vm.machine import Machine
from vm.test_sessions import use
from vm.units import Session, check, check_passes, named

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(3600),
    pytest.mark.parametrize("machine", ["trixie"], indirect=True),
]

BY_DRIVER = {"PORTWRAP_NETWORK": "slirp4netns", "PORTWRAP_OUTWARD": "helper"}


@dataclass
class Unit:
    """Properties of a service (systemd.exec(5)) with which a session is refused, and why; those
    that are the remedy, which the check names."""

    properties: tuple[str, ...]
    said: str
    check: str
    remedy: str
    mended: tuple[str, ...]


UNITS = {
    "a /dev of its own": Unit(
        ("PrivateDevices=yes",),
        "No such file or directory",
        "tun device",
        "BindPaths=/dev/net/tun and DeviceAllow=/dev/net/tun",
        ("PrivateDevices=yes", "BindPaths=/dev/net/tun", "DeviceAllow=/dev/net/tun rw"),
    ),
    "a device cgroup": Unit(
        ("DevicePolicy=closed",),
        "Operation not permitted",
        "tun device",
        "DeviceAllow=/dev/net/tun of a systemd unit",
        ("DevicePolicy=closed", "DeviceAllow=/dev/net/tun rw"),
    ),
    "no namespaces": Unit(
        ("RestrictNamespaces=yes",),
        "unshare(CLONE_NEWUSER|CLONE_NEWNET): Operation not permitted",
        "user namespaces",
        "RestrictNamespaces= of a systemd unit",
        ("RestrictNamespaces=user net mnt",),
    ),
}


@pytest.mark.parametrize("name", UNITS)
def test_a_service_that_forbids_it(machine: Machine, name: str) -> None:
    unit = UNITS[name]
    refused = Session(machine, BY_DRIVER, unit.properties)
    assert refused.status() == 125
    log = refused.log()
    assert unit.said in log and unit.remedy in log, log
    assert "Traceback" not in log and len(log.splitlines()) == 2, log
    refused.stop()
    answer = check(machine, BY_DRIVER, unit.properties)
    assert not answer["would_start"]
    found = named(answer)[unit.check]
    assert found["status"] == "failed" and unit.said in found["fact"], found
    assert unit.remedy in found["remedy"], found
    allowed = Session(machine, BY_DRIVER, unit.mended)
    use(allowed)
    allowed.stop()
    check_passes(machine, BY_DRIVER, unit.mended)


@pytest.mark.parametrize("properties", [UNITS[name].properties for name in list(UNITS)[:2]])
def test_without_the_device_a_session_needs_none(
    machine: Machine, properties: tuple[str, ...]
) -> None:
    session = Session(machine, properties=properties)
    use(session)
    session.stop()


FILTERS = {
    "relay": ("SystemCallFilter=@system-service", "SystemCallErrorNumber=EPERM"),
    "killed": ("SystemCallFilter=@system-service",),
    "native": ("SystemCallFilter=@system-service @mount pidfd_getfd seccomp",),
}


@pytest.mark.parametrize("forward", FILTERS)
def test_a_filter_of_system_calls(machine: Machine, forward: str) -> None:
    """docs/containers.md has which of them is enough for what."""
    session = Session(machine, properties=FILTERS[forward])
    use(session)
    assert f"({'native' if forward == 'native' else 'relay'}" in session.log()
    session.stop()
    check_passes(machine, properties=FILTERS[forward])


@pytest.mark.parametrize("kind", ["user", "net"])
def test_namespaces_switched_off(machine: Machine, kind: str) -> None:
    """The command that is printed switches them on, for root with root's PATH."""
    setting = f"user.max_{kind}_namespaces"
    before = machine.do("sysctl", "-n", setting).strip()
    try:
        machine.do("sysctl", "-w", f"{setting}=0")
        refused = Session(machine)
        assert refused.status() == 125
        log = refused.log()
        assert "No space left on device" in log and f"{setting} is 0" in log, log
        refused.stop()
        found = named(check(machine))["user namespaces"]
        assert found["status"] == "failed" and found["command"] in log, found
        machine.shell(found["command"])
        session = Session(machine)
        use(session)
        session.stop()
        check_passes(machine)
    finally:
        machine.do("sysctl", "-w", f"{setting}={before}")
        machine.do("rm", "-f", "/etc/sysctl.d/90-portwrap.conf")


# ---- AppArmor ----------------------------------------------------------------------------------

SITES = """
abi <abi/4.0>,
include <tunables/global>
profile site /opt/tests/*.pyz {
  file, network, capability, signal, ptrace, unix, mount, umount, pivot_root, mqueue,
}
"""
"""A site's profile for its programs, which does not let them have user namespaces."""


@pytest.fixture
def confined(machine: Machine) -> Iterator[None]:
    machine.write("/etc/apparmor.d/site", SITES)
    machine.write("/usr/local/bin/batchspawner-singleuser", "#!/bin/sh\n", 0o755)
    machine.do("apparmor_parser", "-r", "/etc/apparmor.d/site")
    yield
    machine.do("apparmor_parser", "-R", "/etc/apparmor.d/site")
    ours = "/etc/apparmor.d/batchspawner-portwrap"
    machine.run("apparmor_parser", "-R", ours)
    machine.do("rm", "-f", "/etc/apparmor.d/site", ours)


def test_apparmor(machine: Machine, confined: None) -> None:
    """With the profiles that are printed, loaded by the command that is, a session starts."""
    refused = Session(machine)
    assert refused.status() == 125
    log = refused.log()
    assert "Permission denied" in log and "AppArmor" in log, log
    refused.stop()
    answer = check(machine)
    assert not answer["would_start"]
    found = named(answer)["user namespaces"]
    assert found["command"] in log, (found, log)
    machine.shell(found["command"])
    session = Session(machine)
    use(session)
    session.stop()
    found = named(check_passes(machine))["security modules"]
    assert "batchspawner-portwrap" in found["fact"], found


@pytest.mark.parametrize("driver", ["pasta", "slirp4netns"])
def test_the_end_under_apparmor(machine: Machine, driver: str) -> None:
    """pasta's own profile takes signals from unconfined processes only."""
    machine.shell(
        "/opt/tests/batchspawner-portwrap.pyz --check --apparmor /bin/true"
        " >/etc/apparmor.d/batchspawner-portwrap"
        " && apparmor_parser -r /etc/apparmor.d/batchspawner-portwrap"
    )
    try:
        session = Session(machine, {"PORTWRAP_NETWORK": driver, "PORTWRAP_OUTWARD": "helper"})
        use(session)
        session.stop()
        assert "shut down" in session.log()
        assert "Traceback" not in session.log()
    finally:
        machine.do("apparmor_parser", "-R", "/etc/apparmor.d/batchspawner-portwrap")
        machine.do("rm", "/etc/apparmor.d/batchspawner-portwrap")
