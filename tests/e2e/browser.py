"""A headless Chromium, driven by Debian's chromedriver in the words of W3C's WebDriver."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Iterator

from helpers import SYSTEM_PATH, end, free_port, wait_until

PAGE_SECONDS = 60
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver, "Elements"
SHIFT_ENTER = "\ue008\ue007\ue008"  # WebDriver, "Keyboard actions": a second SHIFT lets it go
ENTER = "\ue007"
NO_SUCH = ("no such element", "stale element reference")
NOT_YET = (*NO_SUCH, "element click intercepted", "element not interactable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--no-proxy-server --window-size=1200,760"
)


class WebDriverError(Exception):
    """The browser's answer to what it could not do; the first word of it is in `kind`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Browser:
    """One window of Chromium, or the newest that its pages have opened."""

    def __init__(self, driver_url: str, profile: Path) -> None:
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._url = f"{driver_url}/session"
        options = {"args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        session = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/{session['sessionId']}"

    def _ask(self, method: str, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self._url + path, data=body, method=method)
        try:
            with self._opener.open(request, timeout=PAGE_SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            raise WebDriverError(value["error"], value["message"].splitlines()[0]) from None

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return str(self._ask("GET", "/url"))

    def find(self, css: str) -> str:
        """The first element that matches; raises `WebDriverError` if there is none."""
        found = self._ask("POST", "/element", {"using": "css selector", "value": css})
        return str(found[ELEMENT])

    def text(self, css: str = "body") -> str:
        """What a person reads there; "" if there is no such element."""
        try:
            return str(self._ask("GET", f"/element/{self.find(css)}/text"))
        except WebDriverError as error:
            if error.kind in NO_SUCH:
                return ""
            raise

    def log_in(self, hub: str, account: str, password: str) -> None:
        """Fill in the form of the hub of this URL."""
        self.open(f"{hub}/hub/login")
        self.type("#username_input", account)
        self.type("#password_input", password + ENTER)
        wait_until(lambda: "/hub/login" not in self.url, PAGE_SECONDS, "a login")

    def click(self, css: str) -> None:
        """Click there as soon as that can be done."""
        self._when_possible(css, "click", {})

    def type(self, css: str, keys: str) -> None:
        """Type there as soon as that can be done."""
        self._when_possible(css, "value", {"text": keys})

    def _when_possible(self, css: str, what: str, data: dict[str, str]) -> None:
        def done() -> bool:
            try:
                self._ask("POST", f"/element/{self.find(css)}/{what}", data)
            except WebDriverError as error:
                if error.kind in NOT_YET:
                    return False
                raise
            return True

        wait_until(done, PAGE_SECONDS, f"{what} at {css}")

    def wait_for(self, words: str, css: str = "body") -> None:
        """Wait until these words stand there."""
        try:
            wait_until(lambda: words in self.text(css), PAGE_SECONDS)
        except AssertionError:
            raise AssertionError(f"no {words!r} at {self.url}:\n{self.text()}") from None

    def use_newest_window(self, windows: int) -> None:
        """Wait until there are so many windows and go on in the newest."""
        wait_until(lambda: len(self._windows()) == windows, PAGE_SECONDS, f"{windows} windows")
        self._ask("POST", "/window", {"handle": self._windows()[-1]})

    def use_first_window(self) -> None:
        self._ask("POST", "/window", {"handle": self._windows()[0]})

    def _windows(self) -> list[str]:
        return list(self._ask("GET", "/window/handles"))

    def frame(self, css: str | None) -> None:
        """Go on inside this frame; None: in the page itself again."""
        found = None if css is None else {ELEMENT: self.find(css)}
        self._ask("POST", "/frame", {"id": found})

    def run(self, script: str) -> Any:
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def screenshot(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def close(self) -> None:
        self._ask("DELETE", "")


@contextlib.contextmanager
def chromium(directory: Path) -> Iterator[Browser]:
    """A browser that keeps everything in this directory."""
    port = free_port()
    with open(directory / "driver.log", "wb") as log:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            env={"PATH": SYSTEM_PATH, "HOME": str(directory), "TMPDIR": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        said = directory / "driver.log"
        wait_until(lambda: b"started successfully" in said.read_bytes(), 20, "chromedriver")
        browser = Browser(f"http://127.0.0.1:{port}", directory / "profile")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(10)
        end(driver)
