"""What a row of the table of remedies is, and the systems that have commands of their own."""

from __future__ import annotations

import shlex

from . import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEMS = {
    "debian": "Debian, Ubuntu",
    "rhel": "RHEL 8 and 9",
    "rhel10": "RHEL 10",
}
"""The systems that have commands of their own; "" stands for all others."""


class Diagnostic:
    """A cause of a failure and its remedy, both in sentences; `commands` are for root, by system.

    `example` is the message as people see it. `setting` is a file below /proc/sys and the content
    that makes this row the cause; `around` is one of `surroundings.py` that does. `words` is a
    regular expression for what a program that is not ours has printed: a network driver that failed
    with such words has failed for this reason. `answer` is one for what the message must have.
    A row with a `subject` is for failures of this one only.
    `recorded` rows were taken from reports: no test can make them happen for real.

    {subject} in remedy and commands stands for what the failure is about, {check} and {singleuser}
    for the programs of `places.py`.
    """

    def __init__(
        self,
        failure: str,
        example: str,
        cause: str,
        remedy: str = "",
        commands: Mapping[str, str] | str = "",
        setting: tuple[str, str] | None = None,
        words: str = "",
        subject: str = "",
        around: str = "",
        answer: str = "",
        recorded: bool = False,
    ) -> None:
        self.failure = failure
        self.example = example
        self.cause = cause
        self.remedy = remedy
        self.commands = {"": commands} if isinstance(commands, str) else commands
        self.setting = setting
        self.words = words
        self.subject = subject
        self.around = around
        self.answer = answer
        self.recorded = recorded

    def sentences(self, subject: str = "") -> str:
        """Cause and remedy in one line."""
        return fill_in(f"{self.cause} {self.remedy}".strip(), subject)

    def command(self, system: str, subject: str = "") -> str:
        """What root is to run on this system; "" where no command is the remedy."""
        return fill_in(self.commands.get(system) or self.commands.get("", ""), subject)

    def line(self, system: str, subject: str = "") -> str:
        """Cause, remedy and command in one line."""
        command = self.command(system, subject)
        parts = [self.sentences(subject), f"As root: {command}" if command else ""]
        return " ".join(filter(None, parts))


def fill_in(text: str, subject: str) -> str:
    """The text with the names that it leaves open, as a shell takes them."""
    for name, find in (("{check}", places.check_program), ("{singleuser}", places.singleuser)):
        if name in text:
            text = text.replace(name, shlex.quote(find()))
    return text.replace("{subject}", shlex.quote(subject) if subject else "…")


def os_release(path: str = "/etc/os-release") -> dict[str, str]:
    """os-release(5) as a dictionary; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            pairs = (line.strip().partition("=") for line in file)
            return {name: value.strip("\"'") for name, _, value in pairs if name.isidentifier()}
    except OSError:
        return {}


def this_system(release: Mapping[str, str] | None = None) -> str:
    """The key in SYSTEMS of this distribution or of the one that it is like; "" for others."""
    facts = os_release() if release is None else release
    names = [facts.get("ID", ""), *facts.get("ID_LIKE", "").split()]
    if "debian" in names or "ubuntu" in names:
        return "debian"
    if "rhel" in names or "fedora" in names:
        major = facts.get("VERSION_ID", "").partition(".")[0]
        newer = names[0] == "fedora" or len(major) > 1  # the first of them with two digits is 10
        return "rhel10" if newer else "rhel"
    return ""
