"""Our own options, which stand before the command. Nothing of the command itself is looked at.

argparse would not do: it takes options out of the command that follows, accepts prefixes of
names, and drops "--" there.
"""

from __future__ import annotations

from ..diagnostics.errors import EXIT_SANDBOX, EXIT_USAGE, PortwrapError
from ..diagnostics.log import log
from ..launch.ports import parse_pairs, parse_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


PREFIX = "PORTWRAP_"
NOT_SETTINGS = ("PORTWRAP_TEST", "PORTWRAP_DEMO")
"""Beginnings of names that the project's own tests and demonstration use."""
ANYWHERE = (OSError, ImportError, MemoryError)
"""Exceptions that the system can cause at any place. All others are faults of ours: they must be
seen with their traceback."""
SWITCHED_OFF = ("0", "no", "false", "off")


class Option:
    """One option: its names, the name of its value ("" for none), and its help.

    The values of a repeatable one are joined by commas. An empty environment variable is none,
    unless it must not be empty: then it is read as the mistake that it is.
    """

    def __init__(
        self,
        names: Sequence[str],
        value: str,
        text: str,
        default: str = "",
        repeatable: bool = False,
        may_be_empty: bool = True,
    ) -> None:
        self.names = names
        self.value = value
        self.text = text
        self.default = default
        self.repeatable = repeatable
        self.may_be_empty = may_be_empty

    @property
    def key(self) -> str:
        """The long name without its dashes."""
        return self.names[-1].lstrip("-")

    @property
    def variable(self) -> str:
        """The environment variable that sets it where the command line does not."""
        return PREFIX + self.key.upper().replace("-", "_")


class Parser:
    """Reads our options up to the first word that is none of them."""

    def __init__(
        self,
        program: str,
        usage: str,
        about: str,
        options: Sequence[Option],
        actions: Sequence[Option] = (),
    ) -> None:
        self.program = program
        self.usage = usage
        self.about = about
        self.settable = options
        self.options = [
            *options,
            *actions,  # what is done instead of running a command: never from the environment
            Option(("-h", "--help"), "", "show this help and exit"),
            Option(("--version",), "", "show the version and exit"),
        ]
        self.by_name = {name: option for option in self.options for name in option.names}

    def parse(
        self, argv: Sequence[str], environ: Mapping[str, str]
    ) -> tuple[dict[str, str], list[str]]:
        """Return the values of our options and the command. Raises PortwrapError, status 2.

        The command line wins over the environment, and that over the default.
        """
        values = {option.key: option.default for option in self.settable if option.default}
        for option in self.settable:
            text = environ.get(option.variable)
            if text == "" and not option.may_be_empty:
                values[option.key] = ""
            elif text and (option.value or text.lower() not in SWITCHED_OFF):
                values[option.key] = text
        given = set()
        rest = list(argv)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            word = rest.pop(0)
            if word == "--":
                break
            option, value = self._split(word)
            if option.value and value is None:
                if not rest:
                    raise self.error(f"{word} needs a value: {option.value}")
                value = rest.pop(0)
            elif not option.value and value is not None:
                raise self.error(f"{word}: {option.names[-1]} takes no value")
            if option.repeatable and option.key in given:
                value = f"{values[option.key]},{value}"
            given.add(option.key)
            values[option.key] = value or ""
        return values, rest

    def _split(self, word: str) -> tuple[Option, str | None]:
        """The option of this word, and its value where it holds one: --name=VALUE or -xVALUE."""
        if word in self.by_name:
            return self.by_name[word], None
        name, equals, value = word.partition("=")
        if equals and word.startswith("--") and name in self.by_name:
            return self.by_name[name], value
        short = self.by_name.get(word[:2])
        if short is not None and short.value and not word.startswith("--"):
            return short, word[2:]
        raise self.error(f"unknown option {word}")

    def error(self, message: str) -> PortwrapError:
        """A usage error."""
        return PortwrapError(message, f"Usage: {self.usage}; --help tells more.", EXIT_USAGE)

    def port(self, text: str, what: str) -> int:
        """The number of a TCP port. Raises PortwrapError, status 2."""
        number = parse_port(text)
        if number is None:
            raise self.error(f"{what} must be a number from 1 to 65535, not {text!r}")
        return number

    def port_pairs(self, text: str, what: str) -> list[tuple[int, int]]:
        """Pairs of ports, no first one twice. Raises PortwrapError, status 2."""
        pairs = parse_pairs(text)
        if pairs is None:
            raise self.error(f"{what} must be PORT[:PORT] or a range of them, not {text!r}")
        if len({first for first, _ in pairs}) != len(pairs):
            raise self.error(f"{what} names a port twice: {text!r}")
        return pairs

    def choice(self, text: str, what: str, choices: Sequence[str]) -> str:
        """One of the choices. Raises PortwrapError, status 2."""
        if text not in choices:
            raise self.error(f"{what} must be one of {', '.join(choices)}, not {text!r}")
        return text

    def warn_of_unknown(self, environ: Mapping[str, str], others: Sequence[str] = ()) -> None:
        """Name the variables that look like settings of ours and are none, in one line.

        A misspelt one would do nothing, silently. `others` are not ours and known all the same.
        """
        ours = [name for name in environ if name.startswith(PREFIX)]
        if not ours:
            return
        settings = [option.variable for option in self.settable]
        unknown = sorted(set(ours).difference(settings, others))
        unknown = [name for name in unknown if not name.startswith(NOT_SETTINGS)]
        if unknown:
            names = ", ".join(map(repr, unknown)).replace("'", "")
            log(f"{self.program}: not a setting: {names}; there are {', '.join(settings)}\n")


def run(program: str, action: Callable[[], int]) -> int:
    """Print an expected failure on standard error and return its exit status."""
    try:
        return action()
    except PortwrapError as error:
        log(error.lines(program))
        return error.exit_code
    except ANYWHERE as error:
        log(_unexpected(error).lines(program))
        return EXIT_SANDBOX


def _unexpected(error: BaseException) -> PortwrapError:
    try:
        from ..diagnostics import unexpected  # read only once something has failed
    except ANYWHERE:
        return PortwrapError(f"setting up: {error}", "There is nothing left to read more with.")
    return unexpected.refusal_of(error)
