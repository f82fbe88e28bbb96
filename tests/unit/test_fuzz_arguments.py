"""Any command line and any environment: understood whole, or refused in two lines."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchspawner_portwrap
from batchspawner_portwrap import PARSER, Request
from portwrap import __main__
from portwrap.cli.parser import OFF, ON, Option
from portwrap.cli.run import as_lines
from portwrap.diagnostics.errors import PortwrapError

from fuzzing import examples

pytestmark = pytest.mark.fuzz

URL = "JUPYTERHUB_SERVICE_URL"
PORTS = st.integers(1, 65535)
# What batch systems, hubs and users may put there, and what looks like something of ours.
SPELT = ["--", "-", "-P", "--port", "--port=5000", "--guest-port=1", "-h", "--version", "-v", "-q"]
SPELT += ["{guest-port}", "--port={guest-port}", "{port}", "", "--portwrap-path=/", "-Px", "--por"]
WORD = st.one_of(
    st.text(max_size=8).filter(lambda word: "\0" not in word),
    st.sampled_from(SPELT),
    st.integers(0, 70000).map("--port={}".format),
)
WORDS = st.lists(WORD, max_size=6)
COMMANDS = st.builds(
    lambda name, rest: [name, *rest], WORD.filter(lambda word: word[:1] != "-"), WORDS
)


def request(*words: str, url: str | None = None) -> Request:
    """What our program makes of a command line and of JUPYTERHUB_SERVICE_URL."""
    values, command = PARSER.parse(words, {})
    return Request(values, command, {} if url is None else {URL: url})


# ---- the parser, against a plain description of it -------------------------------------------


def spellings(option: Option, value: str) -> list[list[str]]:
    """Every way to write this option with this value."""
    long = [name for name in option.names if name.startswith("--")]
    if not option.value:
        return [[name] for name in option.names]
    short = [[name + value] for name in option.names if name not in long and value]
    apart = [[name, value] for name in option.names]
    return [*apart, *([f"{name}={value}"] for name in long), *short]


@st.composite
def given_options(draw: Callable[..., object]) -> tuple[list[str], list[tuple[Option, str]]]:
    """Words, and what they mean."""
    words: list[str] = []
    meant = []
    for option in draw(st.lists(st.sampled_from(PARSER.options), max_size=5)):  # type: ignore[attr-defined]
        value = str(draw(WORD)) if option.value else ""
        words += draw(st.sampled_from(spellings(option, value)))  # type: ignore[arg-type]
        meant.append((option, value))
    return words, meant


VARIABLES = st.dictionaries(
    st.sampled_from([option.variable for option in PARSER.options]),
    st.sampled_from(["", "0", "1", "no", "OFF", "False", "x", "40001", "relay"]),
    max_size=4,
)


@examples(300)
@given(spelt=given_options(), command=COMMANDS, dashes=st.booleans(), environ=VARIABLES)
def test_options_mean_what_they_say(
    spelt: tuple[list[str], list[tuple[Option, str]]],
    command: list[str],
    dashes: bool,
    environ: dict[str, str],
) -> None:
    words, meant = spelt
    switches = [environ.get(option.variable, "") for option in PARSER.settable if not option.value]
    if any(text and text.lower() not in (*ON, *OFF) for text in switches):
        with pytest.raises(PortwrapError, match="must be 1 or 0"):
            PARSER.parse(words, environ)
        return
    wanted = {option.key: option.default for option in PARSER.settable if option.default}
    for option in PARSER.settable:
        text = environ.get(option.variable, "")
        if option.may_be_empty or option.variable not in environ:
            if text and (option.value or text.lower() not in OFF):
                wanted[option.key] = text
        else:
            wanted[option.key] = text
    for option in {option for option, _ in meant}:
        values = [value for other, value in meant if other is option]
        wanted[option.key] = ",".join(values) if option.repeatable else values[-1]
    separator = ["--"] if dashes else []
    assert PARSER.parse([*words, *separator, *command], environ) == (wanted, command)


# ---- the contract with batchspawner ----------------------------------------------------------


@examples(150)
@given(command=COMMANDS, host=PORTS, guest=PORTS)
def test_with_a_url_only_the_port_changes(command: list[str], host: int, guest: int) -> None:
    made = request("-P", str(guest), *command, url=f"http://h:{host}/")
    wanted = [word.replace("{guest-port}", str(guest)) for word in command]
    if len(command) > 1 and command[-1] == f"--port={host}":
        wanted[-1] = f"--port={guest}"
    assert made.host_port == host
    assert made.inner_command() == wanted


@examples(150)
@given(command=COMMANDS, host=PORTS, url=st.none() | st.sampled_from(["http://h:0/x", "http://h/"]))
def test_batchspawners_own_word_is_found_behind_any_command(
    command: list[str], host: int, url: str | None
) -> None:
    made = request(*command, f"--port={host}", url=url)
    assert made.host_port == host
    inner = made.inner_command()
    assert inner[-1] == "--port=8888"
    assert inner[:-1] == [word.replace("{guest-port}", "8888") for word in command]


NAMES = st.text(min_size=1, max_size=12).filter(lambda name: not set("=\0") & set(name))
VALUES = st.text(max_size=20).filter(lambda value: "\0" not in value)


@examples(150)
@given(
    environ=st.dictionaries(NAMES, VALUES, max_size=6),
    scheme=st.sampled_from(["http", "https"]),
    path=st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
)
def test_of_the_environment_only_the_url_changes(
    environ: dict[str, str], scheme: str, path: str
) -> None:
    values, command = PARSER.parse(["server"], {})
    arrived = {**environ, URL: f"{scheme}://0.0.0.0:40001/{path}"}
    inner = Request(values, command, arrived).inner_environ()
    assert inner == {**arrived, URL: f"{scheme}://127.0.0.1:8888/{path}"}


# ---- the whole programs ----------------------------------------------------------------------


def run_forked(
    main: Callable[[list[str]], int], words: list[str], environ: dict[str, str]
) -> tuple[int, str, str]:
    """Status, standard output and standard error of a program that runs in a child of this one."""
    pipes = [os.pipe(), os.pipe()]
    pid = os.fork()
    if pid == 0:
        try:
            for number, (_, end) in enumerate(pipes, 1):
                os.dup2(end, number)
            sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), "utf-8")
            sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), "utf-8", "backslashreplace")
            os.environ.clear()
            os.environ.update(environ)
            status = main(words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(99)
    said = []
    for _, end in pipes:
        os.close(end)
    for begin, _ in pipes:
        with open(begin, "rb") as file:
            said.append(file.read().decode())
    return os.WEXITSTATUS(os.waitpid(pid, 0)[1]), said[0], said[1]


ENVIRON_TEXT = st.text(max_size=20).filter(lambda text: "\0" not in text)
SURROUNDINGS = st.fixed_dictionaries(
    {"PATH": st.just("/no/such")},
    optional={
        URL: st.one_of(ENVIRON_TEXT, PORTS.map("http://:::{}/".format)),
        "JUPYTERHUB_API_URL": st.one_of(ENVIRON_TEXT, PORTS.map("http://127.0.0.1:{}/".format)),
        **{
            option.variable: st.sampled_from(["", "0", "1", "40001", "none", "relay", "ü\n", "::1"])
            for option in PARSER.settable
        },
        "PORTWRAP_NOT\nOURS": ENVIRON_TEXT,
    },
)
LINES = {0: range(1, 100), 2: (2,), 125: (2,), 126: (2,), 127: (2,)}
"""How many lines each status comes with. Nothing runs: there is no such command on PATH."""
BESIDE = re.compile(r": unknown variable|: \d+ ms: ")
"""In lines beside those: of a variable that is not ours, and of a step, with PORTWRAP_VERBOSE."""


@pytest.mark.parametrize("program", [batchspawner_portwrap, __main__], ids=["hub", "portwrap"])
@examples(120)
@given(words=WORDS, number=st.none() | PORTS, environ=SURROUNDINGS)
def test_no_words_and_no_environment_make_a_traceback(
    program: object, words: list[str], number: int | None, environ: dict[str, str]
) -> None:
    if number is not None:
        words = [("--port" if program is batchspawner_portwrap else "-p"), str(number), *words]
    status, output, errors = run_forked(program.main, words, environ)  # type: ignore[attr-defined]
    assert status in LINES, (status, errors)
    lines = [line for line in errors.split("\n")[:-1] if not BESIDE.search(line)]
    if status == 0:
        assert output and not lines
    else:
        assert output == "" and len(lines) in LINES[status] and lines[1].startswith("  "), errors


@examples(100)
@given(words=WORDS, url=st.none() | st.text(max_size=30))
def test_whatever_comes_it_is_understood_whole_or_refused(
    words: list[str], url: str | None
) -> None:
    try:
        values, command = PARSER.parse(words, {})
        made = Request(values, command or ["x"], {} if url is None else {URL: url})
    except PortwrapError as error:
        assert error.exit_code == 2
        assert as_lines("p", error).count("\n") == 2
    else:
        assert 1 <= made.host_port <= 65535
        assert 1 <= made.guest_port <= 65535
