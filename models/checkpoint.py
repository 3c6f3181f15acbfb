"""Policies as files: safetensors with a JSON header, verified by checksum before they are used.

A file holds the policy's weights under `policy/`, the tensors of the learner's state under `state/`, and two JSON texts
in the safetensors metadata: `header`, and `state`, the learner's state with a reference in place of each tensor. Both
texts share one metadata key, because safetensors writes several keys in an order that changes from call to call.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from tamiyo.models.checkpoint_store import CheckpointStore
from tamiyo.models.conformal import Calibration
from tamiyo.models.features import FEATURE_VERSION
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.errors import CheckpointCorrupt, PolicyError
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint

__all__ = [
    "CheckpointHeader",
    "CheckpointStore",
    "GateResult",
    "ReleaseRecord",
    "Verdict",
    "announcement",
    "checksum",
    "load",
    "read_header",
    "save",
]

METADATA_KEY = "tamiyo"

# Parameters with one entry per kind of action, and the axis of that entry.
KIND_AXIS = {
    "node_actions.3.weight": 0,
    "node_actions.3.bias": 0,
    "rewards.node_last": 2,
    "rewards.node_last_bias": 2,
    "rewards.prior_node_last": 2,
}


class Verdict(StrEnum):
    """What a release gate found."""

    PASSED = "passed"
    FAILED = "failed"
    NO_EVIDENCE = "no_evidence"
    """Too little is known; the candidate passes unless the gates are strict."""


class GateResult(BaseModel):
    """One gate's verdict on one candidate."""

    model_config = ConfigDict(frozen=True)

    gate: str = Field(description="The gate's name")
    verdict: Verdict
    reason: str = Field("", description="Why, with the measured values")


class ReleaseRecord(BaseModel):
    """How a version came to be released. Readers of older releases ignore it."""

    model_config = ConfigDict(frozen=True)

    gates: tuple[GateResult, ...] = Field((), description="Verdicts on this version")
    refused: tuple[GateResult, ...] = Field((), description="Failures of the candidates since the parent, newest last")
    rolled_back: tuple[int, ...] = Field((), description="Versions rolled back so far, ascending; the last 200")
    reference_version: int | None = Field(None, ge=0, description="Version that live rewards are compared with")
    failures: dict[str, int] = Field({}, description="Failures of candidates since the parent, by gate")

    def metrics(self) -> dict[str, float]:
        """Return the verdicts as an announcement has them.

        Returns:
            gates/NAME: 1 for a gate that was passed, 0 for one that had too little evidence; gates_failed/NAME: the
            candidates since the parent that failed it.
        """
        passed = {f"gates/{each.gate}": float(each.verdict is Verdict.PASSED) for each in self.gates}
        return {**passed, **{f"gates_failed/{gate}": float(count) for gate, count in self.failures.items()}}


class CheckpointHeader(BaseModel):
    """Metadata of a checkpoint: its version, the network's shape, and where the learner resumes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("tamiyo", min_length=1, max_length=200, description="The policy's name")
    version: int = Field(ge=0, description="Rises by one with every release")
    parent_version: int | None = Field(None, ge=0, description="Version it was learned from; none for the first")
    time_ms: int = Field(0, ge=0, description="When it was made, ms since the epoch, UTC")
    feature_version: int = Field(description="Version of the feature catalogue that it reads")
    config: PolicyConfig
    calibration: Calibration = Calibration()
    offsets: dict[str, int] = Field({}, description="Next offset of the experience topic, by partition")
    experiences: int = Field(0, ge=0, description="Experiences learned from so far")
    updates: int = Field(0, ge=0, description="Updates accepted so far")
    metrics: dict[str, float] = Field({}, description="losses/... and charts/... of the last accepted update")
    release: ReleaseRecord = ReleaseRecord()

    @classmethod
    def of(cls, policy: TamiyoPolicy, *, version: int, **fields: Any) -> CheckpointHeader:
        """Return a header with the policy's own config and calibration.

        Args:
            policy: The policy to describe.
            version: Its version, >= 0.
            **fields: Any other field of the header.
        """
        return cls(
            version=version,
            feature_version=FEATURE_VERSION,
            config=policy.config,
            calibration=policy.calibration,
            **fields,
        )


def announcement(header: CheckpointHeader, file: str, data: bytes) -> PolicyCheckpoint:
    """Return the record that announces a stored checkpoint as released.

    Args:
        header: Its header.
        file: Its file name in the store.
        data: The file's bytes.
    """
    return PolicyCheckpoint(
        name=header.name,
        version=header.version,
        parent_version=header.parent_version,
        time_ms=header.time_ms,
        status=CheckpointStatus.RELEASED,
        file=file,
        checksum=checksum(data),
        size_bytes=len(data),
        feature_version=header.feature_version,
        blueprints=list(header.config.blueprints),
        offsets=header.offsets,
        experiences=header.experiences,
        updates=header.updates,
        metrics={**header.metrics, **header.release.metrics()},
    )


def save(policy: TamiyoPolicy, optimizer_state: Mapping[str, Any] | None, header: CheckpointHeader) -> bytes:
    """Return the bytes of a checkpoint file; the same state gives the same bytes.

    Args:
        policy: The policy; its weights must be finite.
        optimizer_state: The learner's state, such as a torch optimiser's state_dict: any nesting of dict (str or int
            keys), list, tuple, str, number, bool, None and tensors. `load` returns a tuple as a list.
        header: Metadata, from `CheckpointHeader.of`.

    Raises:
        PolicyError: The state contains anything else, or a weight is not finite.

    Example:
        >>> from tamiyo.models.policy import PolicyConfig
        >>> policy = TamiyoPolicy(PolicyConfig(blueprints=("low_rank",), hidden=8, layers=1))
        >>> data = save(policy, None, CheckpointHeader.of(policy, version=3))
        >>> restored, header, state = load(data, checksum(data))
        >>> header.version, restored.config == policy.config
        (3, True)
    """
    tensors = {f"policy/{name}": _own(value) for name, value in policy.state_dict().items()}
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise PolicyError(
            f"expected finite weights, but these are not, so the policy is not saved: {', '.join(broken)}"
        )
    texts = {
        "header": json.dumps(header.model_dump(mode="json", exclude={"release"}), sort_keys=True, allow_nan=False),
        "state": json.dumps(_pack(optimizer_state, "state", tensors), sort_keys=True, allow_nan=False),
    }
    if header.release != ReleaseRecord():
        # Apart from the header, in which earlier programs refuse fields that they do not know.
        texts["release"] = json.dumps(header.release.model_dump(mode="json"), sort_keys=True, allow_nan=False)
    return safetensors.save(tensors, {METADATA_KEY: json.dumps(texts, sort_keys=True)})


def checksum(data: bytes) -> str:
    """Return the SHA-256 of a checkpoint file.

    Args:
        data: The file's bytes.

    Returns:
        64 hex digits.
    """
    return hashlib.sha256(data).hexdigest()


def load(
    data: bytes, checksum: str | None = None, *, blueprints: Sequence[str] | None = None
) -> tuple[TamiyoPolicy, CheckpointHeader, Any]:
    """Return the policy of a checkpoint file.

    Args:
        data: The file's bytes.
        checksum: The SHA-256 they must have, hex; None skips the check.
        blueprints: Blueprints that the policy shall choose among; None keeps the file's. Others map the action rows by
            name: known kinds keep their weights, new ones start as the heuristic.

    Returns:
        The policy in eval mode, the header, and the learner's state. The state is None where `blueprints` changed the
        shapes that it fits.

    Raises:
        CheckpointCorrupt: The bytes are not those that were saved.
        PolicyError: The policy reads another version of the feature catalogue.
    """
    if checksum is not None and hashlib.sha256(data).hexdigest() != checksum:
        raise CheckpointCorrupt(f"expected SHA-256 {checksum}, but the checkpoint of {len(data)} bytes has another")
    try:
        texts = json.loads(_metadata(data)[METADATA_KEY])
        tensors = safetensors.load(data)
        header = _header(texts)
        state = _unpack(json.loads(texts["state"]), tensors)
    except (SafetensorError, ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointCorrupt(f"checkpoint of {len(data)} bytes cannot be read: {error}") from error
    if header.feature_version != FEATURE_VERSION:
        raise PolicyError(
            f"checkpoint {header.version} reads feature version {header.feature_version}, but this program writes "
            f"{FEATURE_VERSION}: start a new policy, or run the release that made the checkpoint"
        )
    weights = {name.removeprefix("policy/"): v for name, v in tensors.items() if name.startswith("policy/")}
    policy = copy.deepcopy(_blank(header.config))
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointCorrupt(f"the weights of checkpoint {header.version} do not fit its config: {error}") from error
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise CheckpointCorrupt(f"checkpoint {header.version} has weights that are not finite")
    if blueprints is not None and tuple(blueprints) != header.config.blueprints:
        policy, state = _with_blueprints(policy, tuple(blueprints)), None
    policy.calibration = header.calibration
    return policy.eval(), header, state


def read_header(store: CheckpointStore, version: int) -> CheckpointHeader:
    """Return a stored version's header without reading its weights; only a truncated file is recognised as corrupt.

    Args:
        store: The checkpoint store.
        version: A stored version.

    Raises:
        CheckpointCorrupt: The header cannot be read, the file is truncated, or it has another version.
        PolicyError: There is no such file.
    """
    file = store.file_name(version)
    try:
        length = int.from_bytes(store.read_range(file, 0, 8), "little")
        size = store.size(file)
        if length > size - 8:
            raise ValueError("the header is truncated")
        described = json.loads(store.read_range(file, 8, 8 + length))
        ends = [each["data_offsets"][1] for name, each in described.items() if name != "__metadata__"]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError("the weights are truncated")
        header = _header(json.loads(described["__metadata__"][METADATA_KEY]))
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointCorrupt(f"{file} in {store.url} cannot be read: {error}") from error
    if header.version != version:
        raise CheckpointCorrupt(f"{file} in {store.url} has version {header.version}")
    return header


def _header(texts: Mapping[str, str]) -> CheckpointHeader:
    header = CheckpointHeader.model_validate_json(texts["header"])
    if "release" not in texts:
        return header
    return header.model_copy(update={"release": ReleaseRecord.model_validate_json(texts["release"])})


@lru_cache(maxsize=4)
def _blank(config: PolicyConfig) -> TamiyoPolicy:
    # torch-geometric takes most of a decision's latency budget to build one; a copy takes a tenth of that.
    return TamiyoPolicy(config)


def _with_blueprints(old: TamiyoPolicy, blueprints: tuple[str, ...]) -> TamiyoPolicy:
    """Return the same policy over other kinds of action; new kinds start as in a new policy."""
    new = TamiyoPolicy(old.config.model_copy(update={"blueprints": blueprints}))
    shared = [kind for kind in new.kinds if kind in old.kinds]
    to = torch.tensor([new.kinds.index(kind) for kind in shared])
    origin = torch.tensor([old.kinds.index(kind) for kind in shared])
    weights = new.state_dict()
    for name, value in old.state_dict().items():
        axis = KIND_AXIS.get(name)
        if axis is None:
            weights[name] = value
        else:
            weights[name] = weights[name].index_copy(axis, to, value.index_select(axis, origin))
    new.load_state_dict(weights)
    return new


def _metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of safetensors bytes, which safetensors' torch reader leaves out."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError("the header is truncated")
    found = json.loads(data[8 : 8 + length])["__metadata__"]
    if not isinstance(found, dict):
        raise ValueError("there is no metadata")
    return found


def _own(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU: safetensors refuses tensors that share storage."""
    return tensor.detach().cpu().contiguous().clone()


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON values, with its tensors moved into `tensors` under their path.

    A dict becomes a list of pairs, because JSON keys are text and torch numbers its parameters.
    """
    if isinstance(value, Tensor):
        tensors[path] = _own(value)
        return {"tensor": path}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str | int) for key in value):
            raise PolicyError(f"expected text or whole numbers as keys of {path}")
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise PolicyError(f"expected plain values and tensors, but {path} is a {type(value).__name__} ({value!r})")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["dict"]}
    return value
