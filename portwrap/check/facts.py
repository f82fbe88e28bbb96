"""What --check looks at without a session: the kernel, the account, limits, security modules."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

from ..cli import byte_code
from ..diagnostics.errors import Failure, PortwrapError
from ..diagnostics.lookup import read_setting
from ..keeper.driver import variables
from ..kernel.interfaces import IFF_TAP, TUN, make_device, open_tun
from ..kernel.seccomp_filter import has_outer_filter
from ..launch import dns, drivers, hosts, namespaces, services
from ..launch.drivers.direct import Direct
from ..launch.drivers.driver import find_executable, why_no_tun
from ..launch.drivers.routes import DEVICE
from .report import FAILED, OK, WARNING, Result, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

VERSION_TIMEOUT = 1.0
"""Seconds that a network driver may take to print its version."""
FEW_DESCRIPTORS = 1024
FEW_NAMESPACES = 1000
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "_CONDOR_SLOT")
"""Variables that batch systems set in their jobs."""


def in_child(action: Callable[[], dict[str, list[str]]]) -> dict[str, list[str]]:
    """What the action finds in a process of its own, which may leave our namespaces."""
    output, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(end, json.dumps(action()).encode())
        finally:
            os._exit(0)
    os.close(end)
    with open(output, "rb") as file:
        found = file.read()
    os.waitpid(pid, 0)
    if not found:
        return {"namespaces": ["the check itself was ended", Failure.KEEPER]}
    return dict(json.loads(found))


def use_kernel() -> dict[str, list[str]]:
    """Make the namespaces and a tap interface in them. Returns the refusal of each, if any, with
    its identifier."""
    try:
        namespaces.enter_new(0)
    except PortwrapError as error:
        return {"namespaces": [error.message, error.failure]}
    no_tun = why_no_tun()
    if no_tun is not None:
        return {"tun": [no_tun.message, no_tun.failure]}
    try:
        make_device(open_tun(), DEVICE, IFF_TAP)
    except OSError as error:
        return {"tun": [f"{TUN}: TUNSETIFF: {error.strerror}", Failure.TUN_BROKEN]}
    return {}


def check_kernel() -> Result:
    release = os.uname().release
    numbers = [int(word) for word in release.replace("-", ".").split(".")[:2] if word.isdigit()]
    status = OK if numbers >= [4, 18] else WARNING
    fact = f"Linux {release} {os.uname().machine}"
    return Result("kernel", status, fact, Failure.NAMESPACE_MISSING)


def check_account() -> Result:
    job = job_here()
    who = f"uid {os.geteuid()}, {f'in job {job}' if job else 'in no batch job'}"
    if os.geteuid() == 0:
        fact = f"{who}: run it as an ordinary user; root bypasses some of these checks"
        return Result("account", WARNING, fact)
    return Result("account", OK, who)


def check_namespaces(found: Mapping[str, Sequence[str]]) -> Result:
    if "namespaces" in found:
        message, failure = found["namespaces"]
        note = "; a seccomp filter is in force" if has_outer_filter() else ""
        return Result("user namespaces", FAILED, message + note, failure, message)
    return Result("user namespaces", OK, "created, with a network namespace")


def check_tun(found: Mapping[str, Sequence[str]], may_be_missing: bool) -> Result:
    if "tun" in found:
        can_do_without = may_be_missing and why_no_tun() is not None
        return Result("tun device", WARNING if can_do_without else FAILED, *found["tun"])
    return Result("tun device", OK, "created a tap interface in the sandbox")


def check_driver(settings: Mapping[str, Any]) -> list[Result]:
    """That there is a network driver, or that a session can do without; how it works is seen with a
    session."""
    names = [name for name, _ in settings["node_services"]]
    try:
        driver = drivers.choose_for(
            settings["network"], settings["outward"], names, os.environ, hosts.read_hosts_file()
        )
    except PortwrapError as error:
        return [refused("network driver", FAILED, error)]
    if isinstance(driver, Direct) and driver.instead_of is not None:
        why = driver.instead_of
        row = why.failure, why.message, why.subject
        return [Result("network driver", WARNING, driver.warning, *row)]
    if driver is not None and driver.warning:
        return [Result("network driver", WARNING, driver.warning, Failure.SUBNETS)]
    return []


def check_services(settings: Mapping[str, Any]) -> list[Result]:
    """That no port is a host service and forwarded, too."""
    offered = services.distinct([*settings["host_services"], *dns.needed()])
    try:
        services.check(offered, settings["guest_port"], settings["published"])
    except PortwrapError as error:
        return [refused("session", FAILED, error)]
    return []


def check_descriptors() -> Result:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used, _, most = (read_setting("fs/file-nr") or "0 0 0").split()
    few = hard < FEW_DESCRIPTORS or 0 < int(most) < int(used) + FEW_DESCRIPTORS
    fact = f"limit {soft}, at most {hard}; the node uses {used} of {most}"
    return Result("descriptors", WARNING if few else OK, fact, Failure.FEW_DESCRIPTORS)


def check_limits() -> Result:
    limits = {kind: read_setting(f"user/max_{kind}_namespaces") for kind in ("user", "net")}
    few = any(value.isdigit() and int(value) < FEW_NAMESPACES for value in limits.values())
    fact = ", ".join(f"user.max_{kind}_namespaces {value}" for kind, value in limits.items())
    return Result("kernel limits", WARNING if few else OK, fact, Failure.FEW_NAMESPACES)


def check_byte_code() -> Result:
    if byte_code.is_used():
        return Result("byte code", OK, "used: a session compiles no module")
    if not byte_code.IS_ARCHIVE:
        return Result("byte code", OK, "cached by Python, as for any installed package")
    fact = f"none for Python {sys.version.split()[0]}: each start compiles the modules"
    python = byte_code.interpreter()
    return Result("byte code", WARNING, fact, Failure.NO_BYTE_CODE, subject=python)


def check_security() -> Result:
    """SELinux and AppArmor. What they forbid is seen where it is tried."""
    found = []
    if os.path.exists("/sys/fs/selinux/enforce"):
        enforces = read("/sys/fs/selinux/enforce") == "1"
        found.append(f"SELinux {'enforcing' if enforces else 'permissive'}")
    if read("/sys/module/apparmor/parameters/enabled") == "Y":
        restricts = read_setting("kernel/apparmor_restrict_unprivileged_userns") == "1"
        found.append(f"AppArmor{', which restricts user namespaces' if restricts else ''}")
    label = read("/proc/self/attr/current").strip("\0")
    if found and label:
        found.append(f"this process is {label}")
    return Result("security modules", OK, "; ".join(found) or "neither SELinux nor AppArmor")


def check_gpu() -> list[Result]:
    """NVIDIA's devices, where there are any: what makes one that is missing is setuid."""
    cards = [name for name in os.listdir("/dev") if name[:6] == "nvidia" and name[6:].isdigit()]
    if not cards:
        return []
    first = f"/dev/{min(cards)}"
    if os.path.exists("/dev/nvidia-uvm"):
        return [Result("gpu", OK, f"{first} and /dev/nvidia-uvm")]
    return [Result("gpu", WARNING, f"{first} without /dev/nvidia-uvm", Failure.GPU_MEMORY)]


def read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def job_here() -> str:
    """The number of the batch job that this is; "" for none."""
    return next((os.environ[name] for name in JOBS if os.environ.get(name)), "")


def version_of(name: str) -> str:
    """What a network driver prints as its version, in one line; its name where that says less."""
    path = find_executable(name, os.environ) or name
    try:
        result = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables(),
            timeout=VERSION_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return name
    line = result.stdout.decode("utf-8", "replace").partition("\n")[0].strip()
    # Debian 12 builds pasta without a version
    return name if not line or "unknown version" in line else line
