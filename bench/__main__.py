"""Runs the measurements: `bench/run.sh` sets up what is needed and then calls this."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import measures, report, ways
from .session import Account

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

HERE = Path(__file__).resolve().parent
OWNER = "pw-owner"
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def parser() -> argparse.ArgumentParser:
    """Our command line."""
    made = argparse.ArgumentParser(prog="bench/run.sh", description="Measure beside the rivals.")
    made.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    made.add_argument(
        "--only",
        action="append",
        choices=list(measures.MEASURES),
        help="one of the three parts; can be given several times",
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
    made.add_argument("--output", type=Path, default=HERE, help="folder of results.md (bench/)")
    made.add_argument("--archive", type=Path, required=True, help=argparse.SUPPRESS)
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
            for measure in options.only or measures.MEASURES:
                measures.MEASURES[measure](rig)
        except KeyboardInterrupt:
            rig.say("interrupted; nothing is written")
            return 130
        rig.say(f"measured in {time.monotonic() - begin:.0f} s")
        write(rig, {**left_out, **rig.failures}, options, argv)
    return 0


def _own_name() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _stop(*_: object) -> NoReturn:
    for number in STOPPING:  # a second one must not end the clean-up
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def prepare(
    options: argparse.Namespace, account: Account, folder: Path
) -> tuple[measures.Rig, dict[str, str]]:
    """Put everything that the account runs where it can read it."""
    folder.chmod(0o755)
    for part in ("programs", "rivals"):
        shutil.copytree(HERE / part, folder / part)
    archive = shutil.copy(options.archive, folder / "batchspawner-portwrap.pyz")
    home = folder / "home"
    home.mkdir()
    size = measures.QUICK if options.quick else measures.FULL
    for file, length in (("whole.bin", size.bulk), ("eighth.bin", size.bulk // 8)):
        with (home / file).open("wb") as empty:
            empty.truncate(length)
    if os.geteuid() == 0:
        for path in (home, *home.iterdir()):
            os.chown(path, account.uid, account.gid)
    values = {
        "python": "/usr/bin/python3",
        "archive": str(archive),
        "rivals": str(folder / "rivals"),
        "programs": str(folder / "programs"),
        "hub-venv": str(options.root / "hub-venv"),
        "content": str(home),
    }
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "USER": account.name,
        "LOGNAME": account.name,
        "LC_ALL": "C.UTF-8",
        "TMPDIR": "/tmp",
    }
    os.chdir("/")
    choice = ways.choose(values, options.way, [name for name in options.ways.split(",") if name])
    rig = measures.Rig(choice.ways, values, environ, account, folder, size)
    return rig, choice.left_out


def write(
    rig: measures.Rig, left_out: dict[str, str], options: argparse.Namespace, argv: Sequence[str]
) -> None:
    """Write results.md and results.svg, and print the table."""
    shown = [word for word in argv if word in ("--quick",)]
    for name in ("only", "way"):
        shown += [f"--{name} '{value}'" for value in getattr(options, name) or []]
    shown += [f"--ways {options.ways}"] if options.ways else []
    command = " ".join(["bench/run.sh", *shown])
    size = rig.size
    rounds = (
        f"{size.starts} starts ({size.long_starts} of jupyter_server), {size.rounds} rounds of"
        f" everything else, {size.seconds:g} s of requests each, {size.idle:g} s of idling."
    )
    versions = report.version_line(rig.values["hub-venv"] + "/bin/python")
    text = report.markdown(rig.figures, rig.ways, left_out, command, rounds, versions)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.md").write_text(text)
    report.chart(rig.figures, rig.ways, options.output / "results.svg", f"{command}   {versions}")
    print(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
