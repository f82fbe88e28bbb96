"""Which ports of the host's loopback answer inside, and which ports are published."""

from __future__ import annotations

import socket
from typing import Iterator

import pytest

from batchspawner_portwrap import PARSER, hub_services
from portwrap.cli.common import common_settings
from portwrap.diagnostics.errors import PortwrapError
from portwrap.launch import port_lists, services
from portwrap.launch.services import Service

API, ACTIVITY = "JUPYTERHUB_API_URL", "JUPYTERHUB_ACTIVITY_URL"


def settings(*words: str, **environ: str) -> dict[str, object]:
    """What our program makes of these options."""
    values, _ = PARSER.parse([*words, "server"], environ)
    return common_settings(PARSER, values, 40001)


def told(found: list[Service]) -> list[str]:
    return [str(service) for service in found]


# ---- --publish ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        ([], []),
        (["--publish", "8787"], [(8787, 8787)]),
        (["--publish=9000:80"], [(9000, 80)]),
        (["--publish", "1,2:3", "--publish", "4"], [(1, 1), (2, 3), (4, 4)]),
        (["--publish", "30000-30002"], [(30000, 30000), (30001, 30001), (30002, 30002)]),
        (["--publish", "10-11:20-21"], [(10, 20), (11, 21)]),
        (["--publish", "65535, 7-7"], [(65535, 65535), (7, 7)]),
    ],
)
def test_published_ports(words: list[str], pairs: list[tuple[int, int]]) -> None:
    assert settings(*words)["published"] == pairs


def test_published_ports_of_the_environment() -> None:
    environ = {"PORTWRAP_PUBLISH": "1,2:3"}
    assert settings(**environ)["published"] == [(1, 1), (2, 3)]
    assert settings("--publish", "4", **environ)["published"] == [(4, 4)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "x",
        "1:",
        ":1",
        "65536",
        "1-",
        "-1",
        "2-1",
        "1-2:3",
        "1-2:3-5",
        "1,",
        "1:2:3",
        "1-2-3",
    ],
)
def test_no_published_ports(text: str) -> None:
    with pytest.raises(PortwrapError, match="--publish must be") as caught:
        settings("--publish", text)
    assert caught.value.exit_code == 2 and repr(text) in caught.value.message


@pytest.mark.parametrize("text", ["1,1", "1:2,1:3", "5-9,7"])
def test_a_port_is_published_once(text: str) -> None:
    with pytest.raises(PortwrapError, match="lists a port twice"):
        settings("--publish", text)


def test_the_host_port_is_not_published_again() -> None:
    with pytest.raises(PortwrapError, match="40001 is the host port already"):
        settings("--publish", "40000-40002")


def test_ephemeral_ports_are_published() -> None:
    found = settings("--publish", "1:2", "--publish-ephemeral", "30000-30001")
    assert found["published"] == [(1, 2), (30000, 30000), (30001, 30001)]
    assert found["ephemeral"] == [30000, 30001]
    assert settings()["ephemeral"] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("40000-40002", "40001 is the host port already"),
        ("8888", "8888 is the guest port already"),
        ("1", "1 is published already"),
        ("2-3", "2 is published already"),
        ("5-6,6", "lists a port twice"),
        ("5:6", "must be PORT or a range"),
    ],
)
def test_ephemeral_ports_are_nothing_else(text: str, said: str) -> None:
    with pytest.raises(PortwrapError, match=said) as caught:
        settings("--publish", "1:2", "--publish-ephemeral", text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["1, 3", "1-3", "1-2:8-9, 3:7", "5:6, 9-11"])
def test_pairs_are_described_as_they_are_read(text: str) -> None:
    pairs = port_lists.parse_pairs(text)
    assert pairs is not None and port_lists.describe_pairs(pairs) == text


# ---- --host-service -----------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of ::1 that something listens on."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as made:
        yield int(made.getsockname()[1])


def test_host_services(listening: int) -> None:
    found = settings("--host-service", "1-2", "--host-service", str(listening))["host_services"]
    assert told(found) == [  # type: ignore[arg-type]
        "127.0.0.1:1",
        "127.0.0.1:2",
        f"127.0.0.1:{listening}",
        f"[::1]:{listening}",
    ]


@pytest.mark.parametrize("text", ["0", "x", "1:2", "1,1", "127.0.0.1"])
def test_no_host_services(text: str) -> None:
    with pytest.raises(PortwrapError, match="--host-service"):
        settings("--host-service", text)


def test_is_held(listening: int) -> None:
    assert services.is_held("tcp6", "::1", listening)
    assert not services.is_held("tcp6", "::1", 1)
    assert not services.is_held("tcp", "127.0.0.1", listening)
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        assert services.is_held("tcp", "127.0.0.1", everywhere.getsockname()[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        assert services.is_held("udp", "127.0.0.1", port)
        assert not services.is_held("udp", "127.0.0.2", port)


# ---- what must not be both ----------------------------------------------------------------------


@pytest.mark.parametrize(("guest_port", "published"), [(7, []), (8888, [(1, 7)]), (8888, [(7, 7)])])
def test_a_service_is_never_published(guest_port: int, published: list[tuple[int, int]]) -> None:
    services.check([Service("127.0.0.1", 7, services.UDP)], guest_port, published)
    with pytest.raises(PortwrapError, match="sandbox port 7 cannot be both"):
        services.check([Service("127.0.0.1", 7)], guest_port, published)


def test_as_many_services_as_one_message_carries() -> None:
    many = [Service("127.0.0.1", port) for port in range(1, services.MAX_SOCKETS + 2)]
    services.check(many[:-1], 8888, [])
    with pytest.raises(PortwrapError, match="more than 200"):
        services.check(many, 8888, [])


# ---- the hub's own side -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({API: ""}, []),
        ({API: "http://127.0.0.1:8081/hub/api"}, ["127.0.0.1:8081"]),
        ({API: "http://127.0.0.2:8081/hub/api"}, ["127.0.0.2:8081"]),
        ({API: "http://[::1]:8081/hub/api"}, ["[::1]:8081"]),
        ({API: "http://0.0.0.0:8081/hub/api"}, ["127.0.0.1:8081"]),
        ({API: "http://[::ffff:127.0.0.1]:8081/hub/api"}, ["127.0.0.1:8081"]),
        ({API: "http://[::ffff:198.18.0.1]:8081/hub/api"}, []),
        ({API: "http://localhost:7/hub/api"}, ["127.0.0.1:7"]),
        ({API: "http://LocalHost:7/hub/api"}, ["127.0.0.1:7"]),
        ({API: "http://127.0.0.1/hub/api"}, ["127.0.0.1:80"]),
        ({API: "https://127.0.0.1/hub/api"}, ["127.0.0.1:443"]),
        ({API: "http://198.18.0.1:8081/hub/api"}, []),
        ({API: "http://hub.invalid:8081/hub/api"}, []),
        ({API: "http://127.0.0.1.invalid:8081/hub/api"}, []),
        ({API: "http://[fd00::1]:8081/hub/api"}, []),
        ({API: "http://127.0.0.1:x/hub/api"}, []),
        ({API: "http+unix://%2Frun%2Fhub.sock/hub/api"}, []),
        ({ACTIVITY: "http://127.0.0.1:9/hub/api/users/ada/activity"}, ["127.0.0.1:9"]),
        (
            {API: "http://127.0.0.1:8/hub/api", ACTIVITY: "http://127.0.0.1:8/hub/api/users"},
            ["127.0.0.1:8"],
        ),
    ],
)
def test_the_hub_is_a_host_service(environ: dict[str, str], expected: list[str]) -> None:
    assert told(hub_services(environ)) == expected


def test_only_the_name_of_this_host_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's hub has another name, and to look it up may take its time."""
    asked = []

    def look_up(name: str, *_: object, **__: object) -> list[object]:
        asked.append(name)
        return [(2, 1, 6, "", ("127.0.1.1", 8081)), (2, 1, 6, "", ("198.18.0.1", 8081))]

    monkeypatch.setattr("portwrap.launch.services.socket.getaddrinfo", look_up)
    monkeypatch.setattr(services, "own_names", lambda: {"node1.example", "node1"})
    assert told(hub_services({API: "http://hub.example:8081/hub/api"})) == []
    assert asked == []
    assert told(hub_services({API: "http://NODE1:8081/hub/api"})) == ["127.0.1.1:8081"]
    assert asked == ["NODE1"]


def test_this_host_has_a_name() -> None:
    name = socket.gethostname().lower()
    assert services.own_names() == {name, name.partition(".")[0]}
