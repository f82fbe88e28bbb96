"""The demonstration: two sessions of one person, the proof, and a hub to look around in."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from demo.client import HubClient, HubError
from demo.rig import Ended, Plan, Rig, RigError, end_in_order, interruptible, tail

REFUSED = "Connection refused"
KERNEL_SECONDS = 30.0
TCP_LISTEN = "0A"
STARTED = float(os.environ.get("PORTWRAP_DEMO_STARTED") or time.time())


@dataclass(frozen=True)
class Row:
    """One line of the proof: what was tried, what came back, and whether that is as it must be."""

    session: str
    who: str
    asks: str
    answer: str
    holds: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0 if the proof holds, 1 if it does not or something broke."""
    parser = argparse.ArgumentParser(prog="demo.sh", description="See batchspawner-portwrap work.")
    parser.add_argument("--once", action="store_true", help="print the proof and end")
    parser.add_argument("--root", type=Path, required=True, help="ROOT_DIR of demo/install.sh")
    parser.add_argument("--archive", type=Path, required=True, help="batchspawner-portwrap.pyz")
    options = parser.parse_args(argv)
    end_in_order()
    try:
        return demonstrate(Plan(root=options.root, archive=options.archive), options.once)
    except Ended:
        say("Interrupted; removing everything")
        return 130
    except (RigError, HubError, OSError) as error:
        print(f"demo.sh: {error}", file=sys.stderr)
        return 1


def demonstrate(plan: Plan, once: bool) -> int:
    say("Starting JupyterHub, its proxy and a small batch system")
    with Rig(plan, say) as rig:
        say(f"The hub answers at {rig.facts.url}")
        try:
            with interruptible():
                rows = prove(rig)
        except (HubError, OSError):
            show_last_job(rig)
            raise
        print_table(rows)
        proved = all(row.holds for row in rows)
        print_verdict(rig, proved)
        if not once:
            wait_for_the_end(rig)
        say("Removing everything")
    return 0 if proved else 1


# ---- the proof -------------------------------------------------------------------------------


def prove(rig: Rig) -> list[Row]:
    """The rows of both sessions; the one in the sandbox is left running."""
    client = HubClient(rig.facts.url)
    client.login(rig.facts.owner, rig.facts.password)
    say("A session without the sandbox, for comparison")
    client.spawn({"sandbox": False})
    rows = look("without", rig, client, safe=False)
    say("Stopping it")
    client.stop()
    say("A session in the sandbox")
    client.spawn({"sandbox": True})
    say_how_it_started(rig)
    return look("sandbox", rig, client, safe=True) + rows


def look(session: str, rig: Rig, client: HubClient, safe: bool) -> list[Row]:
    """What the owner gets through the hub, and what another account gets straight from the node."""
    owner = rig.facts.owner
    secret = (Path(rig.facts.run) / "home" / owner / "notes.txt").read_text().strip()
    page = client.get(f"/user/{owner}/notes/")
    reads = page.status == 200 and secret in page.text
    answer = f"{page.status}, reads her notes" if reads else str(page.status)
    rows = [Row(session, owner, "her notes application, through the hub", answer, reads)]
    port = int(found(r"127\.0\.0\.1:(\d+)", page.text))
    kernel = [f"127.0.0.1:{number}" for number in start_kernel(rig, client)]
    server_port = found(r"(?s).*started at \S+:(\d+)", rig.hub_log.read_text())
    who = rig.facts.stranger or f"{owner}, outside"
    return [
        *rows,
        app_row(session, who, f"127.0.0.1:{port}", rig, secret, safe),
        kernel_row(session, who, kernel, rig, safe),
        server_row(session, who, f"{rig.facts.node}:{server_port}", rig),
    ]


def app_row(session: str, who: str, address: str, rig: Rig, secret: str, safe: bool) -> Row:
    """The application behind jupyter-server-proxy, at its own port."""
    (reply,) = ask_as_stranger(rig, "/", address)
    asks = f"her notes application, {address}"
    if not reply["connected"]:
        return Row(session, who, asks, f"refused ({reply['why']})", safe and is_refused(reply))
    leaks = reply["status"] == 200 and secret in reply["body"]
    answer = f"{reply['status']}, reads her notes: a leak" if leaks else str(reply["status"])
    return Row(session, who, asks, answer, leaks and not safe)


def kernel_row(session: str, who: str, addresses: Sequence[str], rig: Rig, safe: bool) -> Row:
    """The ports over which a notebook's kernel is told what to run."""
    replies = ask_as_stranger(rig, "", *addresses)
    reached = sum(reply["connected"] for reply in replies)
    asks = f"the {len(addresses)} ports of her notebook's kernel"
    if reached:
        answer = f"{reached} of {len(replies)} open"
        return Row(session, who, asks, answer, not safe and reached == len(replies))
    return Row(session, who, asks, "all refused", safe and all(map(is_refused, replies)))


def server_row(session: str, who: str, address: str, rig: Rig) -> Row:
    """The one port that is open in both sessions: Jupyter's, which asks who is there."""
    (reply,) = ask_as_stranger(rig, f"/user/{rig.facts.owner}/api/contents", address)
    asks = f"her Jupyter server, {address}"
    if not reply["connected"]:
        return Row(session, who, asks, reply["why"], False)
    asked = reply["status"] in (302, 403)
    return Row(session, who, asks, f"{reply['status']}{', not logged in' * asked}", asked)


def is_refused(reply: dict[str, Any]) -> bool:
    """Nobody listens there; any other failure (a time-out, a firewall) would prove nothing."""
    return not reply["connected"] and reply["why"] == REFUSED


def ask_as_stranger(rig: Rig, path: str, *addresses: str) -> list[dict[str, Any]]:
    """What the other account gets there; without root it is our own, outside the session."""
    other = rig.facts.stranger
    command = ["/usr/bin/python3", f"{rig.facts.run}/bin/stranger.py", path, *addresses]
    prefix = ["runuser", "-u", other, "--"] if other else []
    result = subprocess.run(prefix + command, capture_output=True, text=True, check=True)
    replies: list[dict[str, Any]] = json.loads(result.stdout)
    return replies


def start_kernel(rig: Rig, client: HubClient) -> list[int]:
    """Start a kernel for the owner; returns its ports, once it listens on all of them."""
    owner = rig.facts.owner
    kernel = client.api("POST", f"/user/{owner}/api/kernels", {"name": "python3"})
    if kernel.status != 201:
        raise HubError(f"no kernel: {kernel.status} {kernel.text[:200]}")
    name = f"kernel-{kernel.json()['id']}.json"
    file = Path(rig.facts.run) / "home" / owner / ".local/share/jupyter/runtime" / name
    connection = json.loads(file.read_text())
    ports = [connection[key] for key in sorted(connection) if key.endswith("_port")]
    deadline = time.monotonic() + KERNEL_SECONDS
    while not set(ports) <= listening_beside(name):
        if time.monotonic() > deadline:
            raise HubError("the kernel does not listen on its ports")
        time.sleep(0.1)
    return ports


def listening_beside(word: str) -> set[int]:
    """The TCP ports that are listened on in the network of the process with this in its command."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() not in (process / "cmdline").read_bytes():
                continue
            sockets = (process / "net" / "tcp").read_text().splitlines()[1:]
        except OSError:
            continue  # it ended meanwhile
        # proc(5): local address and port in hexadecimal, then the peer's, then the state.
        fields = [line.split() for line in sockets]
        return {int(f[1].rpartition(":")[2], 16) for f in fields if f[3] == TCP_LISTEN}
    return set()


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if not match:
        raise HubError(f"expected {pattern} in: {text[:500]}")
    return match.group(1)


# ---- what is printed -------------------------------------------------------------------------


def say(words: str) -> None:
    """One line of progress, with the seconds since demo.sh was started."""
    print(f"[{time.time() - STARTED:3.0f} s] {words}", flush=True)


def say_how_it_started(rig: Rig) -> None:
    """The line that a start leaves in the job's log: ports, forwarding, outbound, milliseconds."""
    log = rig.last_job_log()
    for line in log.read_text().splitlines() if log else []:
        if ": forwarding " in line:
            say(line)


def print_table(rows: Sequence[Row]) -> None:
    titles = ("SESSION", "WHO", "CONNECTS TO", "RESULT")
    cells = [(row.session, row.who, row.asks, row.answer) for row in rows]
    widths = [max(len(line[column]) for line in [titles, *cells]) for column in range(3)]
    before = titles[0]
    print()
    for line, holds in zip([titles, *cells], [True, *(row.holds for row in rows)]):
        if line[0] != before:
            print()
        before = line[0]
        padded = [cell.ljust(width) for cell, width in zip(line, [*widths, 0])]
        print("  ".join(padded).rstrip() + ("" if holds else "   <-- UNEXPECTED"))
    print(flush=True)


def print_verdict(rig: Rig, proved: bool) -> None:
    if not rig.facts.stranger:
        print(
            "A second account needs root. The rows above use your own account, outside the session;"
        )
        print("for the network this makes no difference.\n")
    if proved:
        print("In the sandbox the owner's work is reachable only through her login; without it,")
        print("any account on the node can read it.\n", flush=True)
    else:
        print("The proof does NOT hold: see the marked lines.\n", flush=True)
        show_last_job(rig)


def show_last_job(rig: Rig) -> None:
    """The cause of a failed session stands in its job's log, nowhere else."""
    log = rig.last_job_log()
    if log is not None:
        print(f"The last lines of the job's log:\n{tail(log)}\n", file=sys.stderr, flush=True)


def wait_for_the_end(rig: Rig) -> None:
    facts = rig.facts
    try:
        with interruptible():
            print(f"Open      {facts.url}/user/{facts.owner}/   (in a browser on this machine)")
            print(f"Log in    as {facts.owner}, password {facts.password}")
            print(f"Her app   {facts.url}/user/{facts.owner}/notes/")
            print("Ctrl-C    removes everything again\n", flush=True)
            while rig.still_up():
                time.sleep(1)
    except Ended:
        return
    raise RigError(f"the hub has ended\n{tail(rig.hub_log)}")


if __name__ == "__main__":
    sys.exit(main())
