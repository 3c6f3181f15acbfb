"""The page of `tamiyo demo --watch`: real topics, a real training run, a browser. It takes the guide's pictures."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.streams.watch.page.conftest import Opener, wait_until

pytestmark = [pytest.mark.flow, pytest.mark.timeout(300)]

PICTURES = os.environ.get("GUIDE_PICTURES")
"""Folder for the guide's pictures: docs/images to make them anew. None are made without it."""
RUN = "#/run/mnist1d-0"


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page of a demo whose run has ended."""
    log = tmp_path_factory.mktemp("demo") / "demo.log"
    command = [sys.executable, "-m", "tamiyo.streams.cli", "demo", "--quick", "--watch", "--port", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "200"}
        )
    try:
        deadline = time.monotonic() + 200
        while "until Ctrl-C" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        found = re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())
        assert found is not None
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def picture(opened: Opener, route: str, name: str, ready: str) -> None:
    """Open a route, wait for what it must show, and take a picture of it if a folder for them is given."""
    page = opened().go(route)
    wait_until(page, ready)
    if PICTURES:
        if name != "fleet":
            height = page.evaluate("document.querySelector('main').scrollHeight + 150")
            page.set_viewport_size({"width": 1280, "height": min(1_600, height)})
        page.wait_for_timeout(500)
        page.screenshot(path=Path(PICTURES) / f"watch-{name}.png")


def test_the_run_and_a_decision_of_the_demo_are_shown(open_page: Opener) -> None:
    picture(open_page, "#/", "fleet", "document.querySelector('tbody')?.innerText.includes('finished')")
    picture(open_page, RUN, "run", "document.querySelectorAll('.marker').length > 0")
    page = open_page().go(RUN)
    page.get_by_role("grid", name="Decisions").locator("a").first.wait_for()
    links = page.get_by_role("grid", name="Decisions").locator("a[href*='/decision/']")
    route = str(links.last.get_attribute("href"))
    picture(open_page, route, "decision", "document.querySelectorAll('.bars li').length > 0")
