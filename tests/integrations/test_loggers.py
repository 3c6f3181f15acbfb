"""TensorBoard, W&B offline and MLflow's file store contain what the run's history contains."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import wandb
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from wandb.proto import wandb_internal_pb2

from tamiyo.integrations.mlflow import log_to_mlflow
from tamiyo.integrations.tensorboard import log_to_tensorboard
from tamiyo.integrations.wandb import log_to_wandb
from tests.support.runs import Run, run

BLOCK = 32 * 1024


def train(made: Run) -> None:
    made.train(3)
    made.load()
    made.train(4)
    made.handle.close()


def test_tensorboard_has_every_scalar_and_event(tmp_path: Path) -> None:
    made = run()
    with SummaryWriter(str(tmp_path)) as writer:
        log_to_tensorboard(made.handle, writer)
        train(made)
        written = EventAccumulator(str(tmp_path))
        written.Reload()  # the end of the run has flushed the writer
        frames, events = made.handle.history.frames, made.handle.history.events
        assert [(scalar.step, scalar.value) for scalar in written.Scalars("tamiyo/train_loss")] == [
            (frame.step, pytest.approx(frame.train_loss)) for frame in frames
        ]
        assert [scalar.value for scalar in written.Scalars("tamiyo/parameters")] == [each.parameters for each in frames]
        texts = [tensor.tensor_proto.string_val[0].decode() for tensor in written.Tensors("tamiyo/events/text_summary")]
        assert texts == [str(event) for event in events]
        assert [event.kind for event in events] == ["executed", "kernel_added", "closed"]
        assert "tamiyo/validation_loss" not in written.Tags()["scalars"]


def test_a_logger_can_be_ended(tmp_path: Path) -> None:
    made = run()
    with SummaryWriter(str(tmp_path)) as writer:
        end = log_to_tensorboard(made.handle, writer)
        made.train(2)
        end()
        train(made)
    written = EventAccumulator(str(tmp_path))
    written.Reload()
    assert [scalar.step for scalar in written.Scalars("tamiyo/train_loss")] == [2]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of an offline run's file: LevelDB's log format, behind a header of 7 bytes."""
    assert data.startswith(b":W&B")
    at, record = 7, b""
    while at < len(data):
        if BLOCK - at % BLOCK < 7:  # too little room for a header: the rest of a block is empty
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield record
            record = b""


def wandb_history(folder: Path) -> list[dict[str, object]]:
    """Return the rows of an offline run."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = [wandb_internal_pb2.Record.FromString(each) for each in wandb_records(file.read_bytes())]
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def test_wandb_has_every_scalar_and_event(tmp_path: Path) -> None:
    made = run()
    with wandb.init(mode="offline", dir=tmp_path, project="test", settings=wandb.Settings(silent=True)) as own:
        log_to_wandb(made.handle, own)
        train(made)
        own.log({"mine": 1.0})
    wandb.teardown()  # its process writes the file, and ends now
    rows = wandb_history(tmp_path)
    history = made.handle.history
    assert [(row["tamiyo/step"], row["tamiyo/train_loss"]) for row in rows if "tamiyo/train_loss" in row] == [
        (frame.step, pytest.approx(frame.train_loss)) for frame in history.frames
    ]
    assert [row["tamiyo/event"] for row in rows if "tamiyo/event" in row] == [str(event) for event in history.events]
    assert [row["mine"] for row in rows if "mine" in row] == [1.0]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield MlflowClient()
    mlflow.set_tracking_uri(before)


def test_mlflow_has_every_scalar_and_event(client: MlflowClient, tmp_path: Path) -> None:
    made = run()
    with mlflow.start_run() as own:
        log_to_mlflow(made.handle, own.info.run_id)
        train(made)
        run_id = own.info.run_id
        assert client.get_run(run_id).data.tags["tamiyo.run_id"] == "run-1"
        frames = made.handle.history.frames
        # MLflow's own threads write what is logged, in any order.
        losses = sorted(client.get_metric_history(run_id, "tamiyo/train_loss"), key=lambda metric: metric.step)
        assert [(metric.step, metric.value) for metric in losses] == [
            (frame.step, pytest.approx(frame.train_loss)) for frame in frames
        ]
        file = client.download_artifacts(run_id, "tamiyo/events.json", str(tmp_path))
        events = json.loads(Path(file).read_text(encoding="utf-8"))["events"]
        assert events == made.handle.history.to_records("events")
        assert [event["kind"] for event in events] == ["executed", "kernel_added", "closed"]


def test_an_error_of_a_logger_does_not_end_training(client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    made = run()
    with mlflow.start_run() as own:
        log_to_mlflow(made.handle, own.info.run_id)
    client.delete_run(own.info.run_id)
    train(made)
    assert made.handle.stats.step == 7
    assert "training continues" in caplog.text
