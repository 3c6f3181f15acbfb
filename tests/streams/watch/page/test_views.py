"""Every view shows its documents: without errors, accessibly, at every width and in both themes."""

import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.streams.watch.page import documents
from tests.streams.watch.page.conftest import Opener, wait_until
from tests.streams.watch.page.fake_watch import FakeWatch

VIEWS = {
    "fleet": "#/",
    "run": "#/run/run-0001",
    "decision": "#/run/run-0001/decision/d-10",
    "policy": "#/policy",
    "installation": "#/installation",
}
THEMES = ("light", "dark")
WIDTHS = (360, 1280, 1920)
SCREENSHOTS = os.environ.get("PAGE_PICTURES")
"""Folder to put a picture of each view into; none are made without it."""


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible(server: FakeWatch, open_page: Opener, view: str) -> None:
    server.documents["fleet"] = lambda params: documents.fleet(12)  # Each row has the same structure, and costs time.
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe checks accessibility").Axe()
    page = open_page().go(VIEWS[view])
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        violations = axe.run(page).response["violations"]
        grave = [
            (each["id"], each["help"], [node["html"][:200] for node in each["nodes"]][:3])
            for each in violations
            if each["impact"] in {"serious", "critical"}
        ]
        assert grave == []


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_the_window(open_page: Opener, view: str) -> None:
    page = open_page().go(VIEWS[view])
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        wait_until(page, f"window.innerWidth === {width}")
        wait_until(page, "[...document.querySelectorAll('body, main')].every((e) => e.scrollWidth === e.clientWidth)")


@pytest.mark.skipif(SCREENSHOTS is None, reason="PAGE_PICTURES names no folder for pictures")
@pytest.mark.timeout(300)
def test_pictures_are_taken(open_page: Opener) -> None:
    folder = Path(str(SCREENSHOTS))
    folder.mkdir(parents=True, exist_ok=True)
    for theme, width in product(THEMES, WIDTHS):
        opened = open_page(theme=theme)
        for view, route in VIEWS.items():
            opened.page.set_viewport_size({"width": width, "height": 900})
            page = opened.go(route)
            height = page.evaluate("document.querySelector('main').scrollHeight + 150")
            if view != "fleet":
                page.set_viewport_size({"width": width, "height": min(4000, max(900, height))})
            page.wait_for_timeout(300)
            page.screenshot(path=folder / f"{view}-{width}-{theme}.png")


def test_a_run_shows_its_summary_curves_layers_kernels_and_decisions(open_page: Opener) -> None:
    page = open_page().go(VIEWS["run"])
    assert page.locator("h1").inner_text().strip() == "run-0001"
    for title in ("Loss", "Layers", "Layers by steps", "Kernels", "Decisions", "Errors and recoveries"):
        assert page.get_by_role("heading", name=title, exact=True).is_visible()
    assert page.locator(".marker").count() == 8
    assert page.locator(".lane").count() == 4
    assert page.locator(".network canvas").count() > 0
    assert "Standing orders by ann: dry run, 1 layer protected" in page.locator(".orders").inner_text()
    page.get_by_text("Table of layers").click()
    assert page.get_by_role("region", name="Layers", exact=True).locator("tbody tr").count() == len(documents.LAYERS)


def test_the_loss_has_a_logarithmic_scale(open_page: Opener) -> None:
    page = open_page().go(VIEWS["run"])
    before = page.locator(".chart").first.screenshot()
    page.get_by_role("button", name="log scale").click()
    wait_until(page, lambda: page.locator(".chart").first.screenshot() != before)


def test_the_decision_table_has_adaptations_or_all(open_page: Opener) -> None:
    page = open_page().go(VIEWS["run"])
    table = page.get_by_role("grid", name="Decisions")
    assert table.get_attribute("aria-rowcount") == "9"
    page.get_by_role("button", name="only adaptations").click()
    assert table.get_attribute("aria-rowcount") == "41"


def test_a_decision_shows_probabilities_reward_and_revisions(open_page: Opener) -> None:
    page = open_page().go(VIEWS["decision"])
    assert "decided to load residual_mlp at head.norm with probability 50.0 %" in page.locator(".sentence").inner_text()
    assert page.locator(".bars .chosen").count() == 1
    assert "36 legal actions, 7 masked" in page.locator("main").inner_text()
    waterfall = page.get_by_role("region", name="Reward by component")
    assert waterfall.locator("tbody tr").count() == len(documents.WEIGHTS) + 2
    final = waterfall.locator(".total td.n").last.inner_text()
    page.get_by_role("button", name="Earlier revision").click()
    assert waterfall.locator(".total td.n").last.inner_text() != final
    assert "Preliminary" in page.locator("main").inner_text()
    assert "90 % interval +0.012 to +0.072" in page.locator(".worth").inner_text()


def test_a_veto_is_shown_with_its_reasons(server: FakeWatch, open_page: Opener) -> None:
    server.documents["decision"] = lambda params: documents.decision(15, params["run"], outcome=None, kernel=None)
    page = open_page().go(VIEWS["decision"])
    assert "vetoed by safety monitor, uncertainty" in page.locator(".sentence").inner_text()
    assert page.locator(".vetoes li").count() == 2
    assert "A veto stopped it" in page.locator("main").inner_text()


def test_an_old_decision_shows_what_is_kept(server: FakeWatch, open_page: Opener) -> None:
    def old(params: dict[str, str]) -> dict[str, Any]:
        whole = documents.decision(10, params["run"])
        unknown = dict.fromkeys(("actions", "layers", "kinds", "kernel", "actions_left_out"))
        return {**whole, **unknown, "decision": documents.decision_row(10), "details_kept": False}

    server.documents["decision"] = old
    page = open_page().go(VIEWS["decision"])
    assert "older than the page keeps in full" in page.locator(".note").inner_text()
    assert page.locator(".bars").count() == 0
    assert page.locator(".waterfall").count() == 1


def test_the_policy_shows_versions_gates_and_rewards(open_page: Opener) -> None:
    page = open_page().go(VIEWS["policy"])
    text = page.locator("main").inner_text()
    assert "learning is frozen (a release is under test)" in text
    assert "off policy \N{MULTIPLICATION SIGN} 2" in text
    assert "rolled back" in text
    assert page.locator("figure").count() == 7
    page.get_by_role("button", name="all 9 measurements").click()
    assert page.locator("figure").count() == 10


def test_a_single_version_is_in_the_middle(server: FakeWatch, open_page: Opener) -> None:
    server.documents["policy"] = lambda params: documents.policy(2)  # Of which the newest has no reward.
    page = open_page().go(VIEWS["policy"])
    assert page.get_by_role("img", name="Mean reward by version: version 1 +0.070").is_visible()
    assert "No update has been measured" not in page.locator("main").inner_text()


def test_the_installation_shows_stages_topics_and_dead_letters(open_page: Opener) -> None:
    page = open_page().go(VIEWS["installation"])
    text = page.locator("main").inner_text()
    for expected in ("the group has no members", "1 partition without a member", "expected a finite loss", "1.19 %"):
        assert expected in text


@pytest.mark.parametrize("view", VIEWS)
def test_unknown_values_are_shown_as_unknown(server: FakeWatch, open_page: Opener, view: str) -> None:
    def unknown(value: Any, key: str = "") -> Any:
        """Return the document with each number null, as the server makes those that are not finite."""
        if isinstance(value, dict):
            return {name: unknown(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [unknown(each, key) for each in value]
        kept = {"revision", "now_ms", "step", "version", "requested_step"}
        return value if isinstance(value, (str, bool)) or key in kept else None

    make = server.documents[view]
    server.documents[view] = lambda params: unknown(make(params))
    page = open_page().go(VIEWS[view])
    assert page.get_by_text("This view cannot be shown").count() == 0
    assert "NaN" not in page.locator("main").inner_text()
    assert "undefined" not in page.locator("main").inner_text()


def test_an_empty_installation_states_how_to_attach(server: FakeWatch, open_page: Opener) -> None:
    server.documents["fleet"] = lambda params: documents.fleet(0)
    page = open_page().go(VIEWS["fleet"])
    assert "No runs yet" in page.locator("main").inner_text()
    assert "handle = attach(model, optimizer" in page.locator("pre").inner_text()


def test_a_run_without_anything_but_its_name_is_shown(server: FakeWatch, open_page: Opener) -> None:
    def bare(params: dict[str, str]) -> dict[str, Any]:
        whole = documents.run(params["run"])
        empty = dict.fromkeys(("topology", "layers", "heat"))
        series = {name: ([] if name != "replace" else True) for name in whole["series"]}
        lists: dict[str, list[Any]] = {"decisions": [], "projections": [], "kernels": [], "errors": []}
        return {**whole, **empty, **lists, "series": series}

    server.documents["run"] = bare
    page = open_page().go(VIEWS["run"])
    assert "No step has been published so far." in page.locator("main").inner_text()
    assert "No decision has been published so far." in page.locator("main").inner_text()


def test_an_unknown_run_is_stated(server: FakeWatch, open_page: Opener) -> None:
    server.documents["run"] = lambda params: None
    opened = open_page(may_complain=True)  # The browser reports the status 404 on the console.
    page = opened.go("#/run/nowhere")
    assert "Run not found" in page.locator("main").inner_text()
    assert "no run nowhere" in page.locator("main").inner_text()
