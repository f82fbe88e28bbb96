"""Logs in to a JupyterHub and uses it over HTTP, the way a browser does."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.cookiejar import CookieJar
from typing import Any, Iterator, Mapping


class HubError(Exception):
    """The hub answered something else than what a user expects at this point."""


@dataclass
class Answer:
    """An HTTP answer, redirects already followed."""

    status: int
    url: str
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.body)


class HubClient:
    """One person's browser: cookies, redirects, cross-site request tokens.

    `url` is the hub's public address. Every wait has a limit of `seconds`.
    """

    def __init__(self, url: str, seconds: float = 60) -> None:
        self.url = url.rstrip("/")
        self.seconds = seconds
        self.user = ""
        self.cookies = CookieJar()
        # A proxy named in the environment is for other machines.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies)
        )

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; statuses of 400 and above are answers too, not exceptions."""
        with self._open(method, path, body, headers) as reply:
            return Answer(reply.status, reply.url, reply.headers, reply.read())

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post_form(self, path: str, fields: Mapping[str, str]) -> Answer:
        form = {"_xsrf": self.token(path), **fields}
        return self.request("POST", path, urllib.parse.urlencode(form).encode())

    def api(self, method: str, path: str, data: Any = None) -> Answer:
        """A request to a REST API: the hub's or a single-user server's."""
        body = None if data is None else json.dumps(data).encode()
        headers = {"X-XSRFToken": self.token(path), "Content-Type": "application/json"}
        return self.request(method, path, body, headers)

    def token(self, path: str) -> str:
        """The cross-site request token for this path: the cookie with the longest path wins."""
        found = [c for c in self.cookies if c.name == "_xsrf" and path.startswith(c.path)]
        best = max(found, key=lambda cookie: len(cookie.path), default=None)
        return (best and best.value) or ""

    def cookie_header(self, path: str) -> str:
        """The `Cookie` header a browser would send there, for a WebSocket."""
        request = urllib.request.Request(self.url + path)
        self.cookies.add_cookie_header(request)
        return request.get_header("Cookie") or ""

    def login(self, user: str, password: str) -> None:
        """Log in at the hub's own form."""
        self.get("/hub/login")
        answer = self.post_form("/hub/login", {"username": user, "password": password})
        if answer.status != 200 or "/hub/login" in answer.url:
            raise HubError(f"login as {user} failed: {answer.status} at {answer.url}")
        self.user = user

    def spawn(self, options: Mapping[str, Any]) -> None:
        """Start the user's server with these options and wait until the hub says it is ready."""
        answer = self.api("POST", f"/hub/api/users/{self.user}/server", dict(options))
        if answer.status not in (201, 202):
            raise HubError(f"the server cannot be started: {answer.status} {answer.text}")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Follow the start of the server; raises `HubError` with the hub's words if it fails."""
        for event in self.progress():
            if event.get("failed"):
                raise HubError(str(event.get("message")))
            if event.get("ready"):
                # The first page exchanges the hub's cookie for one of the server's own.
                self.get(f"/user/{self.user}/files/")
                return
        raise HubError("the hub stopped reporting before the server was ready")

    def progress(self) -> Iterator[dict[str, Any]]:
        """The events of the hub's progress page, as they come."""
        with self._open("GET", f"/hub/api/users/{self.user}/server/progress") as stream:
            for line in stream:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

    def stop(self) -> None:
        """Stop the server, ready or still starting, and wait until the hub says that it is gone."""
        answer = self.api("DELETE", f"/hub/api/users/{self.user}/server")
        if answer.status not in (202, 204, 400, 404):  # 400: there is none
            raise HubError(f"the server cannot be stopped: {answer.status} {answer.text}")
        deadline = time.monotonic() + self.seconds
        while self.is_known():
            if time.monotonic() > deadline:
                raise HubError("the hub does not stop the server")
            time.sleep(0.1)

    def is_known(self) -> bool:
        """Whether the hub knows of a server of the user's that starts, runs or stops."""
        user = self.get(f"/hub/api/users/{self.user}").json()
        return bool(user["server"] or user["pending"] or user["servers"])

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        headers = {**self._from_a_page(path), **(headers or {})}
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        try:
            return self._opener.open(request, timeout=self.seconds)
        except urllib.error.HTTPError as error:
            return error

    def _from_a_page(self, path: str) -> dict[str, str]:
        """The hub's API answers to its own pages only: before JupyterHub 4 by where a request
        comes from, since then by the token, in 4.0 for a mere GET as well."""
        if not path.startswith("/hub/api/"):
            return {}
        return {"Referer": f"{self.url}/hub/home", "X-XSRFToken": self.token(path)}
