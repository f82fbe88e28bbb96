#!/usr/bin/env python3
"""A web application as people write them: it shows the notes of whoever started it.

    notes_app.py PORT NOTES_FILE

Like RStudio, TensorBoard and most others behind jupyter-server-proxy it listens on TCP 127.0.0.1
and asks nobody for a password: it counts on Jupyter having asked already. The file is readable
for its owner only; that does not help, the application reads it for anyone who connects.
"""

from __future__ import annotations

import html
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

PAGE = """<!doctype html><meta charset="utf-8"><title>Notes</title>
<h1>My notes</h1>
<pre>{notes}</pre>
<form method="post"><input name="note" autofocus> <button>Add</button></form>
<p>This application listens on <code>127.0.0.1:{port}</code> and has no password.</p>
"""


class Notes(BaseHTTPRequestHandler):
    """One page: the notes, and a form that adds one."""

    file: Path

    def do_GET(self) -> None:
        notes = html.escape(self.file.read_text())
        page = PAGE.format(notes=notes, port=sys.argv[1])
        self._answer(200, page.encode())

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        note = parse_qs(self.rfile.read(length).decode()).get("note", [""])[0]
        with self.file.open("a") as notes:
            notes.write(f"{note}\n")
        self._answer(303, b"", Location="./")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until killed."""
    Notes.file = Path(sys.argv[2])
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Notes) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
