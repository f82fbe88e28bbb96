"""Sessions in the virtual machine, each a service of its systemd."""

from __future__ import annotations

import itertools
import json
from typing import Any, Mapping, Sequence

from vm.conftest import ARCHIVE, PROGRAMS
from vm.machine import PATIENCE, Machine, Result

from helpers import NEIGHBOUR, OWNER, wait_until

NUMBERS = itertools.count(1)
HUB_PAGE = "http://10.77.0.2:8081/"
NODE = "10.77.0.1"
APP = ("/usr/bin/python3", f"{PROGRAMS}/app.py")


class Server:
    """A server of pw-owner's that listens on a host port, and on another port for nobody else."""

    def __init__(self, machine: Machine) -> None:
        number = next(NUMBERS)
        self.machine = machine
        self.name = f"session-{number}"
        self.port, self.other = 20000 + number, 21000 + number

    def words(self, program: Sequence[str], server: Sequence[str] = APP) -> list[str]:
        """Its command, in the sandbox of this program or in none."""
        place = "{guest-port}" if program else f"0.0.0.0:{self.port}"
        return [*program, *server, place, str(self.other)]

    @property
    def url(self) -> str:
        """What the hub has chosen for it."""
        return f"http://0.0.0.0:{self.port}/"

    def is_over(self) -> bool:
        raise NotImplementedError

    def log(self) -> str:
        raise NotImplementedError

    def get(self, path: str = "", retries: int = 0) -> str:
        """A page, as the hub's host gets it: "" if it does not."""
        words = ["ip", "netns", "exec", "hub01", "curl", "--silent", "--max-time", "60"]
        words += ["--retry", str(retries), "--retry-delay", "1", "--retry-all-errors"]
        return self.machine.run(*words, f"http://{NODE}:{self.port}/{path}").output

    def wait_ready(self) -> None:
        try:
            wait_until(lambda: self.get(retries=20) or self.is_over(), PATIENCE, "a server")
        except AssertionError as error:
            raise AssertionError(self.log()) from error
        assert not self.is_over(), self.log()

    def neighbours(self) -> Result:
        """What another account gets from the other port, on the node."""
        words = ["curl", "--silent", "--show-error", f"http://127.0.0.1:{self.other}/"]
        return self.machine.run(*words, account=NEIGHBOUR)


class Session(Server):
    """A server that is a service."""

    def __init__(
        self,
        machine: Machine,
        environ: Mapping[str, str] | None = None,
        properties: Sequence[str] = (),
        program: Sequence[str] = (ARCHIVE,),
        server: Sequence[str] = APP,
    ) -> None:
        super().__init__(machine)
        settings = {"JUPYTERHUB_SERVICE_URL": self.url, **(environ or {})}
        words = self.words(program, server)
        machine.do("systemd-run", *self.options(settings, properties), *words)

    def options(self, environ: Mapping[str, str], properties: Sequence[str]) -> list[str]:
        return [
            *(f"--unit={self.name}", f"--uid={OWNER}", "--quiet", "--slice=sessions.slice"),
            *("-p", "RemainAfterExit=yes", "-p", "WorkingDirectory=~"),
            *("-p", f"StandardOutput=append:/run/{self.name}.log"),
            *("-p", f"StandardError=append:/run/{self.name}.log"),
            *(f"--setenv={name}={value}" for name, value in environ.items()),
            *(word for setting in properties for word in ("-p", setting)),
        ]

    def show(self, name: str) -> str:
        """A property of the unit."""
        words = ["systemctl", "show", "--value", f"--property={name}", self.name]
        return self.machine.do(*words).strip()

    def is_over(self) -> bool:
        """Whether its main process has ended."""
        return self.show("SubState") in ("exited", "failed", "dead")

    def status(self) -> int:
        """The exit status of its main process, which ends by itself."""
        wait_until(self.is_over, PATIENCE, "its end")
        return int(self.show("ExecMainStatus"))

    def log(self) -> str:
        """What it has written."""
        return self.machine.do("cat", f"/run/{self.name}.log")

    def stop(self) -> None:
        """By systemd. Nothing is left of it."""
        self.machine.do("systemctl", "stop", self.name)
        wait_until(lambda: processes(self.machine) == "", PATIENCE, "the end of its processes")
        listening = self.machine.do("ss", "-Hltn")
        assert f":{self.port} " not in listening, listening


def processes(machine: Machine) -> str:
    """The owner's."""
    return machine.run("pgrep", "--list-full", "--uid", OWNER).output


def check(
    machine: Machine,
    environ: Mapping[str, str] | None = None,
    properties: Sequence[str] = (),
) -> dict[str, Any]:
    """What --check reports in a service with these properties."""
    words = [*(word for setting in properties for word in ("-p", setting))]
    run = ["systemd-run", "--quiet", "--collect", "--wait", "--pipe", f"--uid={OWNER}", *words]
    settings = [f"--setenv={name}={value}" for name, value in (environ or {}).items()]
    result = machine.run(*run, *settings, ARCHIVE, "--check", "--json")
    assert result.output, result
    return dict(json.loads(result.output))


def check_passes(
    machine: Machine,
    environ: Mapping[str, str] | None = None,
    properties: Sequence[str] = (),
) -> dict[str, Any]:
    """What --check reports where a session would start."""
    answer = check(machine, environ, properties)
    failed = {name: named(answer)[name] for name in answer["failed"]}
    assert answer["would_start"] and not failed, failed
    return answer


def named(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The results by the names of the checks."""
    return {found["name"]: found for found in answer["checks"]}
