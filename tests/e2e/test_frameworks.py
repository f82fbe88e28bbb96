"""Frameworks whose processes find each other by the node's name or interface, in one session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import OWNER, SYSTEM_PATH, cannot, needs, run_as
from sessions import unused_port

pytestmark = [pytest.mark.e2e, pytest.mark.apps, pytest.mark.timeout(400)]

PROGRAMS = TEST_ROOT / "versions" / "frameworks" / "bin"

MANAGER = """
import socket
from multiprocessing.managers import BaseManager
manager = BaseManager((socket.gethostname(), 0), b"key")
manager.start()
print("at", manager.address[0])
manager.shutdown()
"""
DASK = """
import socket
from dask.distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, {how}) as cluster:
        with Client(cluster) as client:
            print("at", cluster.scheduler_address.rpartition(":")[0].rpartition("/")[2])
            assert client.submit(lambda x: x + 1, 1).result(timeout=100) == 2
"""
SPARK = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[2]").getOrCreate()
assert spark.range(10).count() == 10
print("at", spark.sparkContext.getConf().get("spark.driver.host"))
"""
RAY = """
import socket
import ray
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)
assert ray.get(ray.remote(lambda x: x + 1).remote(1)) == 2
print("at", socket.gethostbyname(socket.gethostname()))
"""
TORCH = """
import socket
import torch
from torch import distributed
distributed.init_process_group("gloo")
total = torch.ones(1)
distributed.all_reduce(total)
assert total.item() == 2
if distributed.get_rank() == 0:
    print("at", socket.gethostbyname(socket.gethostname()))
distributed.destroy_process_group()
"""

CASES = {
    "BaseManager": (MANAGER, ["python"]),
    "Dask, by name": (DASK.format(how="host=socket.gethostname()"), ["python"]),
    "Dask, by interface": (DASK.format(how="interface='eth0'"), ["python"]),
    "Spark": (SPARK, ["python"]),
    "Ray": (RAY, ["python"]),
    "torchrun --standalone": (TORCH, ["torchrun", "--standalone", "--nproc-per-node=2"]),
    "torchrun, by name": (TORCH, ["torchrun", "--master-addr=node01", "--nproc-per-node=2"]),
}


@pytest.fixture
def home(world_dir: Path) -> Path:
    for name in ("home", "ray"):
        (world_dir / name).mkdir()
        shutil.chown(world_dir / name, OWNER, OWNER)
    return world_dir / "home"


@pytest.mark.parametrize("network", ["slirp4netns", "direct", "none"])
@pytest.mark.parametrize("case", CASES)
def test_processes_meet_at_the_nodes_own_address(
    pyz: Path, world_dir: Path, home: Path, case: str, network: str
) -> None:
    reason = why_namespaces_fail()
    if reason:
        cannot(reason)
    if not (PROGRAMS / "torchrun").exists():
        cannot(f"not installed: {PROGRAMS}; tests/setup.sh matrix installs it")
    needs("java")
    text, (program, *arguments) = CASES[case]
    script = world_dir / "program.py"
    script.write_text(text)
    environ = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PATH": f"{PROGRAMS}:{SYSTEM_PATH}",
        "SPARK_LOCAL_DIRS": str(home),
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_TMPDIR": str(world_dir),  # short: unix(7) has 108 bytes for a path
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    options = ["--port", str(unused_port()), "--network", network]
    # {guest-port} anywhere in the command: no --port is appended to it
    argv: list[str | Path] = [pyz, *options, "env", "GUEST={guest-port}"]
    argv += [PROGRAMS / program, *arguments, script]
    result = run_as(OWNER, argv, seconds=300, extra_env=environ, cwd=home)
    assert result.returncode == 0, result.stderr
    assert "at 10.77.0.1" in result.stdout.splitlines() or "at node01" in result.stdout, result
