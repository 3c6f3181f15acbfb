"""Hostile input is refused, rejected or valid, within bounds, and cannot control a terminal."""

import io
import json
import tracemalloc
from typing import Any

import fastavro
import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from rich.console import Console

from tamiyo.evaluation.hostile.__main__ import run
from tamiyo.host._kernels.store import MAX_BYTES as MAX_KERNEL_BYTES
from tamiyo.host._kernels.store import KernelStore
from tamiyo.models.checkpoint_store import CheckpointStore
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.codec import MAX_READ_BYTES, decode, encode, header, parsed_schema
from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import DecodeError, KernelError, PolicyError, RecordError, SchemaError
from tamiyo.schemas.identity import decision_id
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import ErrorRecoveryEvent, KernelPerformance
from tamiyo.schemas.topics import DECISIONS, ERROR_RECOVERY
from tamiyo.streams.admin.topic_table import TopicTable
from tamiyo.streams.admin.topic_tail import TopicLine, to_json_values
from tamiyo.streams.demo.display import Display
from tamiyo.streams.headers import REASON_HEADER
from tamiyo.streams.runtime.faust.decompression_limit import MAX_BATCH_BYTES, limit_decompression
from tamiyo.streams.settings import IntakeSettings, KernelSettings, LogSettings
from tamiyo.streams.stages.base import Incoming, Reject
from tamiyo.streams.stages.intake.stage import IntakeStage
from tamiyo.streams.stages.kernels.stage import KernelsStage
from tests.support.runs import decision
from tests.support.telemetry import BEGAN_MS, DictView, error_recovery, incoming, kernel_performance, topology


def test_twenty_thousand_hostile_records() -> None:
    verdict = run(20_000, seed=11)
    assert verdict.failures == []
    assert verdict.refused + verdict.accepted == 20_000
    # The test would prove nothing if the first check refused everything.
    assert verdict.accepted > 4_000
    assert verdict.rejected > 100
    assert len(verdict.outputs) >= 6
    assert verdict.memory_peak_mib - verdict.memory_begin_mib < 500


def long(value: int) -> bytes:
    """Return Avro's zigzag varint."""
    number, found = (value << 1) ^ (value >> 63), bytearray()
    number &= 2**64 - 1
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


BEFORE_LAYERS = b"\x02r" + b"\x00" * 5  # run_id, step, epoch, time_ms, companions, final


@pytest.mark.parametrize("count", [2**20, 2**40, 2**62, 2**63 - 1, -1, -(2**40), -(2**63)])
@pytest.mark.parametrize("size", [b"", long(2**40), long(-1)])
def test_huge_counts_of_array_blocks_take_no_memory(count: int, size: bytes) -> None:
    refused(header(KernelPerformance) + BEFORE_LAYERS + long(count) + size, KernelPerformance, 2_000_000)


@pytest.mark.parametrize("length", [2**31, 2**40, 2**62, -1, -(2**63)])
def test_huge_text_lengths_take_no_memory(length: int) -> None:
    refused(header(KernelPerformance) + long(length) + b"run", KernelPerformance, 2_000_000)
    refused(header(KernelPerformance) + BEFORE_LAYERS + long(1) + long(length), KernelPerformance, 2_000_000)


def refused(data: bytes, record: type[Record], most_bytes: int) -> None:
    """Assert that `data` is refused, and that decoding it takes at most `most_bytes`."""
    parsed_schema(record)
    tracemalloc.start()
    try:
        with pytest.raises(SchemaError):
            decode(data, record)
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("record", [HealthWindow, ModelGraph, KernelPerformance])
def test_the_largest_message_of_the_smallest_pieces_is_bounded(record: type[Record]) -> None:
    # Bytes that each become a Python object are the worst that a message's size allows. Memory follows their number, so
    # a sixteenth of the largest message may take a sixteenth of 1 GB: the whole takes minutes where memory is traced.
    room = MAX_READ_BYTES // 16
    before = {KernelPerformance: BEFORE_LAYERS}.get(record, b"\x02r" * 4 + b"\x00" * 4)
    refused(header(record) + before + long(room) + b"\x00" * room, record, 1_000_000_000 // 16)


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(DecodeError, match="expected at most"):
        decode(header(KernelPerformance) + bytes(MAX_READ_BYTES), KernelPerformance)


@pytest.mark.parametrize(("codec", "number"), [("gzip", 1), ("lz4", 3), ("zstd", 4)])
def test_a_decompression_bomb_is_refused(codec: str, number: int) -> None:
    limit_decompression()
    good, bomb = batch(b"good" * 1000, number), batch(bytes(2 * MAX_BATCH_BYTES), number)
    assert [record.value for record in DefaultRecordBatch(good)] == [b"good" * 1000]
    assert len(bomb) < MAX_BATCH_BYTES / 50
    with pytest.raises(CorruptRecordException, match="unpacks to more than"):
        list(DefaultRecordBatch(bomb))


def batch(value: bytes, codec: int) -> bytes:
    """Return one record as a compressed batch."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 2**31 - 1)
    builder.append(0, 1, b"key", value, [])
    return bytes(builder.build())


NASTY_IDS = [
    "../..", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "s3://bucket/key", "http://host/x", "a\0b",
    "x" * 100_000, "", ".", "deadbeef/../../x", "deadbeef\n", "DEADBEEF", "deadbeef.safetensors", "~/x", "memory://x",
]  # fmt: skip


@pytest.mark.parametrize("name", NASTY_IDS, ids=range(len(NASTY_IDS)))
def test_no_path_from_a_message_is_opened(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, checkpoints = KernelStore(f"file://{tmp_path}/k"), CheckpointStore(f"file://{tmp_path}/c")

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the file system was asked")

    for files in (kernels._fs, checkpoints._files):
        for method in ("size", "cat_file", "open", "exists", "rm_file", "info"):
            monkeypatch.setattr(files, method, touched)
    with pytest.raises(KernelError) as kernel:
        kernels.get(name, "0" * 64)
    with pytest.raises(PolicyError) as policy:
        checkpoints.read(name)
    assert len(str(kernel.value)) < 400
    assert "\0" not in str(kernel.value) + str(policy.value)


@pytest.mark.parametrize(
    "spec",
    ["[" * 2000, '{"a":' * 300, "1e999", "null", "NaN", "[]", json.dumps({"type": "linear", "in_features": 2**62})],
)
def test_hostile_geometry_is_refused_with_its_reason(spec: str, tmp_path: Any) -> None:
    asked = decision("hostile", layer="layer.0")
    known = topology(["layer.0"], asked.run_id)
    layer = known.layers[0].model_copy(update={"spec": spec})
    view = DictView({asked.run_id: known.model_copy(update={"layers": [layer]})})
    stage = KernelsStage(0, KernelSettings(store_url=f"file://{tmp_path}"), {"tamiyo.model.topology": view})
    (output,) = stage.feed([Incoming(DECISIONS.name, 0, 0, BEGAN_MS, asked)])
    assert not isinstance(output, Reject)
    assert output.record.status == "refused"  # type: ignore[attr-defined]
    assert output.record.reason  # type: ignore[attr-defined]


@pytest.mark.parametrize("header_length", [2**63, 2**40, 100_000_001, 0])
def test_a_kernel_files_header_cannot_allocate_memory(header_length: int, tmp_path: Any) -> None:
    import hashlib

    store = KernelStore(f"file://{tmp_path}")
    data = header_length.to_bytes(8, "little") + b"{" * 1000
    (tmp_path / "deadbeef.safetensors").write_bytes(data)
    with pytest.raises(KernelError):
        store.get("deadbeef", hashlib.sha256(data).hexdigest())
    with (tmp_path / "deadbeef.safetensors").open("wb") as file:
        file.truncate(MAX_KERNEL_BYTES + 1)
    with pytest.raises(KernelError, match="the limit is"):
        store.get("deadbeef", "0" * 64)


@pytest.mark.parametrize("text", ["run 1", "run\n", "run\x1b[2J", "\u202erun", "r\0n", "-run", "r" * 201, "", "r\x7f"])
def test_ids_are_without_control_characters(text: str) -> None:
    data = io.BytesIO()
    data.write(header(KernelPerformance))
    values = {**kernel_performance(1).model_dump(), "run_id": text}
    fastavro.schemaless_writer(data, parsed_schema(KernelPerformance), values)
    with pytest.raises(RecordError, match="run_id"):
        decode(data.getvalue(), KernelPerformance)


def test_times_and_steps_far_ahead_are_rejected() -> None:
    stage = IntakeStage(0, IntakeSettings(), {})
    ahead = kernel_performance(1, time_ms=BEGAN_MS + 10**10)
    (output,) = stage.feed([incoming(ahead, "telemetry.execution.kernel_performance", timestamp_ms=BEGAN_MS)])
    assert isinstance(output, Reject)
    assert "check the host's clock" in output.reason
    (output,) = stage.feed([incoming(kernel_performance(2**53, time_ms=BEGAN_MS), KERNEL)])
    assert isinstance(output, Reject)


KERNEL = "telemetry.execution.kernel_performance"
ESCAPES = "\x1b]0;owned\x07\x1b[31m[/bold][red]\u202e\r\n"


def test_a_record_cannot_control_a_terminal() -> None:
    event: ErrorRecoveryEvent = error_recovery(1, message=ESCAPES, error_type=ESCAPES[:30])
    decoded = decode(encode(event), ErrorRecoveryEvent)
    line = TopicLine(ERROR_RECOVERY.name, 0, 0, 0, {"h": ESCAPES, REASON_HEADER: ESCAPES}, to_json_values(decoded))
    for topic in (ERROR_RECOVERY.name, ERROR_RECOVERY.dead_letters):
        for width in (80, 200):
            row = TopicTable(topic, width).row(line).plain
            assert row.isprintable()
            assert "\\x1b" in row
    assert line.json().isprintable()
    page = io.StringIO()
    display = Display(Console(file=page, width=500, force_terminal=False), steps=10)
    for status in ("refused", "failed"):
        display.take(None, outcome(status))  # type: ignore[arg-type]
    assert page.getvalue().replace("\n", "").isprintable()
    assert "[red]" in page.getvalue()  # as text, not as a colour
    assert printable("plain words, ünïcode 🧩") == "plain words, ünïcode 🧩"


def outcome(status: str) -> Any:
    from tamiyo.schemas.adaptation import AdaptationOutcome

    asked = decision(status)
    return AdaptationOutcome(
        run_id=asked.run_id, outcome_id=decision_id(status), decision_id=asked.decision_id, step=1, time_ms=BEGAN_MS,
        type=asked.type, layer_id=asked.layer_id, blueprint=asked.blueprint, kernel_id=asked.kernel_id, status=status,
        reason=ESCAPES, before={}, after={},
    )  # fmt: skip


def test_log_lines_on_a_terminal_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    import structlog

    from tamiyo.streams.process.logs import configure

    handlers = logging.getLogger().handlers[:]
    try:
        for style in ("text", "json"):
            configure(LogSettings(format=style))  # type: ignore[arg-type]
            structlog.get_logger("x").warning("rejected", reason="\x1b]0;owned\x07", run_id="a\u202eb")
            logged = capsys.readouterr().err
            assert "\x07" not in logged
            assert "\x1b]" not in logged
            assert "\u202e" not in logged
    finally:
        configure()
        logging.getLogger().handlers[:] = handlers
