"""A session's server: app.py [ADDRESS:]PORT [OTHER_PORT]. On the other port, as the programs that a
server starts, it answers everybody, too. It shuts down cleanly at SIGTERM, and says so."""

from __future__ import annotations

import http.server
import os
import signal
import sys
import threading
import urllib.parse
import urllib.request
from types import FrameType


class Page(http.server.BaseHTTPRequestHandler):
    """fetch/URL is that page, as this server gets it; run/COMMAND what a shell prints; end/STATUS
    ends the server; fill takes ever more memory; all else tells who serves."""

    def do_GET(self) -> None:
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "/")
        path = self.path[len(prefix) :] if self.path.startswith(prefix) else self.path[1:]
        kind, _, argument = path.partition("/")
        try:
            text = self.text(kind, argument)
        except OSError as error:
            text = f"failed: {error}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def text(self, kind: str, argument: str) -> str:
        if kind == "fetch":
            return str(urllib.request.urlopen(argument, timeout=30).read().decode())
        if kind == "run":
            return os.popen(urllib.parse.unquote(argument) + " 2>&1").read()
        if kind == "end":
            threading.Timer(0.1, end, [int(argument)]).start()
        if kind == "fill":
            threading.Timer(0.1, fill).start()
        return f"served by {os.getuid()}"

    def log_message(self, *_: object) -> None:
        pass


def end(status: int) -> None:
    print("shut down", flush=True)
    os._exit(status)


def fill() -> None:
    held = []
    while True:
        held.append(b"." * (1 << 20))


def handle(_number: int, _frame: FrameType | None) -> None:
    end(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, handle)
    for word in sys.argv[1:]:  # "url" stands for the port that the hub has chosen
        chosen = urllib.parse.urlsplit(os.environ.get("JUPYTERHUB_SERVICE_URL", "")).port
        address, _, number = word.rpartition(":")
        place = (address or "127.0.0.1", int(chosen or 0) if number == "url" else int(number))
        server = http.server.ThreadingHTTPServer(place, Page)
        threading.Thread(target=server.serve_forever).start()
    while True:
        signal.pause()
