"""The page on the real server and a real recording: every view, the slider, and reading while it is shown."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tamiyo.streams.watch import views
from tamiyo.streams.watch.feeds import RecordingFeed
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.server import WatchServer
from tests.streams.watch.page.conftest import Opener, wait_until

RECORDING = Path(__file__).parents[3] / "data" / "recording-0.1.0"


@pytest.fixture(scope="module")
def history() -> History:
    """The history of the recording, which a test's server may share."""
    read = History()
    with RecordingFeed(read, RECORDING) as feed:
        assert feed.wait_until_read(30)
    return read


@pytest.fixture
def base_url(history: History) -> Iterator[str]:
    """The address of the real server."""
    with WatchServer(history, port=0) as server:
        yield server.url


def test_every_view_of_a_recording_is_shown(history: History, open_page: Opener) -> None:
    opened = open_page()
    for row in views.fleet(history)["runs"]:
        run = row["run_id"]
        page = opened.go(f"#/run/{run}")
        assert page.locator("h1").inner_text().strip() == run
        shown = page.locator(".panel h2").all_inner_texts()
        assert {"Loss", "Layers", "Layers by steps", "Kernels", "Decisions"} <= set(shown)
        for decision in views.run(history, run)["decisions"][:2]:
            page = opened.go(f"#/run/{run}/decision/{decision['decision_id']}")
            assert "Decision at step" in page.locator("h1").inner_text()
            assert page.locator(".bars li").count() > 0
            assert page.locator(".masked").evaluate("(list) => list.textContent").startswith(("the ", "an ", "what "))
    for view, title in (("policy", "Policy"), ("installation", "Installation")):
        assert title in opened.go(f"#/{view}").locator("h1").inner_text()
    assert opened.page.locator(".plain th[scope=row]", has_text="tamiyo.adaptation.decisions").count() == 1


def test_the_fleet_has_the_runs_of_the_recording(history: History, open_page: Opener) -> None:
    page = open_page().go("#/")
    runs = [row["run_id"] for row in views.fleet(history)["runs"]]
    shown = page.locator(".c-run a").all_inner_texts()
    assert sorted(shown) == sorted(runs)


def test_the_slider_leads_to_the_beginning(history: History, open_page: Opener) -> None:
    page = open_page().go("#/")
    page.get_by_role("slider", name="Time").focus()
    page.keyboard.press("Home")
    runs = views.fleet(history, at_ms=history.source.from_ms)["runs"]
    wait_until(page, f"document.querySelectorAll('.c-run a').length === {len(runs)}")
    page.keyboard.press("End")
    everything = len(views.fleet(history)["runs"])
    wait_until(page, f"document.querySelectorAll('.c-run a').length === {everything}")


def test_an_unknown_run_is_not_found(open_page: Opener) -> None:
    page = open_page(may_complain=True).go("#/run/nowhere")
    assert "there is no run 'nowhere'" in page.locator("main").inner_text()
    page.get_by_role("link", name="All runs").click()
    page.wait_for_selector(".fleet")


class TestWhileReading:
    """A page that is open before the first record."""

    @pytest.fixture
    def history(self) -> History:
        return History()

    def test_runs_appear_as_they_are_read(self, history: History, open_page: Opener) -> None:
        page = open_page().go("#/")
        assert page.locator(".empty h2").inner_text() == "Reading records"
        with RecordingFeed(history, RECORDING) as feed:
            assert feed.wait_until_read(30)
            page.wait_for_selector(".timeline")
            wait_until(page, f"document.querySelectorAll('.c-run a').length === {len(history.runs)}")
