"""Releases policies into a store, as the learner does."""

from pathlib import Path
from typing import Any

import torch

from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, checksum, save
from tamiyo.models.features import FEATURE_VERSION
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tests.support.factories import BLUEPRINTS


def make_policy(seed: int = 0, *, learned: bool = False, **fields: Any) -> TamiyoPolicy:
    """Return a small policy; with `learned` its heads differ clearly from the heuristic."""
    policy = TamiyoPolicy(PolicyConfig(blueprints=BLUEPRINTS, hidden=16, layers=2, seed=seed, **fields))
    if learned:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "prior" not in name:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy.eval()


def release(url: Path | str, number: int, policy: TamiyoPolicy | None = None, **fields: Any) -> PolicyCheckpoint:
    """Write checkpoint `number`, unless it exists, and return its announcement."""
    policy = policy or make_policy(number)
    data = save(policy, None, CheckpointHeader.of(policy, version=number))
    store = CheckpointStore(f"file://{url}")
    if number not in store.versions():
        store.write(number, data)
    values: dict[str, Any] = {
        "name": "tamiyo",
        "version": number,
        "time_ms": 0,
        "status": CheckpointStatus.RELEASED,
        "file": store.file_name(number),
        "checksum": checksum(data),
        "size_bytes": len(data),
        "feature_version": FEATURE_VERSION,
        "blueprints": list(BLUEPRINTS),
        "offsets": {},
    }
    return PolicyCheckpoint(**{**values, **fields})
