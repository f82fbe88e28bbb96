"""Any text where a URL, a list of ports, a message or a file of the node is expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchspawner_portwrap import ServiceUrl, hub_services
from portwrap.cli.run import as_lines
from portwrap.diagnostics import lookup, remedies
from portwrap.diagnostics.diagnostic import SYSTEMS, os_release, this_system
from portwrap.diagnostics.errors import Failure, PortwrapError
from portwrap.launch import dns, port_lists, ports

from fuzzing import examples

pytestmark = pytest.mark.fuzz

PORTS = st.integers(1, 65535)
TEXT = st.text(max_size=40)

# ---- URLs ------------------------------------------------------------------------------------

LABEL = st.text(st.sampled_from("abcXYZ019-"), min_size=1, max_size=6)
HOSTS = st.one_of(
    st.lists(LABEL, min_size=1, max_size=3).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map("[{}]".format),
    st.sampled_from(["", "0.0.0.0", "[::]", "[::1]", "[fe80::1%eth0]"]),
)
PATHS = st.lists(st.text(st.sampled_from("ab%40:@[]é ~"), max_size=5), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
TAILS = st.sampled_from(["", "?next=/a:1/", "#x", "?a=http://h:2/#b"])


@examples(300)
@given(st.sampled_from(["http", "https"]), HOSTS, st.none() | st.integers(0, 65535), PATHS, TAILS)
def test_a_url_is_read_as_the_standard_library_reads_it(
    scheme: str, host: str, port: int | None, path: str, tail: str
) -> None:
    text = f"{scheme}://{host}{'' if port is None else f':{port}'}{path}{tail}"
    known, ours = urlsplit(text), ServiceUrl(text)
    assert ours.scheme == known.scheme
    assert ours.host_port == (known.port or None)
    assert ours.bind_address.lower() == (known.hostname or "")
    inside = urlsplit(ours.with_place("127.0.0.1", 8888))
    assert (inside.scheme, inside.hostname, inside.port) == (scheme, "127.0.0.1", 8888)
    assert inside[2:] == known[2:]  # path, query, fragment


@examples(200)
@given(HOSTS, PORTS, PORTS, PATHS)
def test_what_batchspawner_makes_of_a_url_is_understood(
    host: str, before: int, port: int, path: str
) -> None:
    """It puts the parsed host, without its brackets, before the port that it has found."""
    arrived = f"http://{host}:{before}{path}"
    rewritten = f"http://{urlsplit(arrived).hostname}:{port}{path}"
    ours = ServiceUrl(rewritten)
    assert ours.host_port == port
    assert ours.bind_address == ServiceUrl(arrived).bind_address.lower()
    assert ours.with_place("127.0.0.1", 8888) == f"http://127.0.0.1:8888{path}"


@examples(300)
@given(text=st.text(st.sampled_from("htp:/[]?#.*None0189 é%\n"), max_size=24))
def test_no_url_is_too_broken(text: str) -> None:
    url = ServiceUrl(text)
    assert url.host_port is None or 1 <= url.host_port <= 65535
    rewritten = ServiceUrl(url.with_place("127.0.0.1", 8888))
    assert (rewritten.bind_address, rewritten.host_port) == ("127.0.0.1", 8888)
    assert rewritten.path == url.path


@examples(200)
@given(TEXT | st.tuples(HOSTS, PORTS).map(lambda place: f"http://{place[0]}:{place[1]}/hub/api"))
def test_only_the_loopback_of_a_hub_is_brought_inside(url: str) -> None:
    for service in hub_services({"JUPYTERHUB_API_URL": url}):
        assert service.address == "::1" or service.address.startswith("127.")
        assert 1 <= service.port <= 65535


# ---- ports -----------------------------------------------------------------------------------


@examples(300)
@given(st.text(st.sampled_from("0123456789+-_ eE.٣²\n"), max_size=7) | TEXT)
def test_a_port_is_a_number_in_plain_digits(text: str) -> None:
    plain = text != "" and set(text) <= set("0123456789") and len(text) <= 5
    wanted = int(text) if plain and 1 <= int(text) <= 65535 else None
    assert ports.parse_port(text) == wanted


@st.composite
def pairs_of_ports(draw: Any) -> list[tuple[int, int]]:
    """Runs of ports, each with others."""
    found: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(1, 4))):
        first, other = draw(PORTS), draw(PORTS)
        count = min(draw(st.integers(1, 20)), 65536 - first, 65536 - other)
        same = draw(st.booleans())
        found += [(first + n, (first if same else other) + n) for n in range(count)]
    return found


@examples(200)
@given(pairs_of_ports())
def test_pairs_of_ports_are_written_as_they_are_read(pairs: list[tuple[int, int]]) -> None:
    text = port_lists.describe_pairs(pairs)
    assert port_lists.parse_pairs(text) == pairs
    assert port_lists.parse_pairs(text.replace(" ", "")) == pairs
    plain = ",".join(f"{one}:{other}" for one, other in pairs)
    assert port_lists.parse_pairs(plain) == pairs


@examples(300)
@given(st.text(st.sampled_from("0123459-:, "), max_size=14) | TEXT)
def test_every_text_is_pairs_of_ports_or_none(text: str) -> None:
    pairs = port_lists.parse_pairs(text)
    assert pairs is None or (pairs and all(1 <= n <= 65535 for pair in pairs for n in pair))


@examples(300)
@given(st.text(st.sampled_from("0123456789abcf:./,% "), max_size=20) | TEXT)
def test_every_text_is_networks_or_refused(text: str) -> None:
    try:
        networks = ports.parse_networks(text)
    except ValueError as error:
        assert str(error)
    else:
        assert len(networks) == text.count(",") + 1
        for length, ignored, rest in networks:
            assert length in (4, 16) and 0 <= ignored <= 8 * length
            assert 0 <= rest < 1 << (8 * length - ignored) or (rest == 0 and ignored == 8 * length)


# ---- messages, and files of the node ---------------------------------------------------------


@examples(200)
@given(TEXT, TEXT)
def test_an_expected_failure_takes_two_lines_whatever_is_in_it(message: str, remedy: str) -> None:
    lines = as_lines("p", PortwrapError(message, Failure.USAGE, remedy=remedy))
    assert len(lines.splitlines()) == 2 and lines.endswith("\n")


FAILURES = sorted({row.failure for row in remedies.table()} | {"none of them"})
MESSAGES = st.lists(
    st.one_of(
        TEXT,
        st.sampled_from([row.example for row in remedies.table()]),
        st.sampled_from([row.words for row in remedies.table()]),
    ),
    max_size=4,
).map("".join)


@examples(150)
@given(st.sampled_from(FAILURES), MESSAGES, TEXT, st.sampled_from(["0", "1", "28633", ""]))
def test_whatever_failed_there_is_a_remedy_in_one_line(
    failure: str, message: str, subject: str, setting: str
) -> None:
    row = lookup.find(failure, message, subject, lambda name: setting)
    error = PortwrapError(message, failure, subject=subject)
    assert lookup.remedy_of(error) and len(as_lines("p", error).splitlines()) == 2
    for system in (*SYSTEMS, "") if row else ():
        assert row and row.line(system)


def written(folder: Path, content: bytes) -> str:
    path = folder / "file"
    path.write_bytes(content)
    return str(path)


RELEASE_LINES = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.builds(
            "{}={}".format,
            st.sampled_from(["ID", "ID_LIKE", "VERSION_ID", "PRETTY_NAME"]),
            st.sampled_from(["rhel", '"8.10"', "'10'", "debian", '"a b"', "fedora", "", "²", '"']),
        ).map(str.encode),
    ),
    max_size=6,
).map(b"\n".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@examples(150)
@given(content=RELEASE_LINES)
def test_any_os_release_names_a_system_or_none(folder: Path, content: bytes) -> None:
    release = os_release(written(folder, content))
    assert this_system(release) in (*SYSTEMS, "")


@examples(150)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_resolv_conf_names_addresses_or_none(folder: Path, content: bytes) -> None:
    path = written(folder, b"nameserver 127.0.0.1\nnameserver " + content)
    assert all(service.address.startswith("127.") or service.address == "::1"
               for service in dns.needed(path))  # fmt: skip
