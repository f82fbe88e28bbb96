"""The line that a session says about its start, its steps, and the settings it does not know."""

from __future__ import annotations

import re

import pytest
from launches import batchspawner_portwrap

from portwrap import __version__

from helpers import OWNER, environment, run_as
from sessions import Portwrap, unused_port

pytestmark = pytest.mark.namespaces

LINE = (
    r"batchspawner-portwrap: forwarding {host}:{port} -> 8080 \((native|relay)\)(, .+)?,"
    r" outbound (native and )?(slirp4netns|pasta), ready in \d+ ms"
    rf" \(version {re.escape(__version__)}\)"
)


def said(portwrap: Portwrap, *words: str, host: str = "0.0.0.0", **extra: str) -> tuple[int, str]:
    """What a session says on standard error; and its port."""
    port = unused_port()
    environ = environment(OWNER, {"JUPYTERHUB_SERVICE_URL": f"http://{host}:{port}/", **extra})
    if "PORTWRAP_QUIET" not in extra:
        del environ["PORTWRAP_QUIET"]
    program = batchspawner_portwrap(portwrap)
    command = [portwrap.python, str(program), "-P", "8080", *words, "sh", "-c", "exit 3"]
    result = run_as(OWNER, command, env=environ)
    assert (result.returncode, result.stdout) == (3, ""), result
    return port, result.stderr


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", r"127\.0\.0\.1"), ("[::1]", r"\[::1\]"), ("", r"\[::\]")]
)
def test_one_line(portwrap: Portwrap, host: str, shown: str) -> None:
    port, told = said(portwrap, host=host)
    assert re.fullmatch(LINE.format(host=shown, port=port) + "\n", told), told


@pytest.mark.parametrize("forward", ["native", "relay"])
def test_it_names_the_forward(portwrap: Portwrap, forward: str) -> None:
    _, told = said(portwrap, "--forward", forward)
    assert f" ({forward}), " in told


OUTBOUND = [
    ([], {}, "outbound native and slirp4netns, "),
    (["--outward", "native", "--network", "pasta"], {}, "outbound native and pasta, "),
    (["--forward", "relay"], {}, "outbound native and slirp4netns, "),
    (["--outward", "helper"], {}, "outbound slirp4netns, "),
    (["--forward", "relay", "--outward", "helper"], {}, "outbound slirp4netns, "),
    (["--network", "none", "--outward", "native"], {}, "outbound none, "),
    ([], {"PORTWRAP_OUTWARD": "helper"}, "outbound slirp4netns, "),
]


@pytest.mark.parametrize(("words", "extra", "expected"), OUTBOUND)
def test_it_names_outbound(
    portwrap: Portwrap, words: list[str], extra: dict[str, str], expected: str
) -> None:
    _, told = said(portwrap, *words, **extra)
    assert expected in told


def test_quiet(portwrap: Portwrap) -> None:
    assert said(portwrap, "-q")[1] == ""
    assert said(portwrap, PORTWRAP_QUIET="1")[1] == ""
    assert said(portwrap, PORTWRAP_QUIET="0")[1].count("\n") == 1


def test_every_step(portwrap: Portwrap) -> None:
    port, told = said(portwrap, "-v", host="127.0.0.1")
    *steps, line = told.splitlines()
    assert re.fullmatch(LINE.format(host=r"127\.0\.0\.1", port=port), line)
    times = [re.fullmatch(r"batchspawner-portwrap: (\d+) ms: .+", step) for step in steps]
    assert len(steps) >= 4 and all(times), told
    assert f"listening on 127.0.0.1:{port}" in told
    assert said(portwrap, PORTWRAP_VERBOSE="1")[1].count("\n") == told.count("\n")


def test_unknown_settings_are_named_in_one_line(portwrap: Portwrap) -> None:
    extra = {"PORTWRAP_FORWRAD": "x", "PORTWRAP_A\nB": "1", "PORTWRAP_TEST_X": "1"}
    _, told = said(portwrap, "-q", **extra)
    assert told.count("\n") == 1
    assert told.startswith(
        "batchspawner-portwrap: unknown variables PORTWRAP_A\\nB, PORTWRAP_FORWRAD ignored; "
    )
    assert "did you mean PORTWRAP_FORWARD?\n" in told and "PORTWRAP_TEST" not in told


def test_portwrap_says_nothing_unless_asked(portwrap: Portwrap) -> None:
    words = [*portwrap.words, "-p", str(unused_port()), "true"]
    extra = {"PORTWRAP_PORT": "40001", "PORTWRAP_PORTWRAP_PATH": "/no", "PORTWRAP_QUIET": "0"}
    assert run_as(OWNER, words, extra_env=extra).stderr == ""
    assert (
        "portwrap: forwarding " in run_as(OWNER, words, extra_env={"PORTWRAP_VERBOSE": "1"}).stderr
    )
