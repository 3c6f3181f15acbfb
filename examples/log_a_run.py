"""Write a run to TensorBoard, W&B and MLflow, export its history, and draw it.

python examples/log_a_run.py
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

# MLflow's file store and W&B's offline mode need no server. Set this before the import.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

import matplotlib as mpl
import mlflow
import wandb
from torch.utils.tensorboard import SummaryWriter

from tamiyo.host import attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.integrations.mlflow import log_to_mlflow
from tamiyo.integrations.tensorboard import log_to_tensorboard
from tamiyo.integrations.wandb import log_to_wandb


def main() -> None:
    """Train a small network that grows once, with three loggers."""
    mpl.use("agg")
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    transport = MemoryTransport()
    handle = attach(model, optimizer, example_input=torch.zeros(2, 8), transport=transport)

    mlflow.set_tracking_uri((folder / "mlflow").as_uri())
    with (
        SummaryWriter(str(folder / "tensorboard")) as writer,
        wandb.init(project="grown", mode="offline", dir=folder, settings=wandb.Settings(silent=True)) as run,
        mlflow.start_run() as mlflow_run,
        handle,
    ):
        log_to_tensorboard(handle, writer)
        log_to_wandb(handle, run)
        log_to_mlflow(handle, mlflow_run.info.run_id)
        for step in range(300):
            if step == 100:
                transport.decide("load_kernel", layer="0", blueprint="bottleneck")
            inputs = torch.randn(64, 8)
            loss = F.cross_entropy(model(inputs), (inputs[:, 0] * inputs[:, 1] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            handle.step(loss=loss)

    logged = mlflow.MlflowClient().get_metric_history(mlflow_run.info.run_id, "tamiyo/train_loss")
    print(f"MLflow has {len(logged)} values of the training loss")
    print(f"TensorBoard: {len(list((folder / 'tensorboard').glob('events*')))} file")
    print(f"W&B: {len(list((folder / 'wandb').glob('offline-run-*')))} offline run")

    # Without any logger: the history is rows of plain values, for pandas.DataFrame or json.
    (folder / "history.json").write_text(json.dumps(handle.history.to_records("frames")), encoding="utf-8")
    for event in handle.history.events:
        print(event)
    handle.plot().figure.savefig(folder / "run.png")
    print(f"drawn: {(folder / 'run.png').stat().st_size > 10_000}")


if __name__ == "__main__":
    main()
