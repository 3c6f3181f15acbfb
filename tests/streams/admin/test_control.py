"""Standing orders on the control topic: changes keep what they do not change, also when two operators act at once."""

import getpass
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError, RecordError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL, TOPOLOGY
from tamiyo.streams.admin import control as module
from tamiyo.streams.admin.control import (
    ControlTopic,
    KnownRuns,
    cleared,
    dry_run,
    known_runs,
    paused,
    protected,
    publish_order,
)
from tamiyo.streams.admin.topics import Topics
from tests.support.factories import make_topology
from tests.support.kafka_log import KafkaLog

Open = Callable[[], ControlTopic]
Act = Callable[[str], object]


@pytest.fixture
def operator(kafka: KafkaSettings, names: TopicNames) -> Iterator[Open]:
    """Open the control topic, as an operator's command does."""
    Topics(kafka, names, (CONTROL, TOPOLOGY)).touch()
    opened: list[ControlTopic] = []

    def begin() -> ControlTopic:
        opened.append(ControlTopic(kafka, names))
        return opened[-1]

    yield begin
    for each in opened:
        each.__exit__()


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Act]]:
    """Do something right before, or right after, the next order is published."""
    acts: dict[str, Act] = {}

    def publish(addressee: str, *more: Any) -> tuple[int, int]:
        acts.pop("before", lambda _: None)(addressee)
        place = publish_order(addressee, *more)
        acts.pop("after", lambda _: None)(addressee)
        return place

    monkeypatch.setattr(module, "publish_order", publish)
    yield acts
    assert not acts


def summary(order: ControlCommand | None) -> tuple[bool, bool, list[str], str] | None:
    return None if order is None else (order.paused, order.dry_run, order.protected_layers, order.reason)


def test_a_change_keeps_the_rest_of_the_order(operator: Open) -> None:
    control = operator()
    assert control.orders == {}
    control.change("run-1", protected(["conv1"]), "fragile")
    control.change("run-1", paused(True))
    change = control.change("run-1", protected(["conv2", "conv1"]))
    assert summary(change.before) == (True, False, ["conv1"], "fragile")
    assert summary(change.after) == (True, False, ["conv1", "conv2"], "fragile")
    control.change("run-1", dry_run(True), "trial")
    control.change("run-1", protected(remove=["conv1", "never there"]))
    control.change("run-1", paused(False))
    standing = operator().orders  # another process reads the same
    assert {key: summary(each) for key, each in standing.items()} == {"run-1": (False, True, ["conv2"], "trial")}
    assert standing["run-1"].issued_by == getpass.getuser()
    assert control.orders == standing


def test_the_reason_ends_with_what_it_was_for(operator: Open) -> None:
    control = operator()
    control.change("*", paused(True), "audit")
    assert summary(control.change("*", paused(False)).after) == (False, False, [], "")


def test_what_is_so_already_is_not_published_again(operator: Open, kafka_log: KafkaLog) -> None:
    control = operator()
    for edit in (paused(False), dry_run(False), protected(remove=["conv1"]), cleared):
        assert not control.change("run-1", edit).published
    control.change("run-1", paused(True), "audit")
    assert not control.change("run-1", paused(True)).published
    assert not control.change("run-1", paused(True), "audit").published
    assert control.change("run-1", paused(True), "the audit goes on").published
    assert len(kafka_log.read(CONTROL.name)) == 2


def test_clearing_removes_one_order_and_no_other(operator: Open, kafka_log: KafkaLog) -> None:
    control = operator()
    control.change("*", paused(True))
    control.change("run-1", dry_run(True))
    change = control.change("run-1", cleared)
    assert change.published
    assert change.after is None
    assert list(operator().orders) == ["*"]
    assert [each.key for each in kafka_log.read(CONTROL.name) if each.value is None] == [b"run-1"]


def test_times_always_rise_under_an_addressee(operator: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator whose clock is behind is not ignored by hosts, which keep the newest order."""
    first = operator().change("run-1", paused(True)).after
    assert first is not None
    monkeypatch.setattr(module.time, "time_ns", lambda: 1_000_000)
    second = operator().change("run-1", dry_run(True)).after
    assert second is not None
    assert second.time_ms == first.time_ms + 1
    operator().change("run-1", cleared)
    third = operator().change("run-1", dry_run(True)).after
    assert third is not None
    assert third.time_ms > second.time_ms


def test_an_order_given_at_the_same_time_is_not_lost(operator: Open, meanwhile: dict[str, Act]) -> None:
    mine, other = operator(), operator()
    meanwhile["before"] = lambda run: other.change(run, protected(["conv1"]))
    change = mine.change("run-1", paused(True), "audit")
    assert summary(change.after) == (True, False, ["conv1"], "audit")
    assert change.notes == (f"{getpass.getuser()} changed this order at the same time",)
    assert not change.overruled
    assert operator().orders["run-1"] == change.after


def test_an_equal_order_given_at_the_same_time_needs_no_second_one(
    operator: Open, meanwhile: dict[str, Act], kafka_log: KafkaLog
) -> None:
    mine, other = operator(), operator()
    meanwhile["before"] = lambda run: other.change(run, paused(True))
    assert summary(mine.change("run-1", paused(True)).after) == (True, False, [], "")
    assert len(kafka_log.read(CONTROL.name)) == 2


def test_clearing_what_is_changed_at_the_same_time_clears_both(operator: Open, meanwhile: dict[str, Act]) -> None:
    mine, other = operator(), operator()
    mine.change("run-1", paused(True))
    meanwhile["before"] = lambda run: other.change(run, protected(["conv1"]))
    change = mine.change("run-1", cleared)
    assert change.after is None
    assert change.notes
    assert operator().orders == {}


@pytest.mark.parametrize(("theirs", "overruled"), [(paused(False), True), (protected(["conv1"]), False)])
def test_a_later_order_that_undoes_the_change_is_reported(
    operator: Open, meanwhile: dict[str, Act], theirs: module.Edit, overruled: bool
) -> None:
    mine = operator()
    meanwhile["after"] = lambda run: operator().change(run, theirs)
    change = mine.change("run-1", paused(True))
    assert change.overruled is overruled
    assert change.after == operator().orders["run-1"]
    assert change.notes


def test_messages_that_are_no_orders_change_nothing(operator: Open, kafka_log: KafkaLog) -> None:
    operator().change("run-1", paused(True))
    kafka_log.publish_bytes(CONTROL, [(b"run-1", b"rubbish")])
    control = operator()
    assert summary(control.orders["run-1"]) == (True, False, [], "")
    assert len(control.unreadable) == 1
    assert summary(control.change("run-1", dry_run(True)).after) == (True, True, [], "")


def test_of_a_key_on_two_partitions_the_newest_counts(operator: Open, kafka_log: KafkaLog, names: TopicNames) -> None:
    """As after partitions were added: the old order stays on the partition that the key had."""
    now = 1_700_000_000_000

    def publish(partition: int, timestamp_ms: int, order: ControlCommand | None) -> None:
        value = None if order is None else encode(order)
        topic = names.full(CONTROL.name)
        kafka_log._producer.produce(topic, value, "run-1", partition=partition, timestamp_ms=timestamp_ms)
        kafka_log._producer.flush()

    for partition, (time_ms, pause) in enumerate([(now, True), (now + 2, False), (now + 1, True)]):
        publish(partition, time_ms, ControlCommand(run_id="run-1", time_ms=time_ms, paused=pause, dry_run=True))
    assert summary(operator().orders["run-1"]) == (False, True, [], "")
    publish(0, now + 2, None)  # as old as the order that is on another partition now
    assert summary(operator().orders["run-1"]) == (False, True, [], "")
    publish(0, now + 3, None)
    assert operator().orders == {}


def test_an_order_that_breaks_the_contract_is_refused(operator: Open, kafka_log: KafkaLog) -> None:
    with pytest.raises(RecordError, match="protected_layers"):
        operator().change("run-1", protected(["a layer"]))
    with pytest.raises(RecordError, match="reason"):
        operator().change("run-1", paused(True), "x" * 2001)
    assert kafka_log.read(CONTROL.name) == []


def test_a_missing_topic_is_reported(kafka: KafkaSettings, names: TopicNames) -> None:
    with pytest.raises(BrokerError, match=r"no topic .*tamiyo\.control; `tamiyo topics create`"):
        ControlTopic(kafka, names)


def test_a_user_without_a_name_is_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1000680000")

    monkeypatch.setattr(module.getpass, "getuser", nobody)
    monkeypatch.setattr(module.os, "getuid", lambda: 1_000_680_000)
    assert module.operator_name() == "uid 1000680000"


def test_unknown_runs_and_layers_are_warned_of(
    operator: Open, kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog
) -> None:
    operator()
    kafka_log.publish(TOPOLOGY, [make_topology(2, run_id="run-a"), make_topology(3, run_id="run-b")])
    kafka_log.publish_bytes(TOPOLOGY, [(b"run-c", b"rubbish"), (b"forgotten", b"x"), (b"forgotten", None)])
    found = known_runs("run-a", kafka, names, layers=True)
    layer = make_topology(3).layers[2].layer_id
    assert found.runs == {"run-a", "run-b", "run-c"}
    assert found.warnings("run-a", [make_topology(2).layers[0].layer_id]) == []
    assert found.warnings("run-a", [layer])[0].startswith(f"run 'run-a' does not have a layer {layer!r}")
    assert known_runs("*", kafka, names, layers=True).warnings("*", [layer, "elsewhere"]) == [
        "no known run has a layer 'elsewhere'"
    ]
    assert known_runs("forgotten", kafka, names, layers=False).warnings("forgotten") == [
        "no run 'forgotten' has published its topology yet; the order waits for it"
    ]


def test_a_warning_names_the_nearest_name() -> None:
    known = KnownRuns(frozenset({"mnist1d-0"}), {"mnist1d-0": frozenset({"conv1"})})
    assert "did you mean 'mnist1d-0'?" in known.warnings("mnist1d-O")[0]
    assert "did you mean 'conv1'?" in known.warnings("mnist1d-0", ["cnv1"])[0]
