"""Comparing two runs: same, different, missing and contradicting records."""

from pathlib import Path

import pytest

from tamiyo.evaluation.common.released_records import encode_released
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.schemas.topics import GRAPHS, SIGNALS
from tamiyo.streams.messages import Message
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.replay.compare import RecordingSide, compare, first_difference, side
from tests.support.factories import make_graph
from tests.support.recordings import make_recording, message
from tests.support.telemetry import signal

GRAPH = make_graph(3)


def graphs(*names: str, **fields: object) -> list[Message]:
    """A graph message for each name, as the graphs stage would have published it."""
    return [
        message(
            GRAPHS.name,
            offset,
            encode(GRAPH.model_copy(update={"graph_id": name, **fields})),
            headers=(("tamiyo-id", name.encode()),),
            key=GRAPH.run_id.encode(),
        )
        for offset, name in enumerate(names)
    ]


def compared(tmp_path: Path, left: list[Message], right: list[Message], **options: object):  # type: ignore[no-untyped-def]
    for name, messages in (("left", left), ("right", right)):
        make_recording(tmp_path / name, messages)
    sides = [RecordingSide(Recording(tmp_path / name)) for name in ("left", "right")]
    return compare(sides[0], sides[1], [GRAPHS], **options)[0]  # type: ignore[arg-type]


def test_order_and_repeats_do_not_matter(tmp_path: Path) -> None:
    found = compared(tmp_path, graphs("a", "b", "c"), graphs("c", "a", "b", "a"))
    assert found.equal
    assert (found.same, found.differ, found.first) == (3, 0, None)


def test_traces_do_not_matter(tmp_path: Path) -> None:
    traced = [
        message(each.topic, n, each.value, headers=(*each.headers, ("traceparent", b"00-1-2-01")), key=each.key)
        for n, each in enumerate(graphs("a", "b"))
    ]
    assert compared(tmp_path, graphs("a", "b"), traced).equal


def test_the_first_differing_field_is_named(tmp_path: Path) -> None:
    other = [*graphs("a"), *graphs("b", "c", step=GRAPH.step + 7)]
    other = [message(each.topic, n, each.value, headers=each.headers, key=each.key) for n, each in enumerate(other)]
    found = compared(tmp_path, graphs("a", "b", "c"), other)
    assert not found.equal
    assert (found.same, found.differ) == (1, 2)
    assert found.first is not None
    assert (found.first.identity, found.first.run_id, found.first.field) == ("b", GRAPH.run_id, "step")
    assert (found.first.left, found.first.right) == (str(GRAPH.step), str(GRAPH.step + 7))


def test_records_of_one_side_only_are_counted(tmp_path: Path) -> None:
    found = compared(tmp_path, graphs("a", "b", "c"), graphs("b", "d"))
    assert (found.same, found.left_only, found.right_only) == (1, 2, 1)
    assert not found.equal


def test_a_record_of_either_side_alone_makes_the_sides_differ(tmp_path: Path) -> None:
    found = compared(tmp_path / "1", graphs("a", "b"), graphs("a"))
    assert (found.left_only, found.right_only, found.equal) == (1, 0, False)
    found = compared(tmp_path / "2", graphs("a"), graphs("a", "b"))
    assert (found.left_only, found.right_only, found.equal) == (0, 1, False)


def test_two_contents_under_one_id_are_a_contradiction(tmp_path: Path) -> None:
    twice = graphs("a", "a")
    twice[1] = message(GRAPHS.name, 1, graphs("a", step=1)[0].value, headers=twice[1].headers, key=twice[1].key)
    found = compared(tmp_path, twice, graphs("a"))
    assert (found.same, found.contradictions) == (1, 1)
    assert not found.equal


def test_a_run_can_be_selected(tmp_path: Path) -> None:
    found = compared(tmp_path, graphs("a", "b"), graphs("a"), runs=["another"])
    assert (found.same, found.left_only) == (0, 0)


def test_bytes_without_a_record_are_compared_too(tmp_path: Path) -> None:
    found = compared(tmp_path, [message(GRAPHS.name, 0, b"one")], [message(GRAPHS.name, 0, b"two")])
    assert found.first is not None
    assert found.first.field == "(bytes)"
    assert "expected a ModelGraph" in found.first.right


def test_an_ignored_field_may_differ_and_no_other(tmp_path: Path) -> None:
    left, right = graphs("a", "b"), graphs("a", "b", step=GRAPH.step + 7)
    assert compared(tmp_path / "1", left, right, ignore=["step"]).equal
    found = compared(tmp_path / "2", left, graphs("a", "b", step=0, time_ms=1), ignore=["step"])
    assert (found.same, found.differ) == (0, 2)
    assert found.first is not None
    assert found.first.field == "time_ms"


def test_an_ignored_field_does_not_hide_a_contradiction_in_another(tmp_path: Path) -> None:
    left = [*graphs("a"), *graphs("a", step=0)]
    left = [message(each.topic, n, each.value, headers=each.headers, key=each.key) for n, each in enumerate(left)]
    assert compared(tmp_path / "1", left, graphs("a"), ignore=["step"]).contradictions == 0
    assert compared(tmp_path / "2", left, graphs("a"), ignore=["time_ms"]).contradictions == 1


def test_bytes_without_a_record_differ_whatever_is_ignored(tmp_path: Path) -> None:
    found = compared(tmp_path, [message(GRAPHS.name, 0, b"one")], [message(GRAPHS.name, 0, b"two")], ignore=["step"])
    assert found.differ == 1


def test_an_unknown_field_cannot_be_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot ignore field 'wording'"):
        compared(tmp_path, graphs("a"), graphs("a"), ignore=["step", "wording"])


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, ("a.b[1]", 2, 3)),
        ({"a": [1]}, {"a": [1, 2]}, ("a", [1], [1, 2])),
        ({"a": 1}, {"a": 1, "b": 2}, ("b", "absent", 2)),
        ({"a": None}, {"a": 0}, ("a", None, 0)),
        ({"a": [{"x": 1}]}, {"a": [{"x": 2}]}, ("a[0].x", 1, 2)),
    ],
)
def test_first_difference(left: dict[str, object], right: dict[str, object], expected: object) -> None:
    assert first_difference(left, right) == expected


def test_a_side_is_named_by_folder_or_prefix() -> None:
    with pytest.raises(ConfigurationError, match="there is no folder nowhere; topics on the broker are named topics:"):
        side("nowhere", KafkaSettings)


def signals(value: bytes) -> list[Message]:
    return [message(SIGNALS.name, 0, value, headers=(("tamiyo-id", b"s"),), key=b"run")]


def test_a_record_of_the_last_release_is_the_same_if_its_values_are(tmp_path: Path) -> None:
    record = signal("telemetry.layer.health_signals", 10, {"norm": [0.1, None]}, layers=["a", "b"])
    other = signal("telemetry.layer.health_signals", 10, {"norm": [0.1, 0.2]}, layers=["a", "b"])
    sides = []
    for name, value in (("new", encode(record)), ("old", encode_released(record)), ("other", encode_released(other))):
        make_recording(tmp_path / name, signals(value))
        sides.append(RecordingSide(Recording(tmp_path / name)))
    assert compare(sides[0], sides[1], [SIGNALS])[0].equal
    assert not compare(sides[0], sides[2], [SIGNALS])[0].equal
    assert compare(sides[0], sides[2], [SIGNALS], ignore=["metrics"])[0].equal


def test_a_list_that_is_stored_in_columns_may_be_ignored(tmp_path: Path) -> None:
    calm = signal("telemetry.layer.health_signals", 10, {"norm": [0.1]}, layers=["a"])
    unusual = signal("telemetry.layer.health_signals", 10, {"norm": [0.1]}, layers=["a"], priority=[3.0])
    sides = []
    for name, record in (("calm", calm), ("unusual", unusual)):
        make_recording(tmp_path / name, signals(encode(record)))
        sides.append(RecordingSide(Recording(tmp_path / name)))
    (found,) = compare(sides[0], sides[1], [SIGNALS])
    assert found.first is not None
    assert (found.first.field, found.first.left, found.first.right) == ("priority[0]", "0.0", "3.0")
    assert compare(sides[0], sides[1], [SIGNALS], ignore=["priority"])[0].equal
    with pytest.raises(ConfigurationError, match="sampling"):
        compare(sides[0], sides[1], [SIGNALS], ignore=["sampling"])
