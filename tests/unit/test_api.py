"""The URL of --hub: read strictly, with what was probably meant."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from portwrap.check.api import InvalidUrl, parse_url
from portwrap.cli.mistakes import nearest
from portwrap.launch.port_lists import parse_ranges

from fuzzing import examples

EXAMPLE = "http://HUB:8081/hub/api"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://hub:8081/hub/api", ("http", "hub", 8081, "/hub/api")),
        ("http://hub", ("http", "hub", 80, "/")),
        ("https://hub/", ("https", "hub", 443, "/")),
        ("http://198.18.0.1:1/a/b?c=d", ("http", "198.18.0.1", 1, "/a/b?c=d")),
        ("http://[2001:db8::1]:8081/x", ("http", "2001:db8::1", 8081, "/x")),
        ("http://[fe80::1%eth0]/", ("http", "fe80::1%eth0", 80, "/")),
    ],
)
def test_a_url(url: str, parts: tuple[str, str, int, str]) -> None:
    assert parse_url(url, EXAMPLE) == parts


@pytest.mark.parametrize(
    ("url", "reason", "meant"),
    [
        ("", "is empty", EXAMPLE),
        ("hub", "must be a URL", "http://hub:8081/hub/api"),
        ("hub:9000", "must be a URL", "http://hub:9000/hub/api"),
        ("hub:9000/hub/api", "must be a URL", "http://hub:9000/hub/api"),
        ("ftp://hub:8081/x", "must begin with http://", "http://hub:8081/x"),
        ("HTTP://hub", "must begin with http://", "http://hub"),
        ("http://::1:8081/x", "in brackets", "http://[::1]:8081/x"),
        ("http://2001:db8::1/", "in brackets", "http://[2001:db8::1]/"),
        ("http://[::1/", "in brackets", ""),
        ("http://[hub]:8081/", "in brackets", ""),
        ("http://[::1]8081/", "in brackets", ""),
        ("http:///hub/api", "has no host", ""),
        ("http://:8081/", "has no host", ""),
        ("http://hub:0/", "port from 1 to 65535, not '0'", ""),
        ("http://hub:x/", "port from 1 to 65535, not 'x'", ""),
    ],
)
def test_what_is_no_url_and_what_was_meant(url: str, reason: str, meant: str) -> None:
    with pytest.raises(InvalidUrl, match=reason) as caught:
        parse_url(url, EXAMPLE)
    assert caught.value.meant == meant
    if meant and meant != EXAMPLE:
        assert parse_url(meant, EXAMPLE)


@examples(300)
@given(
    st.text(st.sampled_from("htps:/[]@.%0189a\n"), max_size=24).map("http:{}".format) | st.text()
)
@example("http://::::1:::")
def test_any_text_is_a_url_or_none(text: str) -> None:
    try:
        scheme, host, port, path = parse_url(text, EXAMPLE)
    except InvalidUrl as error:
        assert str(error)
    else:
        assert scheme in ("http", "https") and host and 1 <= port <= 65535 and path[0] == "/"


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("8787", [8787]),
        ("8787,30000-30002", [8787, 30000, 30001, 30002]),
        ("8787:80", None),
        ("", None),
        ("8787,", None),
        ("3-1", None),
        ("65536", None),
    ],
)
def test_ranges_of_ports(text: str, ports: list[int] | None) -> None:
    assert parse_ranges(text) == ports


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("--net", "--network"),
        ("--netwrok", "--network"),
        ("--NETWORK", "--network"),
        ("--p", ""),  # two begin like this
        ("--something", ""),
        ("", ""),
    ],
)
def test_the_word_that_was_meant(text: str, meant: str) -> None:
    assert nearest(text, ["--network", "--publish", "--port"], "-") == meant
