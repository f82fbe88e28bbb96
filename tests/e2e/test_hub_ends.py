"""How a session ends under a real hub, and how one that cannot start says so: with the sandbox as
without, in what the batch system sees, and in what is left."""

from __future__ import annotations

import os
import re
import socket

import pytest
from e2e.hub import KINDS, Hub

from helpers import wait_until
from sessions import holders_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

# ---- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_that_the_hub_stops_shuts_down_cleanly(hub: Hub, kind: str) -> None:
    with hub.running(kind):
        assert hub.start_kernel().cell("print('up')") == "up\n"
        port = hub.host_port()
    # The server's own words, and the status of a process that ended by itself.
    assert "received signal 15, stopping" in hub.log()
    assert "Kernel shutdown" in hub.log()
    assert_ended(hub, "CANCELLED 0:0")
    assert_free(port)


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_with_an_application_ends_as_a_whole(hub: Hub, kind: str) -> None:
    """Once an application runs, it is jupyter-server-proxy that hears SIGTERM: it ends the
    application and leaves the process at once."""
    with hub.running(kind):
        assert hub.client.get(hub.user("notes/")).status == 200
        port = hub.host_port()
    assert_ended(hub, "CANCELLED 0:0")
    assert_free(port)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_killed_is_seen_as_killed(hub: Hub, kind: str) -> None:
    with hub.running(kind):
        port = hub.host_port()
        os.kill(hub.job_pid(), 9)
        wait_until(lambda: hub.state() != "RUNNING", 60, "the end of the job")
    assert_ended(hub, "FAILED 0:9")
    assert_free(port)


def test_a_session_can_be_started_again(hub: Hub) -> None:
    for _ in range(2):
        with hub.running():
            assert hub.client.get(hub.user("api/contents")).status == 200


def assert_ended(hub: Hub, state: str) -> None:
    """The job has ended this way, and all of it: the batch system had nothing left to kill."""
    assert hub.state() == state
    assert "killing what is left" not in hub.log()
    # The step daemon itself ends just after it has written the state.
    wait_until(lambda: not hub.processes(), 60, f"the end of {hub.processes()}")


def assert_free(port: int) -> None:
    """Nobody holds the port, or only what is ending at this moment."""
    wait_until(lambda: not holders_of(port), 10, f"port {port} free")


# ---- starts that fail -----------------------------------------------------------------------

# Each makes the kernel say no by itself, in a namespace that ends with the job.
NO_NAMESPACES = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
NO_SLIRP4NETNS = 'mount --bind /dev/null "$(command -v slirp4netns)" && exec "$@"'


def assert_fails(hub: Hub, cmd: list[str], state: str, pattern: str) -> None:
    """The job ends by itself within seconds, with two lines of ours and no traceback."""
    hub.begin_spawn(cmd)
    try:
        wait_until(lambda: hub.state() not in ("", "RUNNING"), 60, "the job's end")
        lines = [line for line in hub.log().splitlines() if line]
        assert re.search(rf"^batchspawner-portwrap: .*{pattern}", lines[-2]), lines
        assert lines[-1].startswith("  "), lines
        assert "Traceback" not in hub.log()
        assert_ended(hub, state)
    finally:
        hub.stop()


def test_a_missing_command_is_named(hub: Hub) -> None:
    cmd = hub.command("no-such-server")
    assert_fails(hub, cmd, "FAILED 127:0", "no-such-server: not found")


def test_a_busy_host_port_is_named(hub: Hub) -> None:
    with socket.create_server(("0.0.0.0", 0)) as rival:
        port = rival.getsockname()[1]
        cmd = hub.command("--port", str(port), "jupyterhub-singleuser")
        assert_fails(hub, cmd, "FAILED 125:0", f"{port}.*in use")


@pytest.mark.parametrize(
    ("refusal", "options", "pattern"),
    [
        pytest.param(NO_NAMESPACES, [], "CLONE_NEWUSER.*No space left", id="no user namespaces"),
        pytest.param(
            NO_SLIRP4NETNS,
            ["--outward", "helper"],
            "slirp4netns not found|neither slirp4netns nor pasta found",
            id="no slirp4netns",
        ),
    ],
)
def test_a_node_that_cannot_make_a_sandbox_is_told(
    hub: Hub, refusal: str, options: list[str], pattern: str
) -> None:
    cmd = hub.command(*options, "jupyterhub-singleuser")
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", refusal, "sh"]
    assert_fails(hub, prefix + cmd, "FAILED 125:0", pattern)
