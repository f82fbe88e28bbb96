"""The portwrap command: the sandbox by itself, without anything of JupyterHub."""

from __future__ import annotations

import os
import sys

from .cli.common import COMMON_OPTIONS, common_settings, fill_in
from .cli.parser import Option, Parser
from .cli.run import run
from .kernel.threads import is_threaded
from .launch import ports
from .launch.command import reexec
from .launch.sandbox import Sandbox
from .launch.story import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "portwrap"
PARSER = Parser(
    PROGRAM,
    "portwrap -p HOST_PORT [-P GUEST_PORT] [--host ADDRESS] COMMAND [ARG ...]",
    "Run COMMAND in a user and network namespace of its own. The host's HOST_PORT is forwarded to\n"
    "GUEST_PORT in the sandbox; nothing else is. {guest-port} in COMMAND stands for GUEST_PORT.",
    ["portwrap -p 40001 -P 8000 python3 -m http.server {guest-port}"],
    [
        Option(("-p", "--host-port"), "PORT", "host port to listen on"),
        Option(
            ("--host",),
            "ADDRESS",
            "host address to listen on (default 0.0.0.0)",
            ports.EVERY_IPV4,
        ),
        *COMMON_OPTIONS,
    ],
)

SETTINGS_OF_OTHERS = ("PORTWRAP_PORT", "PORTWRAP_PORTWRAP_PATH", "PORTWRAP_QUIET")
"""Those of batchspawner-portwrap, in whose sessions this program may be started."""


def main(argv: Sequence[str] | None = None, afresh: bool = False) -> int:
    """Run the command in a sandbox, or return an exit status.

    `afresh` tells that this interpreter was started for nothing else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run(PROGRAM, lambda: _main(arguments, afresh))


def _main(argv: list[str], afresh: bool) -> int:
    values, command = PARSER.parse(argv, os.environ)
    if "help" in values or "version" in values:
        from .cli import help, version

        verbose = "verbose" in values
        shown = help.text(PARSER) if "help" in values else version.text(PROGRAM, verbose)
        sys.stdout.write(shown)
        return 0
    PARSER.warn_of_unknown(os.environ, SETTINGS_OF_OTHERS)
    if not command:
        raise PARSER.error("no command")
    if "host-port" not in values:
        raise PARSER.error("no host port: -p HOST_PORT is missing")
    host_port = PARSER.port(values, "host-port")
    sandbox = Sandbox(
        host_port=host_port,
        host=values["host"],
        program=PROGRAM,
        **common_settings(PARSER, values, host_port),
    )
    if is_threaded() and not afresh:
        reexec("portwrap.__main__:main", argv)
    launch(sandbox, fill_in(command, sandbox.guest_port), os.environ)


if __name__ == "__main__":
    sys.exit(main())
