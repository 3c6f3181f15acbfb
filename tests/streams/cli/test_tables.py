"""Tables on a terminal of 80 columns: no word is broken, and only names that are too long are folded."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tamiyo.evaluation.lab.cli import output as lab
from tamiyo.evaluation.lab.cli.output import right
from tamiyo.evaluation.lab.compare import Comparison, Estimate
from tamiyo.evaluation.offline import output as offline
from tamiyo.evaluation.offline.estimators import ESTIMATORS, Interval
from tamiyo.evaluation.offline.support import Support
from tamiyo.evaluation.offline.verdict import Evaluation, PolicyValue, Status
from tamiyo.schemas.display import narrow
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import CATALOGUE
from tamiyo.streams.admin.acls import Grant
from tamiyo.streams.admin.plan import COSTS, Demand, UnitCosts, size
from tamiyo.streams.cli import acls, diff, dlq, plan, topics
from tamiyo.streams.demo import report
from tamiyo.streams.replay.compare import Difference

LONGEST = max((topic.late for topic in CATALOGUE), key=len)
INTERVAL = Interval(-0.1234, -0.2345, -0.0123)


def at(width: int, monkeypatch: pytest.MonkeyPatch, show: Any) -> list[str]:
    """Return the lines that `show` prints on a terminal of a width."""
    out = Console(file=io.StringIO(), width=width)
    for module in (plan, lab, offline):
        monkeypatch.setattr(module, "console", out)
    shown = show(out)
    if isinstance(shown, Table):
        out.print(shown)
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def catalogue(prefix: str = "") -> list[dict[str, Any]]:
    return [
        {
            "topic": f"{prefix}{topic.name}",
            "record": topic.record.__name__,
            "written_by": topic.writer,
            "read_by": topic.readers,
            "cleanup": topic.cleanup,
            "content": topic.description,
        }
        for topic in CATALOGUE
    ]


def sizing() -> Any:
    demand = Demand(runs=1_000_000, layers=50, interval_s=60)
    return size(demand, UnitCosts.load(COSTS))


def compared(_: Console) -> None:
    estimate = Estimate(0.1234, -0.1234, 0.2345)
    rows = [Comparison("digits_clean", "greedy_counterfactual", 1_000, estimate, estimate, 0.123, 12.3, 12.34)]
    lab.print_comparison(rows, [], False)


def evaluated(out: Console) -> None:
    support = Support(12_345.6, 123.4, 0.987, 1_234.5, 0.123, INTERVAL)
    estimates = dict.fromkeys(ESTIMATORS, INTERVAL)
    sides = [PolicyValue(name, support, estimates) for name in ("policy-000012", "heuristic")]
    result = Evaluation(Status.BETTER, "better", 10, 1_000, 0.1, sides[0], sides[1], estimates, 0.5)
    offline.print_tables(result, offline.Counter())  # the sentences below the tables are wrapped by the terminal


def demonstrated(out: Console) -> None:
    side = {
        "steps": 3_000,
        "validation_loss": 0.123,
        "test_accuracy": 0.987,
        "parameters": 1_234_567,
        "overhead_ratio": 0.123,
    }
    runs = [{"seed": 12, "host": side, "static": side}]
    report.show(report.Report("mnist1d", 0, 1.0, True, side, side, runs, {}, {}), out)


TABLES = {
    "topics list": lambda _: topics._catalogue(catalogue()),
    "topics acls": lambda _: acls._table([("decisions", Grant("topic", LONGEST, "DESCRIBE_CONFIGS"))]),
    "dlq list": lambda _: dlq._table(
        [{"topic": LONGEST, "late": True, "reason": "UndecodableMessage", "letters": 123_456, "redriven": 123_456}]
    ),
    "diff": lambda _: diff._table([Difference(LONGEST, 12_345_678, 1_234, 1_234, 1_234, 1_234, None)]),
    "plan": lambda _: plan._show(sizing()),
    "lab compare": compared,
    "evaluate": evaluated,
    "demo": demonstrated,
}


@pytest.mark.parametrize("name", TABLES)
def test_no_word_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = at(80, monkeypatch, TABLES[name])
    wide = at(400, monkeypatch, TABLES[name])
    assert max(len(line) for line in lines if "decisions of" not in line) <= 80
    whole = {word for line in wide for word in line.split() if not set(word) <= set("─━╇┃│")}
    assert whole, "nothing is shown"
    assert whole - {word for line in lines for word in line.split()} <= {LONGEST, f"{LONGEST}.late"}


def test_only_a_name_with_a_long_prefix_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = TopicNames(prefix="a-prefix-of-more-than-forty-characters-in-all.").prefix
    rows = catalogue(prefix)
    lines = at(80, monkeypatch, lambda _: topics._catalogue(rows))
    assert max(map(len, lines)) <= 80
    shown = {word for line in lines for word in line.split()}
    assert {row["record"] for row in rows} | {"decisions", "compact"} <= shown
    folded = "".join(line[:38].strip() for line in lines)
    assert all(row["topic"] in folded for row in rows)


def test_narrow_keeps_words_and_folds_names() -> None:
    table = Table("step", right("mean of something"))
    table.add_column("name", overflow="fold")
    table.add_row("1", "+0.1234 [-0.1234, +0.1234]", "x" * 100)
    out = Console(file=io.StringIO(), width=40)
    out.print(narrow(table))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "something" in text
    assert "[-0.1234," in text
    assert text.count("x") == 100
