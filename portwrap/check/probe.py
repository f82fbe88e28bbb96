"""The probe: what `--check` runs as the command of a session.

It runs alone, by `python -I -S`, its text handed over on the command line. It serves a token on
the guest port, on another one and on an abstract unix socket, looks at what a server needs inside,
and says what it finds as lines of JSON on standard output. It ends with its standard input.
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
    from collections.abc import Callable
    from typing import Any

ROOT_QUESTION = b"\x01\x00\x00\x01\0\0\0\0\0\0\0\0\x02\0\x01"
"""A DNS query (RFC 1035, 4.1) behind its number: which are the name servers of the root?"""
ASK_AGAIN = 0.3
"""Seconds after which a question is asked once more: UDP may lose it."""


def main(settings: dict[str, Any]) -> None:
    """Serve and look until standard input ends."""
    token: str = settings["token"]
    limit: float = settings["limit"]  # seconds for each look
    listeners = listen(settings["guest_port"], token)
    looks: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if settings["look"]:
        looks.append(("names", lambda: look_at_names(settings["servers"], limit)))
        looks.append(("ssh", lambda: look_at_ssh(limit)))
    if settings["look"] and settings["hub"]:
        looks.append(("hub", lambda: look_at_hub(settings["hub"], limit)))
    for name, look in looks:
        threading.Thread(target=run, args=(name, look), daemon=True).start()
    tell("listening", {"application": listeners[1].getsockname()[1]})
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
    """Send the token to whoever connects."""
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
        pass  # whoever asked has gone


def tell(name: str, found: dict[str, Any]) -> None:
    """One line on standard output."""
    os.write(1, (json.dumps({name: found}) + "\n").encode())


def run(name: str, look: Callable[[], dict[str, Any]]) -> None:
    """Look and tell; what goes wrong is told as well."""
    began = time.monotonic()
    try:
        found = look()
    except Exception as error:
        found = {"error": str(error) or type(error).__name__}
    tell(name, {**found, "ms": round(1000 * (time.monotonic() - began))})


def look_at_names(servers: list[str], limit: float) -> dict[str, Any]:
    """Ask each of these nameservers; the first that answers is named."""
    number = os.urandom(2)
    deadline = time.monotonic() + limit
    asked = [socket.socket(family(server), socket.SOCK_DGRAM) for server in servers]
    while time.monotonic() < deadline:
        for server, question in zip(servers, asked):
            try:
                question.sendto(number + ROOT_QUESTION, (server, 53))
            except OSError:
                pass  # out of reach: perhaps another one is not
        patience = min(ASK_AGAIN, max(0.0, deadline - time.monotonic()))
        for question in select.select(asked, [], [], patience)[0]:
            if question.recv(4096)[:2] == number:
                return {"server": servers[asked.index(question)]}
    return {"error": f"no nameserver answers inside: {', '.join(servers)}"}


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def look_at_hub(url: str, limit: float) -> dict[str, Any]:
    """Ask the hub's API for its version, for which it wants no token."""
    scheme, _, rest = url.partition("://")
    place, _, path = rest.partition("/")
    host, _, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not (host and port.isdigit()):
        host, port = place, "443" if scheme == "https" else "80"
    host = host.strip("[]")
    connection = socket.create_connection((host, int(port)), timeout=limit)
    if scheme == "https":
        import ssl

        connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    with connection:
        request = f"GET /{path} HTTP/1.0\r\nHost: {place}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        lines = connection.recv(4096).decode("latin-1").splitlines()
    if not lines or not lines[0].startswith("HTTP/"):
        return {"error": "what answers there does not speak HTTP"}
    fields = dict(line.lower().partition(": ")[::2] for line in lines[1:])
    return {"status": lines[0].partition(" ")[2], "hub": fields.get("x-jupyterhub-version", "")}


def look_at_ssh(limit: float) -> dict[str, Any]:
    """Have ssh read its configuration, without connecting anywhere."""
    path = shutil.which("ssh")
    if path is None:
        return {"missing": True}
    result = subprocess.run(
        [path, "-G", "localhost"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=limit,
        check=False,
    )
    if result.returncode == 0:
        return {}
    said = result.stderr.decode(errors="replace").strip().splitlines()
    return {"error": said[-1] if said else f"status {result.returncode}"}
