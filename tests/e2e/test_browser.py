"""What a person sees: a browser, JupyterHub's pages, JupyterLab, a terminal, an application.

With PORTWRAP_SCREENSHOT=FILE the window at the end is kept as a picture: the README's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest
from e2e.browser import ENTER, SHIFT_ENTER, Browser, chromium
from e2e.hub import Hub, start_hub

from conftest import TEST_ROOT, why_namespaces_fail
from helpers import OWNER, cannot, needs, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(400)]

# JupyterLab asks whether it may fetch news.
NO_NEWS = "[...document.querySelectorAll('button')].find(b => b.textContent == 'No')?.click()"

CELL = """\
import os
from IPython.display import IFrame
print("my server's process:", os.getppid(), os.readlink("/proc/self/ns/net"))
IFrame("/user/{owner}/notes/", 700, 230)"""


@pytest.fixture
def hub(pyz: Path) -> Iterator[Hub]:
    """A hub of its own, whose servers have JupyterLab."""
    needs("chromium", "chromedriver")
    reason = why_namespaces_fail()
    if not reason and not (TEST_ROOT / "hub-venv" / ".complete-lab").exists():
        reason = "no JupyterLab; tests/setup.sh matrix installs it"
    if reason:
        cannot(reason)
    yield from start_hub(TEST_ROOT, pyz, "--name", "browser")


def test_a_person_works_in_a_browser(hub: Hub, world_dir: Path) -> None:
    with chromium(world_dir) as browser:
        try:
            log_in_and_start(browser, hub)
            runs_a_cell(browser, hub)
            opens_an_application(browser)
            types_in_a_terminal(browser, hub)
        except BaseException:
            keep_picture(browser, os.environ.get("PORTWRAP_FAILURE_SCREENSHOT"))
            raise
        finally:
            if hub.jobs():
                hub.stop()


def log_in_and_start(browser: Browser, hub: Hub) -> None:
    browser.open(f"{hub.facts.url}/hub/")
    browser.type("#username_input", hub.facts.owner)
    browser.type("#password_input", hub.facts.password + ENTER)
    browser.wait_for("in a sandbox")
    browser.click("#spawn_form [type=submit]")
    # The page that waits for the start goes on to JupyterLab by itself.
    wait_until(lambda: f"/user/{OWNER}/lab" in browser.url, 90, "JupyterLab's address")
    browser.wait_for("Launcher", "#jp-main-dock-panel")


def runs_a_cell(browser: Browser, hub: Hub) -> None:
    browser.click('.jp-LauncherCard[data-category="Notebook"]')
    browser.wait_for("Idle", "#jp-main-statusbar")
    browser.run(NO_NEWS)
    browser.type(".jp-Notebook .cm-content", CELL.format(owner=OWNER) + SHIFT_ENTER)
    of_the_session = os.readlink(f"/proc/{hub.job_pid()}/ns/net")
    assert of_the_session != os.readlink("/proc/self/ns/net")
    browser.wait_for(of_the_session, ".jp-OutputArea")
    browser.frame(".jp-OutputArea iframe")
    browser.wait_for("my secret is")
    browser.frame(None)
    keep_picture(browser, os.environ.get("PORTWRAP_SCREENSHOT"))


def opens_an_application(browser: Browser) -> None:
    browser.run(
        "document.querySelector('.jp-FileBrowser [data-command=\"launcher:create\"]').click()"
    )
    browser.click('.jp-Launcher:not(.lm-mod-hidden) .jp-LauncherCard[title^="My notes"]')
    browser.use_newest_window(2)
    browser.wait_for("my secret is")
    browser.type("input[name=note]", "written in a browser" + ENTER)
    browser.wait_for("written in a browser", "pre")
    browser.use_first_window()


def types_in_a_terminal(browser: Browser, hub: Hub) -> None:
    browser.click('.jp-LauncherCard[data-category="Other"][title*="terminal"]')
    written = hub.run / "home" / OWNER / "from-the-terminal"
    browser.type(".jp-Terminal textarea", "readlink /proc/self/ns/net >from-the-terminal" + ENTER)
    wait_until(lambda: written.exists() and written.read_text(), 30, "the terminal's file")
    assert written.read_text().strip() == os.readlink(f"/proc/{hub.job_pid()}/ns/net")


def keep_picture(browser: Browser, name: str | None) -> None:
    if name:
        Path(name).write_bytes(browser.screenshot())
