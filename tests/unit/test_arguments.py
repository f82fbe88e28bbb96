"""The command line and the contract with batchspawner and JupyterHub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchspawner_portwrap import PARSER, Request
from portwrap import __main__ as portwrap_main
from portwrap import __version__
from portwrap.cli.common import fill_in
from portwrap.cli.parser import Parser
from portwrap.diagnostics.errors import PortwrapError

from helpers import PROJECT, run_program

URL = "JUPYTERHUB_SERVICE_URL"
SERVER = ["jupyterhub-singleuser", "--debug"]


def request(*words: str, url: str | None = None) -> Request:
    """What our program makes of a command line and of JUPYTERHUB_SERVICE_URL."""
    values, command = PARSER.parse(words, {})
    return Request(values, command, {} if url is None else {URL: url})


def parsed(*words: str, **environ: str) -> tuple[dict[str, str], list[str]]:
    """Our options where they differ from their defaults, and the command."""
    values, command = PARSER.parse(words, environ)
    defaults = {option.key: option.default for option in PARSER.options}
    return {key: text for key, text in values.items() if text != defaults[key]}, command


def refusal(*words: str, url: str | None = None) -> PortwrapError:
    with pytest.raises(PortwrapError) as caught:
        request(*words, url=url)
    return caught.value


# ---- what batchspawner and JupyterHub send ---------------------------------------------------


@pytest.mark.parametrize(
    ("arrives", "url", "becomes", "inner_url"),
    [
        pytest.param(
            [*SERVER, "--port=40001"], None, [*SERVER, "--port=8888"], None, id="1.2, hub 1"
        ),
        pytest.param(
            [*SERVER, "--port=40001"],
            "http://127.0.0.1:0/user/ada/",
            [*SERVER, "--port=8888"],
            "http://127.0.0.1:8888/user/ada/",
            id="1.2, hub 2",
        ),
        pytest.param(
            [*SERVER, "--port=40001"], "", [*SERVER, "--port=8888"], "", id="1.3, hub 1, empty URL"
        ),
        pytest.param(
            SERVER,
            "http://0.0.0.0:40001/user/ada/",
            SERVER,
            "http://127.0.0.1:8888/user/ada/",
            id="1.3, hub 2",
        ),
        pytest.param(
            [*SERVER, "--port=40001"],
            "http://0.0.0.0:40001/user/ada/",
            [*SERVER, "--port=8888"],
            "http://127.0.0.1:8888/user/ada/",
            id="both, and they agree",
        ),
    ],
)
def test_what_arrives_and_what_the_server_sees(
    arrives: list[str], url: str | None, becomes: list[str], inner_url: str | None
) -> None:
    made = request(*arrives, url=url)
    assert made.host_port == 40001
    assert made.guest_port == 8888
    assert made.inner_command() == becomes
    assert made.inner_environ().get(URL) == inner_url


@pytest.mark.parametrize(
    ("words", "url", "host_port"),
    [
        (["--port", "40000", "server", "--port=40002"], "http://h:40001/", 40000),
        (["--port=40000", "server"], "http://h:40001/", 40000),
        (["--port", "40000", "server"], None, 40000),
        (["server", "--port=40002"], "http://h:40001/", 40001),
        (["server", "--port=40002"], "http://h:0/", 40002),
        (["server", "--port=40002"], "http://h:65536/", 40002),
        (["server", "--port=40002"], "http://h:None/", 40002),
        (["server", "--port=40002"], "http://h/", 40002),
        (["server", "--port=40002"], None, 40002),
        (["server"], "http://h:1/", 1),
        (["server"], "http://h:65535/", 65535),
    ],
)
def test_host_port_ours_then_the_url_then_the_last_word(
    words: list[str], url: str | None, host_port: int
) -> None:
    assert request(*words, url=url).host_port == host_port


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (None, "0.0.0.0"),
        ("http://0.0.0.0:40001/", "0.0.0.0"),
        ("http://198.18.0.1:40001/", "198.18.0.1"),
        ("http://[2001:db8::1]:40001/", "2001:db8::1"),
        ("http://:40001/", "::"),
        ("http://[::]:40001/", "::"),
        ("http://None:40001/", "::"),
        ("http://*:40001/", "::"),
    ],
)
def test_bind_address_is_the_one_the_url_names(url: str | None, address: str) -> None:
    assert request("server", "--port=40001", url=url).bind_address == address


@pytest.mark.parametrize(
    "command",
    [
        ["voila", "--port={port}"],
        ["jhsingle-native-proxy", "voila", "--port={port}", "{presentation_path}"],
        ["jupyter", "standaloneproxy", "--", "app", "--port", "5000"],
        ["jupyter", "standaloneproxy", "--", "app", "--port=5000"],
        ["server", "--port=40002", "--debug"],
        ["server", "--port", "40001"],
        ["server", "--Port=40001"],
        ["server", "--port=+40001"],
        ["server", "--port="],
        ["server", "-P", "7", "--guest-port", "6", "--guest-port=5", "-P4"],
        ["server", "--", "--help", "--version", "--", "-h"],
        ["server", "--portwrap-path", "/x", "--portwrap-path=/y"],
        ["server", "--gu", "1", "--po", "2", "--ver"],
        ["server", "", " ", "\n", "ü", "\udcff"],
    ],
)
def test_nothing_else_of_the_command_is_touched(command: list[str]) -> None:
    made = request("-P", "9999", *command, url="http://h:40001/")
    assert made.inner_command() == command
    assert made.guest_port == 9999


@pytest.mark.parametrize(
    ("command", "becomes"),
    [
        (["server"], ["server", "--port=8888"]),
        (["voila", "--port={port}"], ["voila", "--port={port}", "--port=8888"]),
        (["server", "--port={guest-port}"], ["server", "--port=8888"]),
        (["sh", "-c", "exec a {guest-port} b{guest-port}"], ["sh", "-c", "exec a 8888 b8888"]),
        (["server", "--port=7"], ["server", "--port=8888"]),
    ],
)
def test_the_guest_port_gets_into_a_command_without_a_url(
    command: list[str], becomes: list[str]
) -> None:
    assert request("--port", "40001", *command).inner_command() == becomes


def test_guest_port_stands_everywhere_at_once() -> None:
    made = request("-P", "9000", "s", "{guest-port}", "--port=40001", url="http://h:0/b/?q=1")
    assert made.inner_command() == ["s", "9000", "--port=9000"]
    assert made.inner_environ() == {URL: "http://127.0.0.1:9000/b/?q=1"}


def test_the_environment_that_arrived_stays_as_it_was() -> None:
    environ = {URL: "http://h:40001/", "A": "b"}
    made = Request(PARSER.parse([], {})[0], ["server"], environ)
    assert made.inner_environ() == {URL: "http://127.0.0.1:8888/", "A": "b"}
    assert environ == {URL: "http://h:40001/", "A": "b"}


# ---- what makes no sense ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "url", "said"),
    [
        (["server"], None, f"there is no {URL} and no last argument --port=N"),
        (["server"], "http://h:0/", f"{URL} is 'http://h:0/'"),
        (["server"], "http://h:65536/", "'http://h:65536/'"),
        (["server"], "http://h:abc/", "'http://h:abc/'"),
        (["server"], "http://h/", "'http://h/'"),
        (["server"], "nonsense", "'nonsense'"),
        (["server", "--port=0"], None, "'--port=0'"),
        (["server", "--port=abc"], None, "'--port=abc'"),
        (["server", "--port=65536"], "http://h:0/", "'--port=65536'"),
        (["server", "--port=٤٠٠٠١"], None, "--port="),
        (["server", "--port", "40001"], None, "no last argument"),
        (["--", "--port=40001"], None, "--port=40001"),
    ],
)
def test_no_host_port_is_an_error_that_says_what_was_seen(
    words: list[str], url: str | None, said: str
) -> None:
    error = refusal(*words, url=url)
    assert error.exit_code == 2
    assert error.message.startswith("no host port from 1 to 65535: ")
    assert said in error.message


@pytest.mark.parametrize(
    "bad", ["0", "65536", "abc", "", "-1", "+1", " 1", "1 ", "1e3", "٨", "0x1"]
)
@pytest.mark.parametrize("option", ["--port", "--guest-port", "-P"])
def test_a_bad_number_names_its_option(option: str, bad: str) -> None:
    error = refusal(option, bad, "server", url="http://h:40001/")
    assert error.exit_code == 2
    assert option in error.message and repr(bad) in error.message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gu", "1", "server"], "unknown option --gu"),
        (["--portw=/x", "server"], "unknown option --portw=/x"),
        (["--port-", "server"], "unknown option --port-"),
        (["-x", "server"], "unknown option -x"),
        (["-hP", "server"], "unknown option -hP"),
        (["--PORT=1", "server"], "unknown option --PORT=1"),
        (["--help=yes"], "--help takes no value"),
        (["--port"], "--port needs a value"),
        (["-P"], "-P needs a value"),
    ],
)
def test_an_option_that_is_none_of_ours(words: list[str], said: str) -> None:
    error = refusal(*words)
    assert error.exit_code == 2
    assert said in error.message


@pytest.mark.parametrize("words", [["-P", "9"], ["-P9"], ["--guest-port", "9"], ["--guest-port=9"]])
def test_every_way_to_write_an_option(words: list[str]) -> None:
    assert parsed(*words, "server") == ({"guest-port": "9"}, ["server"])


def test_our_own_double_dash_ends_our_options_and_only_that_one_goes() -> None:
    wanted = {"guest-port": "9"}, ["-x", "--", "y"]
    assert parsed("-P", "9", "--", "-x", "--", "y") == wanted


def test_the_last_of_two_equal_options_counts() -> None:
    assert parsed("-P1", "--guest-port=2", "a")[0] == {"guest-port": "2"}


def test_the_environment_sets_what_the_command_line_does_not() -> None:
    environ = {"PORTWRAP_GUEST_PORT": "9", "PORTWRAP_PORT": "40001", "GUEST_PORT": "7"}
    assert parsed("a", **environ) == ({"guest-port": "9", "port": "40001"}, ["a"])
    assert parsed("-P", "1", "a", **environ)[0] == {"guest-port": "1", "port": "40001"}
    assert parsed("a", PORTWRAP_GUEST_PORT="", PORTWRAP_HELP="1", PORTWRAP_VERSION="1") == (
        {},
        ["a"],
    )


# ---- the two programs ------------------------------------------------------------------------


HUB, SANDBOX = "batchspawner_portwrap", "portwrap"


@pytest.mark.parametrize(
    ("module", "name", "parser"),
    [
        (HUB, "batchspawner-portwrap", PARSER),
        (SANDBOX, "portwrap", portwrap_main.PARSER),
    ],
)
class TestProgram:
    def test_version(self, module: str, name: str, parser: Parser) -> None:
        result = run_program(module, ["--version"])
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"{name} {__version__}\n"

    def test_help_names_every_option(self, module: str, name: str, parser: Parser) -> None:
        result = run_program(module, ["-h", "server"])
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(f"usage: {name} ")
        assert all(each in result.stdout for option in parser.options for each in option.names)
        assert max(map(len, result.stdout.splitlines())) <= 100

    @pytest.mark.parametrize("words", [[], ["-P", "1"], ["--"]])
    def test_no_command(self, module: str, name: str, parser: Parser, words: list[str]) -> None:
        result = run_program(module, words)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith(f"{name}: no command\n  Usage: {name} ")


def test_portwrap_needs_the_port_of_the_host() -> None:
    result = run_program(SANDBOX, ["-P", "80", "/bin/true"])
    assert result.returncode == 2
    assert "-p HOST_PORT" in result.stderr


@pytest.mark.parametrize("bad", ["0", "65536", "x", ""])
@pytest.mark.parametrize("option", ["-p", "-P"])
def test_portwrap_bad_port(option: str, bad: str) -> None:
    result = run_program(SANDBOX, ["-p", "40001", option, bad, "/bin/true"])
    assert result.returncode == 2
    assert option in result.stderr


def test_portwrap_fills_in_the_guest_port_and_leaves_the_rest() -> None:
    command = ["s", "--port={guest-port}", "{port}", "{{guest-port}}", "--port=1"]
    assert fill_in(command, 90) == ["s", "--port=90", "{port}", "{90}", "--port=1"]


# ---- another portwrap ------------------------------------------------------------------------

REPORT = """#!/bin/sh
exec "{python}" -c 'import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get("JUPYTERHUB_SERVICE_URL"), os.getpid()]))' "$@"
"""


@pytest.mark.parametrize(
    ("command", "url", "words", "inner_url"),
    [
        (
            ["server", "--port=40001"],
            None,
            ["-p", "40001", "-P", "9000", "server", "--port={guest-port}"],
            None,
        ),
        (
            ["server", "--debug"],
            "http://None:40001/user/ada/",
            ["-p", "40001", "-P", "9000", "server", "--debug", "--port={guest-port}"],
            "http://0.0.0.0:9000/user/ada/",
        ),
        (
            ["server", "{guest-port}"],
            "http://:::40001/",
            ["-p", "40001", "-P", "9000", "server", "{guest-port}"],
            "http://0.0.0.0:9000/",
        ),
    ],
)
@pytest.mark.parametrize("in_environment", [False, True])
def test_portwrap_path_becomes_that_program(
    tmp_path: Path,
    command: list[str],
    url: str | None,
    words: list[str],
    inner_url: str | None,
    in_environment: bool,
) -> None:
    program = tmp_path / "other portwrap"
    program.write_text(REPORT.format(python=sys.executable))
    program.chmod(0o755)
    environ = {"PATH": os.defpath, "PYTHONPATH": str(PROJECT)}
    if url is not None:
        environ[URL] = url
    if in_environment:
        environ["PORTWRAP_PORTWRAP_PATH"] = str(program)
    path = [] if in_environment else ["--portwrap-path", str(program)]
    ours = ["-m", "batchspawner_portwrap", "-P", "9000", *path]
    process = subprocess.Popen(
        [sys.executable, *ours, *command], env=environ, stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=20)
    assert json.loads(output) == [words, inner_url, process.pid]


@pytest.mark.parametrize(
    "lost",
    [
        ("--allow-from", "198.18.0.1"),
        ("--network", "none"),
        ("--publish", "30000"),
        ("--host-service", "27000"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("in_environment", [False, True])
def test_what_another_portwrap_would_not_be_told(
    lost: tuple[str, str], in_environment: bool
) -> None:
    name, value = lost
    words = ["--portwrap-path", "/bin/true", "server", "--port=40001"]
    variable = f"PORTWRAP_{name[2:].replace('-', '_').upper()}"
    if in_environment:
        name = variable
        result = run_program(HUB, words, {variable: value})
    else:
        result = run_program(HUB, [name, value, *words])
    assert result.returncode == 2
    assert f": {name} cannot be passed on to the program of --portwrap-path\n" in result.stderr
    assert run_program(HUB, words).returncode == 0  # without it /bin/true runs


def test_portwrap_path_that_is_missing(tmp_path: Path) -> None:
    program = tmp_path / "missing"
    result = run_program(HUB, ["--portwrap-path", program, "s", "--port=40001"])
    assert (result.returncode, result.stdout) == (127, "")
    assert result.stderr.startswith(f"batchspawner-portwrap: {program}: no such file\n")
