"""A browser, a server of sample documents, and pages that report what went wrong in them."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.fake_watch import FakeWatch

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


def wait_until(page: "sync_api.Page", expression: str, timeout_s: float = 10.0) -> None:
    """Wait until an expression is true in the page; the page's security policy forbids Playwright's own way."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not true within {timeout_s} s: {expression}"
        page.wait_for_timeout(20)


Opener = Callable[..., Opened]


@pytest.fixture
def open_page(browser: "sync_api.Browser", base_url: str) -> Iterator[Opener]:
    """Return a function that opens a page; after the test, no page may have complained or left the machine."""
    opened: list[Opened] = []

    def make(*, expect_failures: bool = False, **options: object) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(10_000)
        one = Opened(context.new_page(), base_url)
        one.page.on("console", lambda line: line.type in {"error", "warning"} and one.complaints.append(line.text))
        one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.page.on("request", lambda request: _note(one, request.url))
        if not expect_failures:
            opened.append(one)
        return one

    yield make
    for one in opened:
        assert one.complaints == []
        assert one.foreign == []
        one.page.context.close()


def _note(one: Opened, url: str) -> None:
    if not url.startswith((one.base, "data:")):
        one.foreign.append(url)
