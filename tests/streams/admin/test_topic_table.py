"""Records as rows: fixed columns for each topic, in lines that fit, with ids that tell them apart."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tamiyo.schemas.adaptation import CompiledKernel, ControlCommand, KernelStatus, Veto
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import (
    CATALOGUE,
    CHECKPOINTS,
    CONTROL,
    DECISIONS,
    ERROR_RECOVERY,
    EXPERIENCE,
    GRAPHS,
    KERNEL_PERFORMANCE,
    KERNELS,
    LAYER_HEALTH,
    MODEL_PERFORMANCE,
    OUTCOMES,
    REWARDS,
    SIGNALS,
    TOPOLOGY,
    WINDOWS,
)
from tamiyo.streams.admin.topic_table import COLUMNS, DEAD_LETTER_COLUMNS, ID_WIDTH, ShortIds, TopicTable, shown
from tamiyo.streams.admin.topic_tail import TopicLine, to_json_values
from tamiyo.streams.headers import REASON_HEADER, SOURCE_HEADER, STAGE_HEADER
from tests.support.experiences import make_experience
from tests.support.factories import make_graph, make_topology, make_window
from tests.support.results import checkpoint, outcome, reward
from tests.support.runs import decision
from tests.support.telemetry import (
    BEGAN_MS,
    cache_hit_rates,
    error_recovery,
    kernel_performance,
    layer_health,
    model_performance,
    signal,
)

LONG = "a-run-of-a-project-with-a-long-name/2026-11-30/attempt-0017"


KERNEL = CompiledKernel(
    run_id="run",
    kernel_id="k" * 32,
    decision_id="d" * 32,
    layer_id="features.0",
    blueprint="parallel_expansion",
    status=KernelStatus.REFUSED,
    reason="larger than the budget of parameters that is left, of which there are none",
)
RECORDS: dict[str, Record] = {
    KERNEL_PERFORMANCE.name: kernel_performance(5),
    "telemetry.cache.hit_rates": cache_hit_rates(5),
    ERROR_RECOVERY.name: error_recovery(5),
    LAYER_HEALTH.name: layer_health(5),
    MODEL_PERFORMANCE.name: model_performance(5, 1.25, parameters=12_345_678),
    TOPOLOGY.name: make_topology(),
    SIGNALS.name: signal(LAYER_HEALTH.name, 10, {"norm": [0.5, None]}, layers=["a", "b"]),
    WINDOWS.name: make_window(layers=2),
    GRAPHS.name: make_graph(layers=2),
    DECISIONS.name: decision("d1", step=400, layer="classifier.layers.17.attention.output"),
    KERNELS.name: KERNEL,
    OUTCOMES.name: outcome(),
    REWARDS.name: reward(),
    EXPERIENCE.name: make_experience(),
    CHECKPOINTS.name: checkpoint(),
    CONTROL.name: ControlCommand(run_id="*", time_ms=1, paused=True, protected_layers=["a", "b"], reason="spike"),
}


def line(topic: str, record: Record | dict[str, Any] | None, time_ms: int = BEGAN_MS, **more: Any) -> TopicLine:
    value = to_json_values(record) if isinstance(record, Record) else record
    return TopicLine(topic, 0, 7, time_ms, **{"headers": {}, "value": value, "key": "run", **more})


def cells(table: TopicTable, shown: TopicLine) -> dict[str, str]:
    """Return the cells of a row by title, by the places of the titles."""
    row, place, found = table.row(shown).plain, len("00:00:00"), {}
    for column, width in table._sized():
        found[column.title] = row[place + 1 : place + 1 + width].strip()
        place += 1 + width
    return found


def test_every_topic_has_columns_and_an_example() -> None:
    assert set(COLUMNS) == {topic.name for topic in CATALOGUE} == set(RECORDS)


@pytest.mark.parametrize("topic", sorted(COLUMNS))
@pytest.mark.parametrize("width", [80, 120, 200])
def test_rows_and_headers_fit(topic: str, width: int) -> None:
    table = TopicTable(topic, width)
    record: Any = RECORDS[topic]
    long = record.model_copy(update={"run_id": LONG}) if "run_id" in type(record).model_fields else record
    lines = [each.plain for value in (record, long) for each in table.lines(line(topic, value))]
    assert lines[0].split()[0] == "time"
    assert lines[1] == "2023-11-14 UTC"
    assert max(map(cell_len, lines)) <= width
    assert all(each.title in lines[0] for each in table.columns)


@pytest.mark.parametrize("topic", sorted(COLUMNS))
def test_a_column_shows_a_field_that_its_record_has(topic: str) -> None:
    """A misspelt name of a field would be a column of dashes."""
    record = RECORDS[topic]
    read: set[str] = set()

    class Recording(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            read.add(name)
            return super().get(name, default)

    values = Recording(to_json_values(record))
    for column in COLUMNS[topic]:
        column.value(values)
    assert read <= set(type(record).model_fields)


def test_a_decision() -> None:
    table = TopicTable(DECISIONS.name, 200)
    vetoed = decision(
        "d1",
        type="no_op",
        layer=None,
        step=400,
        vetoes=[Veto(by="uncertainty", reason="r"), Veto(by="control", reason="r")],
    )
    assert cells(table, line(DECISIONS.name, vetoed)) == {
        "run": "run-1",
        "step": "400",
        "type": "no_op",
        "layer": "-",
        "blueprint": "-",
        "conf": "0.9",
        "veto": "uncertainty,control",
        "policy": "0",
        "decision": vetoed.decision_id[:8],
        "predicted": "0",
        "urgency": "0.5",
        "method": "baseline",
    }
    assert cells(table, line(DECISIONS.name, decision("d1", dry_run=True)))["veto"] == "dry run"


def test_a_reward() -> None:
    found = cells(TopicTable(REWARDS.name, 100), line(REWARDS.name, reward()))
    expected = {"run": "run", "step": "400", "type": "load", "layer": "features.0", "status": "executed"}
    assert found == {**expected, "reward": "-0.125", "worth": "0.01235", "conf": "0.5", "done": "yes"}


def test_a_late_or_rejected_message_shows_who_rejected_it_and_why() -> None:
    headers = {REASON_HEADER: "not\x1b[2J Avro", STAGE_HEADER: "intake", SOURCE_HEADER: "telemetry.cache:1:7"}
    for topic in (MODEL_PERFORMANCE.dead_letters, MODEL_PERFORMANCE.late):
        for value in ({"undecodable": "x", "bytes": "ff"}, None):
            found = cells(TopicTable(topic, 200), line(topic, value, headers=headers))
            assert found == {
                "run": "run", "step": "-", "stage": "intake", "source": "telemetry.cache:1:7",
                "reason": "not\\x1b[2J Avro",
            }  # fmt: skip
    assert cells(TopicTable(MODEL_PERFORMANCE.late, 80), line(topic, model_performance(5)))["step"] == "5"
    assert {each.title for each in DEAD_LETTER_COLUMNS} == set(found)


def test_what_is_no_record_is_one_sentence() -> None:
    def row(value: dict[str, Any] | None, topic: str = KERNELS.name) -> str:
        return " ".join(TopicTable(topic, 80).row(line(topic, value)).plain.split())

    assert row(None) == "22:13:20 run (removed)"
    assert row({"undecodable": "not\x1b Avro", "bytes": "ff"}) == "22:13:20 run undecodable: not\\x1b Avro"
    assert row({"end": "of a partition in a replay"}) == "22:13:20 (end of a partition in a replay)"
    assert row({"redrive": "claim", "letters": [0]}, KERNELS.dead_letters) == "22:13:20 (redrive claim)"


def test_the_header_is_repeated_on_each_page_and_the_date_when_it_changes() -> None:
    table = TopicTable(OUTCOMES.name, 80, page=4)
    shown = [
        next(iter(each.plain.split()))
        for day in (0, 0, 1, 1, 1)
        for each in table.lines(line(OUTCOMES.name, outcome(), BEGAN_MS + day * 86_400_000))
    ]
    row, day = "22:13:20", ["2023-11-14", "2023-11-15"]
    assert shown == ["time", day[0], row, row, day[1], row, "time", day[1], row, row]
    never = TopicTable(OUTCOMES.name, 80)
    titles = [each.plain for _ in range(99) for each in never.lines(line(OUTCOMES.name, outcome()))]
    assert sum(each.startswith("time") for each in titles) == 1


def test_ids_are_whole_where_they_are_wanted_whole() -> None:
    record = decision("d1", run_id=LONG)
    assert LONG in TopicTable(DECISIONS.name, 80, full_ids=True).row(line(DECISIONS.name, record)).plain
    assert LONG not in TopicTable(DECISIONS.name, 80).row(line(DECISIONS.name, record)).plain
    wide = TopicTable(DECISIONS.name, 120, full_ids=True).row(line(DECISIONS.name, record)).plain
    assert record.decision_id in wide


def test_nothing_is_cut_in_a_file() -> None:
    record = decision("d1", layer="classifier.layers.17.attention.output")
    assert record.layer_id not in TopicTable(DECISIONS.name, 80).row(line(DECISIONS.name, record)).plain
    assert record.layer_id in TopicTable(DECISIONS.name, 80, cut=False).row(line(DECISIONS.name, record)).plain


SIMILAR = st.tuples(st.sampled_from(["", "a" * 6, "a" * 10, "a" * 11 + "b"]), st.text("abc-", max_size=12)).map("".join)


@given(st.lists(SIMILAR.filter(bool), max_size=30))
def test_short_ids_are_unique_beginnings(ids: list[str]) -> None:
    short = ShortIds()
    for each in ids:
        short.short(each)
    found = {each: short.short(each) for each in ids}
    for each, shortened in found.items():
        assert each.startswith(shortened)
        assert len(shortened) >= min(len(each), ID_WIDTH)
        others = [other for other in found if other != each and other.startswith(shortened)]
        assert not others or shortened == each


def test_ids_in_json_are_shortened_and_layers_are_not() -> None:
    values = {
        "key": "r" * 20,
        "value": {"run_id": "r" * 20, "layer_id": "l" * 20, "layers": ["x" * 20], "graph_id": None},
    }
    assert ShortIds().shortened(values) == {
        "key": "r" * 8, "value": {"run_id": "r" * 8, "layer_id": "l" * 20, "layers": ["x" * 20], "graph_id": None}
    }  # fmt: skip


def test_thousands_of_ids_are_forgotten_in_time() -> None:
    short = ShortIds()
    for number in range(20_001):
        short.short(f"{number:032d}")
    assert len(short._sorted) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), ("", "-"), ([], "-"), (True, "yes"), (False, "no"), (0.123456, "0.1235"), (0, "0"), (1e9, "1e+09"),
     (float("nan"), "nan"), (["a", "b\x1b"], "a,b\\x1b"), ("\x1b[2J", "\\x1b[2J"), ({"a": 1}, "{'a': 1}")],
)  # fmt: skip
def test_values_as_cells(value: Any, text: str) -> None:
    assert shown(value) == text


def test_wide_characters_are_two_columns() -> None:
    table = TopicTable(CONTROL.name, 80)
    row = table.row(line(CONTROL.name, ControlCommand(run_id="run", time_ms=1, reason="損失が急増" * 20)))
    assert cell_len(row.plain) <= 80
    assert "…" in row.plain


def test_times_that_are_none_are_the_epoch() -> None:
    """Kafka gives -1 for a message without a time."""
    for time_ms in (-1, 2**62):
        assert TopicTable(CONTROL.name, 80).row(line(CONTROL.name, RECORDS[CONTROL.name], time_ms)).plain
