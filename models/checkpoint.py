"""Policies as files: safetensors with a JSON header, written whole or not at all, checked when read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tamiyo.models.conformal import Calibration
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy


class CheckpointHeader(BaseModel):
    """What a checkpoint says about itself; the learner resumes from its offsets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("tamiyo", min_length=1, max_length=200)
    version: int = Field(ge=0)
    parent_version: int | None = None
    time_ms: int = Field(0, ge=0)
    feature_version: int
    config: PolicyConfig
    calibration: Calibration = Calibration()
    offsets: dict[str, int] = Field({}, description="Next offset of the experience topic, by partition")
    experiences: int = Field(0, ge=0)
    updates: int = Field(0, ge=0)
    metrics: dict[str, float] = {}

    @classmethod
    def of(cls, policy: TamiyoPolicy, *, version: int, **fields: Any) -> CheckpointHeader:
        """Return a header with the policy's own config and calibration."""
        raise NotImplementedError


def save(policy: TamiyoPolicy, optimizer_state: Mapping[str, Any] | None, header: CheckpointHeader) -> bytes:
    """Return the file's bytes: the same state gives the same bytes.

    `optimizer_state` may be any nesting of dict (str or int keys), list, tuple, str, number, bool, None and tensors:
    a torch optimiser's state_dict, or several under names of the learner's choosing (a tuple comes back as a list).
    """
    raise NotImplementedError


def checksum(data: bytes) -> str:
    """Return the SHA-256 of `data`, hex."""
    raise NotImplementedError


def load(
    data: bytes, checksum: str | None = None, *, blueprints: Sequence[str] | None = None
) -> tuple[TamiyoPolicy, CheckpointHeader, Any]:
    """Return (policy in eval mode, header, optimizer_state) from a file's bytes.

    With `blueprints` other than the file's, action rows are mapped by name: known kinds keep what they learned, new
    ones start as the heuristic, and the optimiser's state is None, since it fits other shapes.
    Raises CheckpointCorrupt for bytes that are not what was saved, PolicyError for another feature catalogue.
    """
    raise NotImplementedError


class CheckpointStore:
    """Checkpoint files below an fsspec URL; names are `policy-000012.safetensors`, nothing else is opened."""

    def __init__(self, url: str) -> None: ...

    @staticmethod
    def file_name(version: int) -> str:
        """Return the name of a version's file."""
        return f"policy-{version:06d}.safetensors"

    def write(self, version: int, data: bytes) -> str:
        """Store `data` atomically; returns the file's name. An existing file of that version is replaced."""
        raise NotImplementedError

    def read(self, file: str) -> bytes:
        """Return a file's bytes. Raises PolicyError for a name that is no checkpoint's, or where there is none."""
        raise NotImplementedError

    def versions(self) -> list[int]:
        """Return the versions there are, ascending."""
        raise NotImplementedError

    def delete(self, version: int) -> None:
        """Remove a version's file, if it is there."""
        raise NotImplementedError
