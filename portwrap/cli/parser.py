"""Our own options, which stand before the command. Nothing of the command itself is looked at.

argparse would not do: it takes options out of the command that follows, accepts prefixes of
names, and drops "--" there.
"""

from __future__ import annotations

from ..diagnostics.errors import EXIT_USAGE, Failure, PortwrapError
from ..diagnostics.log import log
from ..launch.ports import parse_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Texts = dict[str, str]
else:
    Texts = dict  # Python 3.8 has no dict[str, str]

PREFIX = "PORTWRAP_"
NOT_SETTINGS = ("PORTWRAP_TEST", "PORTWRAP_DEMO")
"""Beginnings of names that the project's own tests and demonstration use."""
ON, OFF = ("1", "yes", "true", "on"), ("0", "no", "false", "off")


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


class Values(Texts):
    """The values of the options, by key, and how each was written: `--name` or `PORTWRAP_NAME`."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, str] = {}

    def set(self, option: Option, value: str, origin: str) -> None:
        """A value from this option or variable, in place of any earlier one."""
        self[option.key] = value
        self.origins[option.key] = origin

    def origin(self, key: str) -> str:
        """How messages name this option: as the user has written it."""
        return self.origins.get(key, f"--{key}")


class Parser:
    """Reads our options up to the first argument that is none of them."""

    def __init__(
        self,
        program: str,
        usage: str,
        about: str,
        examples: Sequence[str],
        options: Sequence[Option],
        actions: Sequence[Option] = (),
    ) -> None:
        self.program = program
        self.usage = usage
        self.examples = examples
        self.about = about
        self.settable = options
        self.options = [
            *options,
            *actions,  # what is done instead of running a command: never from the environment
            Option(("-h", "--help"), "", "show this help and exit"),
            Option(("--version",), "", "show the version and exit"),
        ]
        self.by_name = {name: option for option in self.options for name in option.names}

    def parse(self, argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Values, list[str]]:
        """Return the values of our options and the command. Raises PortwrapError, status 2.

        The command line overrides the environment, and that the default.
        """
        values = self._from_environment(environ)
        given: set[str] = set()
        rest = list(argv)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            argument = rest.pop(0)
            if argument == "--":
                break
            option, name, value = self._split(argument)
            if option.value and value is None:
                if not rest:
                    raise self.error(f"{argument} needs a value: {option.value}")
                value = rest.pop(0)
            elif not option.value and value is not None:
                raise self.error(f"{argument}: {option.names[-1]} takes no value")
            if option.repeatable and option.key in given:
                value = f"{values[option.key]},{value}"
            given.add(option.key)
            values.set(option, value or "", name)
        return values, rest

    def _from_environment(self, environ: Mapping[str, str]) -> Values:
        values = Values()
        for option in self.settable:
            if option.default:
                values[option.key] = option.default
            text = environ.get(option.variable)
            if text is None or (text == "" and option.may_be_empty):
                continue
            if option.value or self._switched_on(option.variable, text):
                values.set(option, text, option.variable)
        return values

    def _switched_on(self, variable: str, text: str) -> bool:
        if text.lower() not in (*ON, *OFF):
            raise self.error(f"{variable} must be 1 or 0, not {text!r}", f"Set {variable}=1")
        return text.lower() in ON

    def _split(self, argument: str) -> tuple[Option, str, str | None]:
        """The option of this argument, its name as written, and its value where the argument has
        one: --name=VALUE or -xVALUE."""
        if argument in self.by_name:
            return self.by_name[argument], argument, None
        name, equals, value = argument.partition("=")
        if equals and argument.startswith("--") and name in self.by_name:
            return self.by_name[name], name, value
        short = self.by_name.get(argument[:2])
        if short is not None and short.value and not argument.startswith("--"):
            return short, argument[:2], argument[2:]
        from .mistakes import nearest

        near = nearest(name, self.by_name, "-")
        raise self.error(f"unknown option {argument}", f"Did you mean {near}?" if near else "")

    def error(self, message: str, remedy: str = "") -> PortwrapError:
        """A usage error."""
        remedy = remedy or f"Usage: {self.usage}; see --help."
        return PortwrapError(message, Failure.USAGE, EXIT_USAGE, remedy=remedy)

    # -- values ----------------------------------------------------------------------------

    def port(self, values: Values, key: str) -> int:
        """The number of a TCP port. Raises PortwrapError, status 2."""
        number = parse_port(values[key])
        if number is None:
            name = values.origin(key)
            raise self.error(f"{name} must be a number from 1 to 65535, not {values[key]!r}")
        return number

    def port_pairs(self, values: Values, key: str) -> list[tuple[int, int]]:
        """Pairs of ports, no first one twice; none where the option is not set. Raises
        PortwrapError, status 2."""
        if key not in values:
            return []
        from ..launch.port_lists import parse_pairs

        text, name = values[key], values.origin(key)
        pairs = parse_pairs(text)
        if pairs is None:
            raise self.error(f"{name} must be PORT[:PORT] or a range of them, not {text!r}")
        if len({first for first, _ in pairs}) != len(pairs):
            raise self.error(f"{name} lists a port twice: {text!r}")
        return pairs

    def ports(self, values: Values, key: str) -> list[int]:
        """Ports, each of them once; none where the option is not set. Raises PortwrapError, status
        2."""
        if key not in values:
            return []
        from ..launch.port_lists import parse_ranges

        text, name = values[key], values.origin(key)
        found = parse_ranges(text)
        if found is None:
            from .mistakes import assignment

            first = text.partition(":")[0]
            near = assignment(name, first) if parse_ranges(first) else ""
            raise self.error(
                f"{name} must be PORT or a range FIRST-LAST, not {text!r}",
                f"The port in the sandbox is that of the host: {near}" if near else "",
            )
        if len(set(found)) != len(found):
            raise self.error(f"{name} lists a port twice: {text!r}")
        return found

    def choice(self, values: Values, key: str, choices: Sequence[str]) -> str:
        """One of the choices. Raises PortwrapError, status 2."""
        text, name = values[key], values.origin(key)
        if text not in choices:
            from .mistakes import assignment, nearest

            near = nearest(text, choices)
            raise self.error(
                f"{name} must be one of {', '.join(choices)}, not {text!r}",
                f"Did you mean {assignment(name, near)}?" if near else "",
            )
        return text

    # -- variables -------------------------------------------------------------------------

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
            from .mistakes import unknown_variables

            log(f"{self.program}: {unknown_variables(unknown, settings, PREFIX)}\n")
