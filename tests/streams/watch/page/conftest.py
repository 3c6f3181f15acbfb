"""A browser, a server of sample documents, and pages that report what went wrong in them."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.streams.watch.page.fake_watch import FakeWatch

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-precise-memory-info",
]


@dataclass
class Opened:
    """A page with everything that a sound one does not have."""

    page: "sync_api.Page"
    base: str
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, violations of the content security policy, uncaught exceptions."""
    foreign: list[str] = field(default_factory=list)
    """Requests to anything but the server of the page."""
    may_complain: bool = False

    def go(self, fragment: str) -> "sync_api.Page":
        """Open a route and wait for its view."""
        self.page.goto(f"{self.base}{fragment}")
        self.page.wait_for_selector("main h1:not(:text('Loading'))", state="attached")
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    if BROWSER is None or shutil.which(BROWSER) is None:
        pytest.skip("no chromium: install it, or name it by CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[FakeWatch]:
    with FakeWatch() as server:
        yield server


@pytest.fixture
def server(running_server: FakeWatch) -> FakeWatch:
    """A server that serves the sample documents."""
    running_server.reset()
    return running_server


@pytest.fixture
def base_url(server: FakeWatch) -> str:
    """The address of the page."""
    return server.url


def wait_until(page: "sync_api.Page", condition: str | Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until an expression is true in the page, or a function here returns true.

    The page's security policy forbids Playwright's own way.
    """
    is_true = condition if callable(condition) else lambda: page.evaluate(condition)
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"not true within {timeout_s} s: {condition}"
        page.wait_for_timeout(20)


Opener = Callable[..., Opened]


@pytest.fixture(scope="module")
def tab(browser: "sync_api.Browser") -> Iterator["sync_api.Page"]:
    """One tab for all tests of a module: a new one for each takes longer than most tests."""
    context = browser.new_context()
    context.set_default_timeout(10_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def open_page(tab: "sync_api.Page", base_url: str) -> Iterator[Opener]:
    """Return a function that opens the page; after the test, it must not have complained or left the machine."""
    one = Opened(tab, base_url)
    listeners: dict[str, Callable[[Any], object]] = {
        "console": lambda line: line.type in {"error", "warning"} and one.complaints.append(line.text),
        "pageerror": lambda error: one.complaints.append(str(error)),
        "request": lambda request: request.url.startswith((base_url, "data:")) or one.foreign.append(request.url),
    }
    tab.goto("about:blank")
    for event, listener in listeners.items():
        tab.on(event, listener)

    def make(*, width: int = 1280, theme: str = "light", may_complain: bool = False) -> Opened:
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=theme)
        one.may_complain = may_complain
        return one

    yield make
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert one.foreign == []
    assert one.may_complain or one.complaints == []
