"""The views in the terminal: narrow and wide, hostile and empty."""

import io
import time
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tamiyo.streams.watch.terminal import (
    SORTS,
    Canvas,
    render_decision,
    render_fleet,
    render_run,
    selected,
    shown_decisions,
)
from tamiyo.streams.watch.terminal.run import trend
from tests.streams.watch.terminal import documents

WIDTHS = (40, 80, 120, 200)
HOSTILE = "\x1b]0;owned\x07\x1b[31m[/bold][red]\u202e\r\n"


def text(shown: RenderableType, width: int = 80, **options: Any) -> str:
    out = Console(file=io.StringIO(), width=width, **options)
    out.print(shown)
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def words(shown: str) -> str:
    return " ".join(shown.split())


def fleet(rows: list[dict[str, Any]], canvas: Canvas) -> RenderableType:
    return render_fleet(documents.fleet(*rows), rows, canvas)


RENDERERS = {
    "fleet": lambda canvas: fleet([documents.row("one"), documents.row("two", state="silent")], canvas),
    "run": lambda canvas: render_run(
        documents.run(), canvas, details={documents.decision_row(2)["decision_id"]: documents.decision()}
    ),
    "decision": lambda canvas: render_decision(documents.decision(), canvas),
}


@pytest.mark.parametrize("name", sorted(RENDERERS))
@pytest.mark.parametrize("width", WIDTHS)
def test_lines_fit(name: str, width: int) -> None:
    shown = text(RENDERERS[name](Canvas(width)), width).splitlines()
    assert len(shown) > 3
    assert max(map(len, shown)) <= width


@pytest.mark.parametrize("name", sorted(RENDERERS))
def test_no_colour_and_no_escape_without_a_terminal(name: str) -> None:
    assert "\x1b" not in text(RENDERERS[name](Canvas(80)))
    assert "\x1b[" in text(RENDERERS[name](Canvas(80)), force_terminal=True, color_system="standard")


@pytest.mark.parametrize("name", sorted(RENDERERS))
def test_a_terminal_of_ascii_gets_ascii(name: str) -> None:
    out = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80)
    assert Canvas.of(out) == Canvas(80, ascii_only=True)
    out.print(RENDERERS[name](Canvas.of(out)))  # raises where a character cannot be written


def hostile(value: Any) -> Any:
    """Return a document with every text replaced by one that would take over a terminal."""
    if isinstance(value, dict):
        return {key: hostile(each) for key, each in value.items()}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


def without(value: Any) -> Any:
    """Return a document in which every number and text is null."""
    if isinstance(value, dict):
        return {key: without(each) for key, each in value.items()}
    return [without(each) for each in value] if isinstance(value, list) else None


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_texts_are_shown_escaped_and_null_as_a_dash(width: int) -> None:
    canvas = Canvas(width)
    for change in (hostile, without):
        changed = change(documents.fleet())
        run, decision = change(documents.run()), change(documents.decision())
        run["series"] = documents.run()["series"]
        details = {row["decision_id"]: decision for row in run["decisions"]}
        for shown in (
            text(render_fleet(changed, changed["runs"], canvas), width),
            text(render_run(run, canvas, details=details), width),
            text(render_decision(decision, canvas), width),
        ):
            assert shown.replace("\n", "").isprintable()
            assert "owned" in shown if change is hostile else "-" in shown


@pytest.mark.parametrize(
    "shown", [render_run({}, Canvas()), render_decision({}, Canvas()), render_fleet({}, [], Canvas())]
)
def test_an_empty_document_is_shown(shown: RenderableType) -> None:
    assert text(shown)


def test_a_fleet() -> None:
    rows = [documents.row("one"), documents.row("two", state="finished", validation_loss=None, last_reward=None)]
    narrow = text(fleet(rows, Canvas(80))).splitlines()
    assert narrow[0].split() == ["run", "state", "step", "loss", "trend", "adapted", "reward", "seen"]
    assert narrow[2].split() == ["one", "training", "1,200", "0.5123", "█▇▆▅▄▃▃▂▂▂▁▁", "3", "+0.31", "2s"]
    assert narrow[3].split() == ["two", "finished", "1,200", "0.41", "█▇▆▅▄▃▃▂▂▂▁▁", "3", "-", "2s"]
    assert narrow[4:] == ["2 runs: 1 training, 1 finished", "127.0.0.1:9092, 12,345 records"]
    wide = words(text(fleet(rows, Canvas(165)), 165))
    assert "1,200/3,000 0.5123 0.820" in wide
    assert "12,500 3.4% 3 2 load_kernel features.3 at 900 +0.31 +0.034 2s" in wide
    assert words(text(render_fleet(documents.fleet(*rows), rows[:1], Canvas(80)))).count("1 of 2 runs: 1 training") == 1


def test_what_is_wrong_with_the_source_is_shown() -> None:
    document = documents.fleet()
    source = {
        "problem": "the broker does not respond since 12:00:01",
        "undecodable": 3,
        "reading": True,
        "total": 24_690,
    }
    document["source"] = {**document["source"], **source}
    shown = words(text(render_fleet(document, document["runs"], Canvas())))
    assert "12,345 records, 3 undecodable, reading, 50 % the broker does not respond since 12:00:01" in shown


def test_a_thousand_runs_are_listed_quickly() -> None:
    rows = [documents.row(f"run-{number:04d}", task=f"task {number % 7}") for number in range(1_000)]
    began = time.perf_counter()
    lines = text(fleet(selected(rows, sort="loss"), Canvas(130)), 130).splitlines()
    assert len(lines) == 1_004
    assert time.perf_counter() - began < 10  # a bar against quadratic time; it takes about 0.5 s


def test_runs_are_selected_and_sorted() -> None:
    rows = [
        documents.row("a", state="finished", validation_loss=0.1, time_ms=5, worth=None, task="MNIST one"),
        documents.row("b", state="training", validation_loss=None, train_loss=0.2, time_ms=3, worth=-1.0),
        documents.row("c", state="paused", validation_loss=None, train_loss=None, time_ms=None, worth=2.0, task=None),
        documents.row("d", state="training", validation_loss=0.05, time_ms=4, worth=1.0),
    ]

    def ids(**options: Any) -> str:
        return "".join(row["run_id"] for row in selected(rows, **options))

    assert ids() == "dbca"
    assert ids(sort="time") == "adbc"
    assert ids(sort="run") == "abcd"
    assert ids(sort="loss") == "dabc"
    assert ids(sort="worth") == "cdba"
    assert ids(states=["training", "paused"]) == "dbc"
    assert ids(task="mnist one") == "a"
    assert ids(states=["silent"]) == ""
    assert all(len(ids(sort=each)) == 4 for each in SORTS)


def test_a_run() -> None:
    details = {documents.decision_row(2)["decision_id"]: documents.decision()}
    shown = text(render_run(documents.run(), Canvas(80), details=details))
    plain = words(shown)
    assert shown.splitlines()[0] == "mnist1d-0  training  step 1,200 of 3,000"
    assert "parameters 12,500 (+4.2%) budget 6,000" in plain
    assert "order in force by ops: dry run, protected: head (spike)" in plain
    assert "200 load parallel_expansion 0.83 executed +0.31 +0.0123 +8.7% at features.3" in plain
    assert "400 unload at features.0 0.83 veto: uncertainty -0.05… - -" in plain
    assert "fossilize at features.3 0.83 pending - - -" in plain
    assert "7 more decisions, 7 of all to do nothing" in plain
    assert "step action accuracy speed memory stability cost risk" in plain
    assert "+0.40 -0.03 -0.01 +0.08 -0.09 -0.03" in plain
    assert "00000000 features.3 parallel_expansion 250 active 201" in plain
    assert "ended: 1 refused, 2 unloaded" in plain
    assert plain.index("features.3 0.42 0.2 0.9 2 dormant, 1 active, 1 fossilized") < plain.index("features.0 0.95")
    assert "1 kernel error step 333 features.3: non_finite: an output was not finite (reset, works again)" in plain


def test_adaptations_are_marked_where_they_were_executed() -> None:
    shown = text(render_run(documents.run(), Canvas(80))).splitlines()
    (marks,) = [line for line in shown if line.startswith("adapted    ") and "▲" in line]
    curve = next(line for line in shown if line.startswith("train loss"))
    width = 80 - 10 - 18
    assert marks.count("▲") == 1
    assert marks.index("▲") - len("adapted    ") == 201 * width // 1_200  # executed at step 201 of 1,200
    assert len(curve) <= 80


def test_decisions_to_do_nothing_are_listed_on_request() -> None:
    document = documents.run()
    assert [row["step"] for row in shown_decisions(document, 3)] == [400, 500, 1_100]
    assert [row["step"] for row in shown_decisions(document, 3, no_ops=True)] == [900, 1_000, 1_100]
    assert shown_decisions(document, 0) == []
    shown = words(text(render_run({**document, "decisions": [documents.no_op(1)]}, Canvas())))
    assert "no adaptations yet; 1 decision to do nothing" in shown


def test_the_gain_over_the_projection_is_of_the_same_step() -> None:
    series = {"step": [0, 10, 20, 30], "train_loss": [1.0, 0.8, 0.6, 0.1], "validation_loss": [None] * 4}
    assert trend({"step": [10, 20], "loss": [0.9, 0.8]}, series) == pytest.approx(0.25)
    assert trend({"step": [10, 25], "loss": [0.9, 0.8]}, {**series, "validation_loss": [1, None, 0.7, 0.1]}) == (
        pytest.approx(0.125)
    )
    assert trend({"step": [], "loss": []}, series) is None
    assert trend({"step": [10], "loss": [None]}, series) is None
    assert trend({"step": [10], "loss": [0.0]}, series) is None
    assert trend({"step": [10], "loss": [0.5]}, {}) is None


def test_a_decision() -> None:
    shown = words(text(render_decision(documents.decision(), Canvas(80))))
    assert shown.startswith("mnist1d-0 step 200 load parallel_expansion at features.3 executed")
    assert "expected reward +0.20 +- 0.17" in shown
    assert "The layer's gradient is twice its neighbours'. orders in force: *" in shown
    assert "load low_rank at features.0 0.5000 ████████████████████" in shown
    assert "> load parallel_expansion at features.0 0.2500 ██████████" in shown
    assert "unload at head (masked: -) 0.0000" in shown
    assert "24 legal actions, 6 masked or left out" in shown
    assert "kernel compiled, 250 parameters, 1.2 kB, built in 12.3 ms" in shown
    assert "outcome executed at step 201, training paused for 12.5 ms measured before after" in shown
    assert "loss 0.5 0.49" in shown
    assert "Reward +0.316 (revision 1, complete) Loading parallel_expansion lowered the loss by 3.4%." in shown
    assert "worth +0.0123 +- 0.0040" in shown
    assert "accuracy +0.400 +1.0 +0.400 │██████████" in shown
    assert "cost +0.300 -0.3 -0.090 ██│" in shown
    assert "sum +0.327 reward = tanh(sum)" in shown
    assert "immediate 0 50 5 0.30 +0.200 long term 500 open 0 0.10 not measured" in shown
    assert "earlier revisions: +0.100" in shown


def test_a_vetoed_decision_and_one_whose_details_are_gone() -> None:
    document = documents.decision(details_kept=False, actions=[], rewards=[], outcome=None, kernel=None)
    document["decision"].update(
        vetoes=[{"by": "uncertainty", "reason": "0.4 is above 0.3"}], dry_run=True, type="no_op", layer_id=None,
        blueprint=None, status="vetoed",
    )  # fmt: skip
    shown = words(text(render_decision(document, Canvas(200)), 200))
    assert "no_op vetoed" in shown
    assert "proposed load parallel_expansion at features.3" in shown
    assert "veto by uncertainty: 0.4 is above 0.3 dry run: recorded, not executed" in shown
    assert "without its probabilities and earlier rewards" in shown
    del document["decision"]["vetoes"]
    document["decision"]["vetoed_by"] = ["control"]
    assert "veto by control: -" in words(text(render_decision(document, Canvas())))
