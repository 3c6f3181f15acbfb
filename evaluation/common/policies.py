"""Untrained policies over the whole catalogue of blueprints, released into a store as the learner does."""

from tamiyo.evaluation.common.simulated_runs import EPOCH_MS
from tamiyo.host.blueprints import names as blueprint_names
from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, checksum, save
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint


def untrained_policy(version: int = 0) -> TamiyoPolicy:
    """Return an untrained policy; every version has its own weights."""
    return TamiyoPolicy(PolicyConfig(blueprints=blueprint_names(), seed=version)).eval()


def release(store: str, version: int = 0) -> PolicyCheckpoint:
    """Write an untrained policy below `store`, an fsspec URL, and return its announcement."""
    policy = untrained_policy(version)
    header = CheckpointHeader.of(policy, version=version)
    data = save(policy, None, header)
    return PolicyCheckpoint(
        name="tamiyo",
        version=version,
        time_ms=EPOCH_MS,
        status=CheckpointStatus.RELEASED,
        file=CheckpointStore(f"{store}/checkpoints").write(version, data),
        checksum=checksum(data),
        size_bytes=len(data),
        feature_version=header.feature_version,
        blueprints=list(policy.config.blueprints),
        offsets={},
    )
