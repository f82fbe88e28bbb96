"""The probe: what `--check` runs as the command of a session.

It runs alone, by `python -I -S`. It serves a token on the guest port, on another one and on an
abstract unix socket, tries in the sandbox what a server needs there, and reports what it finds as
lines of JSON on standard output. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

ROOT_QUERY = b"\x01\x00\x00\x01\0\0\0\0\0\0\0\0\x02\0\x01"
"""A DNS query (RFC 1035, 4.1) behind its number: which are the name servers of the root?"""
RESEND = 0.3
"""Seconds after which a query is sent once more: UDP may lose it."""


def main(plan: Mapping[str, Any]) -> None:
    """Serve and try until standard input ends."""
    token: str = plan["token"]
    timeout: float = plan["timeout"]  # seconds for each try
    listeners = listen(plan["guest_port"], token)
    tries: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if plan["servers"]:
        tries.append(("names", lambda: query_names(plan["servers"], timeout)))
    if plan["ssh"]:
        tries.append(("ssh", lambda: run_ssh(timeout)))
    if plan["groups"]:
        tries.append(("groups", lambda: give_to_groups(plan["groups"])))
    if plan["url"]:
        tries.append(("url", lambda: request(plan["url"], timeout)))
    for name, action in tries:
        threading.Thread(target=run, args=(name, action), daemon=True).start()
    report("listening", {"application": listeners[1].getsockname()[1]})
    serve(listeners, token.encode())


def listen(guest_port: int, token: str) -> list[socket.socket]:
    """The server's socket, an application's on every address, and an abstract one."""
    server = socket.create_server(("127.0.0.1", guest_port))
    application = socket.create_server(("0.0.0.0", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0{token}")
    abstract.listen()
    return [server, application, abstract]


def serve(listeners: list[socket.socket], token: bytes) -> None:
    """Send the token to every client."""
    watched: list[Any] = [0, *listeners]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if 0 in ready:
            os._exit(0)
        for listener in listeners:
            if listener in ready:
                with listener.accept()[0] as connection:
                    answer(connection, token)


def answer(connection: socket.socket, token: bytes) -> None:
    try:
        connection.sendall(token)
    except OSError:
        pass  # the client has gone


def report(name: str, found: Any) -> None:
    """One line on standard output."""
    os.write(1, (json.dumps({name: found}) + "\n").encode())


def run(name: str, action: Callable[[], dict[str, Any]]) -> None:
    """Try it and report, errors as well."""
    began = time.monotonic()
    report(name, {**attempt(action), "ms": round(1000 * (time.monotonic() - began))})


def attempt(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the action finds, or the error that it meets."""
    try:
        return action()
    except Exception as error:
        return {"error": getattr(error, "strerror", None) or str(error) or type(error).__name__}


def query_names(servers: list[str], timeout: float) -> dict[str, Any]:
    """Send each of these nameservers a query; the first that answers is named."""
    number = os.urandom(2)
    deadline = time.monotonic() + timeout
    sockets = [socket.socket(family(server), socket.SOCK_DGRAM) for server in servers]
    while time.monotonic() < deadline:
        for server, query in zip(servers, sockets):
            try:
                query.sendto(number + ROOT_QUERY, (server, 53))
            except OSError:
                pass  # out of reach: perhaps another one is not
        patience = min(RESEND, max(0.0, deadline - time.monotonic()))
        for query in select.select(sockets, [], [], patience)[0]:
            if query.recv(4096)[:2] == number:
                return {"server": servers[sockets.index(query)]}
    return {"error": f"no nameserver answers in the sandbox: {', '.join(servers)}"}


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def request(url: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """GET this URL: the status, and the header that gives the version of what answers."""
    host, port = url["host"], url["port"]
    connection = socket.create_connection((host, port), timeout=timeout)
    if url["scheme"] == "https":
        import ssl

        connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    place = f"[{host}]" if ":" in host else host
    with connection:
        text = f"GET {url['path']} HTTP/1.0\r\nHost: {place}:{port}\r\nConnection: close\r\n\r\n"
        connection.sendall(text.encode())
        lines = connection.recv(4096).decode("latin-1").splitlines()
    if not lines or not lines[0].startswith("HTTP/"):
        return {"error": "the answer is not HTTP"}
    fields = dict(line.lower().partition(": ")[::2] for line in lines[1:])
    return {"status": lines[0].partition(" ")[2], "version": fields.get(url["header"], "")}


def give_to_groups(groups: list[int]) -> dict[str, Any]:
    """Give a file in memory to each of these groups, all of which the user is in."""
    file = os.memfd_create("portwrap-check")
    refused = []
    for group in groups:
        try:
            os.fchown(file, -1, group)
        except OSError:
            refused.append(group)
    os.close(file)
    return {"refused": refused}


def run_ssh(timeout: float) -> dict[str, Any]:
    """Have ssh read its configuration, without connecting anywhere."""
    path = shutil.which("ssh")
    if path is None:
        return {"missing": True}
    result = subprocess.run(
        [path, "-G", "localhost"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=timeout,
        check=False,
    )
    if result.returncode == 0:
        return {}
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    return {"error": lines[-1] if lines else f"status {result.returncode}"}
