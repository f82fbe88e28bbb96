"""Runs the measurements: `bench/run.sh` sets up what is needed and then calls this."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from . import calls, chart, forward, growth, outbound, report, starts, staying, ways
from .accounts import Account
from .results import Results
from .rig import SIZES, Rig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

HERE = Path(__file__).resolve().parent
OWNER = "pw-owner"
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PARTS = {
    "start": starts.measure,
    "forward": forward.measure,
    "out": outbound.measure,
    "memory": staying.measure,
    "calls": calls.measure,
    "growth": growth.measure,
}


def parser() -> argparse.ArgumentParser:
    """Our command line."""
    made = argparse.ArgumentParser(prog="bench/run.sh", description="Measure beside the rivals.")
    size = made.add_mutually_exclusive_group()
    size.add_argument("--size", choices=list(SIZES), default="full", help="how much of everything")
    size.add_argument(
        "--quick", action="store_const", dest="size", const="quick", help="the same as --size quick"
    )
    made.add_argument(
        "--only",
        action="append",
        choices=list(PARTS),
        help="one of the parts; can be given several times",
    )
    made.add_argument(
        "--ways",
        default="",
        metavar="NAME,...",
        help="measure those whose names begin so, and bare",
    )
    made.add_argument(
        "--way",
        action="append",
        default=[],
        metavar="NAME=WORDS",
        help="one more way: the words before the command, with {host-port} and {guest-port}",
    )
    made.add_argument(
        "--output",
        type=Path,
        help="folder of results.md; by default bench/, and the tables of docs/",
    )
    made.add_argument("--archive", type=Path, required=True, help=argparse.SUPPRESS)
    made.add_argument("--fast-archive", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--root", type=Path, required=True, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str]) -> int:
    """Measure and write the results."""
    options = parser().parse_args(argv)
    # A shell starts what it runs in the background with SIGINT ignored.
    for number in STOPPING:
        signal.signal(number, _stop)
    account = Account.named(OWNER if os.geteuid() == 0 else _own_name())
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="portwrap-bench-") as name:
        folder = Path(name)
        rig, left_out = prepare(options, account, folder)
        try:
            for part in options.only or PARTS:
                _measure(rig, part)
        except KeyboardInterrupt:
            rig.say("interrupted; nothing is written")
            return 130
        rig.say(f"measured in {time.monotonic() - begin:.0f} s")
        write(rig, {**left_out, **rig.failures}, options)
    return 1 if rig.broken else 0


def _measure(rig: Rig, part: str) -> None:
    """One part; what is wrong with it does not take the others with it."""
    try:
        PARTS[part](rig)
    except Exception as error:
        traceback.print_exc()
        rig.broken = True
        rig.notes.append(f"The part {part} broke off: {type(error).__name__}: {error}")


def _own_name() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _stop(*_: object) -> NoReturn:
    for number in STOPPING:  # a second one must not end the clean-up
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def prepare(
    options: argparse.Namespace, account: Account, folder: Path
) -> tuple[Rig, dict[str, str]]:
    """Put everything that the account runs where it can read it."""
    folder.chmod(0o755)
    for part in ("programs", "rivals"):
        shutil.copytree(HERE / part, folder / part)
    (folder / "bench").mkdir()  # what runs inside of this package
    for file in ("__init__.py", "load.py"):
        shutil.copy(HERE / file, folder / "bench")
    archive = shutil.copy(options.archive, folder / "batchspawner-portwrap.pyz")
    if options.fast_archive:
        shutil.copy(options.fast_archive, folder / "fast.pyz")
    home, temporary = folder / "home", folder / "tmp"
    home.mkdir()
    temporary.mkdir()
    size = SIZES[options.size]
    for file, length in (("whole.bin", size.bulk), ("eighth.bin", size.bulk // 8)):
        with (home / file).open("wb") as empty:
            empty.truncate(length)
    if os.geteuid() == 0:
        for path in (temporary, home, *home.iterdir()):
            os.chown(path, account.uid, account.gid)
    values = {
        "python": "/usr/bin/python3",
        "archive": str(archive),
        "fast-archive": str(folder / "fast.pyz"),
        "folder": str(folder),
        "rivals": str(folder / "rivals"),
        "programs": str(folder / "programs"),
        "hub-venv": str(options.root / "hub-venv"),
        "content": str(home),
        "temporary": str(temporary),
    }
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "USER": account.name,
        "LOGNAME": account.name,
        "LC_ALL": "C.UTF-8",
        # What a rival leaves when it is ended goes with the folder.
        "TMPDIR": str(temporary),
    }
    os.chdir("/")
    only = [name for name in options.ways.split(",") if name]
    choice = ways.choose(options.way, only)
    rig = Rig(choice.ways, values, environ, account, folder, size)
    if options.fast_archive:
        rig.byte_code_ways = ways.choose_byte_code(only).ways
    rig.published_ways = ways.choose_published(only).ways
    newer = options.root / "newer-helpers" / "usr" / "bin"
    rig.outbound_ways, left_out = ways.choose_out(newer, environ["PATH"], only)
    choice.left_out.update(_prepare_calls(rig, options.only))
    for chosen in (rig.ways, rig.outbound_ways):
        chosen[:] = [way for way in chosen if size.control or way.name != ways.CONTROL]
    return rig, {**left_out, **choice.left_out}


def _prepare_calls(rig: Rig, only: Sequence[str] | None) -> dict[str, str]:
    """What is left out of that part, if it is wanted."""
    if only and "calls" not in only:
        return {}
    calls_choice = ways.choose_calls(platform.machine())
    rig.ways_calls = calls_choice.ways
    return calls_choice.left_out


def write(rig: Rig, left_out: dict[str, str], options: argparse.Namespace) -> None:
    """Write results.md and the charts, and print the table."""
    results = Results(
        figures=rig.figures,
        ways=rig.ways,
        special=[*rig.byte_code_ways, *rig.outbound_ways, *rig.ways_calls],
        left_out=left_out,
        notes=rig.notes,
        command=command_line(options),
        size=report.describe(rig.size),
        versions=report.version_line(rig.values["hub-venv"] + "/bin/python"),
    )
    folder = options.output or HERE
    folder.mkdir(parents=True, exist_ok=True)
    drawn = chart.draw(results, folder)
    text = report.markdown(results, bool(drawn))
    (folder / "results.md").write_text(text)
    if not options.output:
        generate = HERE.parent / "docs" / "generate.py"
        subprocess.run([sys.executable, str(generate)], check=True, stdout=sys.stderr)
    print(text)


def command_line(options: argparse.Namespace) -> str:
    """The command that has made the results."""
    shown = ["bench/run.sh"]
    if options.size != "full":
        shown.append("--quick" if options.size == "quick" else f"--size {options.size}")
    for name in ("only", "way"):
        shown += [f"--{name} {shlex.quote(value)}" for value in getattr(options, name) or []]
    shown += [f"--ways {shlex.quote(options.ways)}"] if options.ways else []
    return " ".join(shown)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
