"""Programs of a user's day that other hosts call back, through published ports, and X by its path.
They are large: only `tests/run.sh matrix` has them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
from networks import HOST, SERVER, Host

from conftest import TEST_ROOT
from helpers import OWNER, as_user, cannot, end, identity, needs, wait_until
from sessions import Portwrap, Session, unused_port

pytestmark = [pytest.mark.namespaces, pytest.mark.apps, pytest.mark.timeout(120)]

PROGRAMS = TEST_ROOT / "versions" / "applications" / "bin"


@pytest.fixture(params=["slirp4netns", "pasta"])
def network(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    if not (TEST_ROOT / "versions" / "applications.complete").exists():
        cannot(f"no {PROGRAMS}; tests/setup.sh matrix installs it")
    return str(request.param)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# A notebook's scheduler, as `distributed.LocalCluster` and dask-jobqueue start one.
DASK = """
import asyncio, sys
from distributed import Client, Scheduler
async def main(address, port):
    contact = f"tcp://{address}:{port}"
    async with Scheduler(port=int(port), contact_address=contact, dashboard=False) as scheduler:
        print("up", flush=True)
        async with Client(f"tcp://127.0.0.1:{port}", asynchronous=True) as client:
            await client.wait_for_workers(1)
            print(await client.submit(lambda: __import__("socket").gethostname() and 6 * 7))
            print(await client.gather(client.map(lambda x: x * x, range(5))), flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


def test_dask_workers_call_their_scheduler(
    portwrap: Portwrap, host: Host, network: str, world_dir: Path
) -> None:
    port = unused_port()
    world_dir.chmod(0o777)
    scratch = {"DASK_TEMPORARY_DIRECTORY": str(world_dir)}
    words = [str(PROGRAMS / "python"), "-c", DASK, HOST, str(port)]
    options: dict[str, Any] = {"network": network}
    options["extra_env"] = {"PORTWRAP_PUBLISH": str(port), **scratch}
    with Session(portwrap, words, **options) as session:
        assert read_line(session.process) == "up", session.process.communicate()
        module = ["-m", "distributed.cli.dask_worker"]
        worker = [f"{PROGRAMS}/python", *module, f"tcp://{HOST}:{port}"]
        worker += ["--host", SERVER, "--no-dashboard", "--no-nanny", "--nthreads", "1"]
        with host.entered(host.server):
            other = as_user(OWNER, worker, extra_env=scratch, stderr=subprocess.DEVNULL)
        try:
            assert read_line(session.process) == "42"
            assert read_line(session.process) == "[0, 1, 4, 9, 16]"
        finally:
            end(other)


# A notebook's view on the engines that have come, found by the controller's file.
VIEW = """
import sys, ipyparallel
client = ipyparallel.Client(sys.argv[1], timeout=30)
client.wait_for_engines(1, timeout=30)
print(client[:].apply_sync(lambda: 6 * 7))
"""


def test_ipyparallel_engines_call_their_controller(
    portwrap: Portwrap, host: Host, network: str, world_dir: Path
) -> None:
    first = unused_port()
    ports = f"{first}-{first + 19}"
    owner = identity(OWNER)
    os.chown(world_dir, owner["user"], owner["group"])
    home = {"IPYTHONDIR": f"{world_dir}/ipython", "HOME": str(world_dir)}
    files = f"{world_dir}/ipython/profile_default/security"
    controller = f"{PROGRAMS}/ipcontroller --ip=0.0.0.0 --location={HOST} --ports={ports} --nodb"
    view = f"{PROGRAMS}/python -c '{VIEW}' {files}/ipcontroller-client.json"
    script = f"{controller} & echo up; read _; exec {view}"
    options: dict[str, Any] = {"network": network, "stdin": subprocess.PIPE}
    options["extra_env"] = {"PORTWRAP_PUBLISH": ports, **home}
    with Session(portwrap, ["sh", "-c", script], **options) as session:
        assert read_line(session.process) == "up", session.process.communicate()
        file = Path(files) / "ipcontroller-engine.json"
        wait_until(file.exists, 60, "the controller's file")
        engine = [f"{PROGRAMS}/ipengine", f"--file={file}"]
        with host.entered(host.server):
            other = as_user(OWNER, engine, extra_env=home, stderr=subprocess.DEVNULL)
        try:
            assert session.process.stdin is not None
            session.process.stdin.write("go\n")
            session.process.stdin.flush()
            assert read_line(session.process) == "[42]"
        finally:
            end(other)


@pytest.fixture
def sockets_of_x() -> Iterator[None]:
    """The directory that a machine with X has."""
    place = Path("/tmp/.X11-unix")
    if place.exists():
        yield
        return
    place.mkdir()
    place.chmod(0o1777)
    try:
        yield
    finally:
        place.rmdir()


@pytest.mark.usefixtures("sockets_of_x", "host")
def test_a_screen(portwrap: Portwrap, network: str) -> None:
    """The abstract socket of an X server is out of reach; clients then take that with a path. Its
    TCP port, as `ssh -X` and `srun --x11` have one, is a service of the host's."""
    needs("Xvfb", "xdpyinfo")
    server = as_user(OWNER, ["Xvfb", "-displayfd", "1", "-listen", "tcp", "-ac"], stderr=None)

    def look(display: str, **extra: str) -> str:
        extra["DISPLAY"] = display
        with Session(portwrap, ["xdpyinfo"], network=network, extra_env=extra) as session:
            stdout, stderr = session.process.communicate(timeout=30)
        return str(stdout or stderr)

    try:
        number = int(read_line(server))
        assert "vendor string" in look(f":{number}")
        assert "unable to open display" in look(f"127.0.0.1:{number}")
        named = {"PORTWRAP_HOST_SERVICE": str(6000 + number)}
        assert "vendor string" in look(f"127.0.0.1:{number}", **named)
    finally:
        server.terminate()
        server.wait(10)
        end(server)
