"""The page in use: keyboard, filter and sort, streams, the time of a recording, hostile texts."""

from typing import Any

import pytest

from tests.streams.watch.page import documents
from tests.streams.watch.page.conftest import Opener, wait_until
from tests.streams.watch.page.documents import HOSTILE, START_MS
from tests.streams.watch.page.fake_watch import FakeWatch

FIRST_CELLS = "[...document.querySelectorAll('.grid tbody tr:not(.gap) .c-run a')].map((a) => a.textContent)"


def recording(view: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a document as it comes from a recording of an hour."""
    return {**view, "source": documents.source(kind="recording", name="trial", live=False, **fields)}


def test_runs_are_filtered_by_text_and_state(open_page: Opener) -> None:
    page = open_page().go("#/")
    table = page.get_by_role("grid", name="Runs")
    assert table.get_attribute("aria-rowcount") == "61"
    page.get_by_role("searchbox").fill("mnist1d run-000")
    assert page.evaluate(FIRST_CELLS) == ["run-0001", "run-0007", "run-0004"]
    page.get_by_role("button", name="finished").click()
    assert page.evaluate(FIRST_CELLS) == ["run-0004"]
    page.get_by_role("searchbox").fill("nothing like it")
    assert "No run matches" in page.locator("main").inner_text()


def test_runs_are_sorted_by_each_column(open_page: Opener) -> None:
    page = open_page().go("#/")
    heading = page.get_by_role("columnheader", name="Run", exact=True)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    ascending = page.evaluate(FIRST_CELLS)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert ascending[0] == "run-0000"
    assert page.evaluate(FIRST_CELLS)[0] == "run-0059"
    for name in ("State", "Task", "Step", "Loss", "Parameters", "Adapted", "Vetoed", "Reward", "Worth", "Newest"):
        page.get_by_role("columnheader", name=name).get_by_role("button").click()
        assert page.locator("th[aria-sort=ascending], th[aria-sort=descending]").inner_text().startswith(name)


def test_the_keyboard_walks_from_the_fleet_to_a_decision_and_back(open_page: Opener) -> None:
    page = open_page().go("#/")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.keyboard.type("digits")
    page.keyboard.press("ArrowDown")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    active = page.locator(".grid tr[aria-selected=true]")
    run = active.locator(".c-run").inner_text()
    assert run == "run-0006"
    assert page.evaluate("document.activeElement.getAttribute('aria-activedescendant')") == active.get_attribute("id")
    page.keyboard.press("Enter")
    page.wait_for_selector(".marker")
    assert page.locator("h1").inner_text().strip() == run
    assert page.title() == "run-0006 · Tamiyo"
    page.locator(".marker").first.focus()
    assert "load" in page.locator(".tip").inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector(".sentence")
    page.keyboard.press("Escape")
    page.wait_for_selector(".marker")
    page.keyboard.press("Escape")
    page.wait_for_selector(".fleet")
    assert page.get_by_role("searchbox").input_value() == "digits"
    assert page.locator(".grid tr[aria-selected=true] .c-run").inner_text() == run
    page.keyboard.press("End")
    assert page.locator(".grid tr[aria-selected=true]").get_attribute("aria-rowindex") == "21"


def test_the_skip_link_leads_to_the_content(open_page: Opener) -> None:
    page = open_page().go("#/policy")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.evaluate("location.hash") == "#/policy"


def test_cells_of_the_heat_map_are_read_by_keyboard(open_page: Opener) -> None:
    page = open_page().go("#/run/run-0001")
    page.locator(".heat canvas").focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    assert page.locator(".heat output").inner_text().startswith("step 965 · conv2 · health")


def test_a_thousand_runs_need_few_rows(server: FakeWatch, open_page: Opener) -> None:
    server.documents["fleet"] = lambda params: documents.fleet(1000)
    page = open_page().go("#/")
    rows = page.locator(".grid tbody tr:not(.gap)")
    assert rows.count() < 60
    page.evaluate("document.querySelector('.grid-box').scrollTop = 1e6")
    wait_until(page, "[...document.querySelectorAll('.grid tbody tr')].some((r) => r.ariaRowIndex === '1001')")
    assert rows.count() < 60


def test_partial_documents_are_merged(server: FakeWatch, open_page: Opener) -> None:
    page = open_page().go("#/")
    changed = documents.row(1, step=4242, state="training")
    server.send(documents.document("fleet", 2, whole=False, runs=[changed, documents.row(77)], removed=["run-0000"]))
    wait_until(page, "document.body.innerText.includes('4,242')")
    names = page.evaluate(FIRST_CELLS)
    assert "run-0000" not in names
    assert "run-0001" in names
    assert page.get_by_role("grid", name="Runs").get_attribute("aria-rowcount") == "61"


def test_series_and_decisions_of_a_run_grow(server: FakeWatch, open_page: Opener) -> None:
    page = open_page().go("#/run/run-0001")
    later = documents.run("run-0001", steps=1010)
    series = {name: (values[-2:] if name != "replace" else False) for name, values in later["series"].items()}
    made = documents.decision_row(
        40, status="executed", step=1005, outcome_step=1006, decision_id="new", proposed={"type": "load_kernel"}
    )
    partial = {
        "series": series,
        "decisions": [{**made, "type": "load_kernel", "layer_id": "conv2", "blueprint": "low_rank"}],
        "projections": [],
        "topology": None,
        "layers": None,
        "heat": None,
        "kernels": [],
        "errors": [],
    }
    server.send(documents.document("run", 2, whole=False, run={**later["run"], "state": "finished"}, **partial))
    page.wait_for_selector(".facts .state:has-text('finished')")
    wait_until(page, "document.querySelectorAll('.marker').length === 9")
    assert page.locator(".chart").first.get_attribute("aria-label").startswith("Loss by step. At step 1,010")
    assert page.locator(".lane").count() == 4
    assert page.locator(".network canvas").count() > 0


def test_the_page_connects_again_after_the_server_was_away(server: FakeWatch, open_page: Opener) -> None:
    opened = open_page(may_complain=True)  # The browser reports each refused connection on the console.
    page = opened.go("#/")
    server.stop_serving()
    page.wait_for_selector(".banner:has-text('connection to the server is lost')")
    assert page.locator("footer [role=status]").inner_text() == "connection lost"
    assert page.get_by_role("grid", name="Runs").is_visible()
    server.documents["fleet"] = lambda params: documents.fleet(3)
    server.start_serving()
    page.wait_for_selector(".grid[aria-rowcount='4']")
    assert page.locator(".banner").count() == 0


def test_a_problem_of_the_source_is_a_banner(server: FakeWatch, open_page: Opener) -> None:
    page = open_page().go("#/")
    problem = documents.source(problem="the broker does not respond since 12:00:01")
    server.send({**documents.document("fleet", 2, whole=False, runs=[], removed=[]), "source": problem})
    page.wait_for_selector(".banner:has-text('the broker does not respond since 12:00:01')")
    server.send(documents.document("fleet", 3, whole=False, runs=[], removed=[]))
    page.wait_for_selector(".banner", state="detached")


def test_reading_shows_its_progress(server: FakeWatch, open_page: Opener) -> None:
    server.documents["fleet"] = lambda params: recording(documents.fleet(), reading=True, records=500, total=2000)
    page = open_page().go("#/")
    assert "reading 500 of 2,000 records" in page.locator("footer").inner_text()
    assert page.locator("footer progress").get_attribute("value") == "0.25"


def test_the_slider_shows_the_past_of_a_recording(server: FakeWatch, open_page: Opener) -> None:
    asked: list[int] = []

    def past(params: dict[str, str]) -> dict[str, Any]:
        if "at" not in params:
            return recording(documents.fleet(9))
        asked.append(int(params["at"]))
        hours = (asked[-1] - START_MS) / 3_600_000
        return recording({**documents.fleet(1 + round(8 * hours)), "revision": 1})

    server.documents["fleet"] = past
    page = open_page().go("#/")
    slider = page.get_by_role("slider", name="Time")
    assert slider.input_value() == str(START_MS + 3_600_000)
    slider.fill(str(START_MS + 1_800_000))
    page.wait_for_selector(".grid[aria-rowcount='6']")
    assert asked[-1] == START_MS + 1_800_000
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_selector(".grid[aria-rowcount='2']")
    page.get_by_role("combobox", name="Speed").select_option("fit")
    page.get_by_role("button", name="Play").click()
    wait_until(page, "document.querySelector('.timeline input').value > 1790000030000")
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="to the end").click()
    page.wait_for_selector(".grid[aria-rowcount='10']")
    assert len(asked) >= 3


def test_the_past_stays_while_views_change(server: FakeWatch, open_page: Opener) -> None:
    asked: list[dict[str, str]] = []

    def past(params: dict[str, str]) -> dict[str, Any]:
        asked.append(params)
        return recording(documents.run(params["run"], steps=int(params.get("step", 1000))))

    server.documents["fleet"] = lambda params: recording(documents.fleet(9))
    server.documents["run"] = past
    page = open_page().go("#/")
    page.get_by_role("slider", name="Time").fill(str(START_MS + 36_000))
    page.evaluate("location.hash = '#/run/run-0001'")
    page.wait_for_selector(".marker")
    assert asked == [{"run": "run-0001", "at": str(START_MS + 36_000)}]


def hostile(value: Any, key: str = "") -> Any:
    """Return a document whose free texts are hostile."""
    kept = {"view", "state", "status", "type", "kind", "severity", "component"}
    if isinstance(value, dict):
        return {name: hostile(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [hostile(each, key) for each in value]
    return HOSTILE + value if isinstance(value, str) and key not in kept else value


@pytest.mark.parametrize("view", ["fleet", "run", "decision", "policy", "installation"])
def test_hostile_texts_stay_texts(server: FakeWatch, open_page: Opener, view: str) -> None:
    make = server.documents[view]
    server.documents[view] = lambda params: hostile(make(params))
    run = "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E%2F..%2F%E2%80%AE"
    route = {"fleet": "#/", "run": f"#/run/{run}", "decision": f"#/run/{run}/decision/{run}"}.get(view, f"#/{view}")
    page = open_page().go(route)
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.locator("main").inner_text().count("<img")
        assert page.evaluate("window.hacked") is None
        assert not set("\u202e\u2066\u200f") & set(page.locator("main").inner_text())
        assert page.locator("main img").count() == 0
        wide = "[...document.querySelectorAll('body, main')].map((e) => e.scrollWidth - e.clientWidth)"
        assert page.evaluate(wide) == [0, 0]


def test_a_link_with_a_hostile_id_asks_for_that_run(server: FakeWatch, open_page: Opener) -> None:
    asked: list[str] = []

    def run(params: dict[str, str]) -> dict[str, Any]:
        asked.append(params["run"])
        return documents.run(params["run"])

    name = "a/b?c&d=e#f%20 ü<b>"
    server.documents["run"] = run
    server.documents["fleet"] = lambda params: documents.document(
        "fleet", runs=[documents.row(0, run_id=name)], removed=[]
    )
    page = open_page().go("#/")
    page.locator(".c-run a").click()
    page.wait_for_selector(".marker")
    assert asked == [name]
    page.locator(".marker").first.click()
    page.wait_for_selector(".sentence")
    assert page.locator(".crumbs").inner_text().endswith(name)


def test_the_theme_is_kept(open_page: Opener) -> None:
    page = open_page().go("#/policy")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Theme: system").click()
    page.get_by_role("button", name="Theme: light").click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    page.wait_for_selector("main h1")
    assert page.evaluate(background) == dark
    page.evaluate("localStorage.clear()")


def test_streams_and_charts_end_with_their_view(server: FakeWatch, open_page: Opener) -> None:
    page = open_page().go("#/run/run-0001")
    for route, selector in (("#/policy", "figure"), ("#/run/run-0001", ".marker"), ("#/", ".fleet")):
        page.evaluate(f"location.hash = '{route}'")
        page.wait_for_selector(selector)
    wait_until(page, "!document.querySelector('.uplot, .network')")
    server.send(documents.document("run", 2, whole=False))
    wait_until(page, lambda: server.watchers("run") <= 1)


def test_the_files_of_the_page_have_no_inline_code(server: FakeWatch, open_page: Opener) -> None:
    opened = open_page()
    opened.go("#/run/run-0001")
    assert opened.page.locator("script:not([src])").count() == 0
    assert "style=" not in opened.page.request.get(server.url).text()
