"""Policies as files: safetensors with a JSON header, read only where every byte is as it was written.

A file holds the policy's weights under `policy/`, the tensors of the learner's state under `state/`, and two JSON texts
in the safetensors metadata: `header`, and `state`, the learner's state with a reference in the place of each tensor.
Both stand under one key, since safetensors writes several in an order that changes from call to call.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
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

__all__ = ["CheckpointHeader", "CheckpointStore", "checksum", "load", "save"]

METADATA_KEY = "tamiyo"

# Parameters with one entry a kind of action, and the axis of it.
KIND_AXIS = {
    "node_actions.3.weight": 0,
    "node_actions.3.bias": 0,
    "rewards.node_last": 2,
    "rewards.node_last_bias": 2,
    "rewards.prior_node_last": 2,
}


class CheckpointHeader(BaseModel):
    """What a checkpoint says about itself; the learner resumes from its offsets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("tamiyo", min_length=1, max_length=200)
    version: int = Field(ge=0)
    parent_version: int | None = Field(None, ge=0)
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
        return cls(
            version=version,
            feature_version=FEATURE_VERSION,
            config=policy.config,
            calibration=policy.calibration,
            **fields,
        )


def save(policy: TamiyoPolicy, optimizer_state: Mapping[str, Any] | None, header: CheckpointHeader) -> bytes:
    """Return the file's bytes: the same state gives the same bytes.

    `optimizer_state` may be any nesting of dict (str or int keys), list, tuple, str, number, bool, None and tensors:
    a torch optimiser's state_dict, or several under names of the learner's choosing (a tuple comes back as a list).
    Raises PolicyError for anything else in it, or where a weight is not finite.
    """
    tensors = {f"policy/{name}": _own(value) for name, value in policy.state_dict().items()}
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise PolicyError(f"a policy whose weights are not finite is not saved: {', '.join(broken)}")
    texts = {
        "header": json.dumps(header.model_dump(mode="json"), sort_keys=True, allow_nan=False),
        "state": json.dumps(_pack(optimizer_state, "state", tensors), sort_keys=True, allow_nan=False),
    }
    return safetensors.save(tensors, {METADATA_KEY: json.dumps(texts, sort_keys=True)})


def checksum(data: bytes) -> str:
    """Return the SHA-256 of `data`, hex."""
    return hashlib.sha256(data).hexdigest()


def load(
    data: bytes, checksum: str | None = None, *, blueprints: Sequence[str] | None = None
) -> tuple[TamiyoPolicy, CheckpointHeader, Any]:
    """Return (policy in eval mode, header, optimizer_state) from a file's bytes.

    With `blueprints` other than the file's, action rows are mapped by name: known kinds keep what they learned, new
    ones start as the heuristic, and the optimiser's state is None, since it fits other shapes.
    Raises CheckpointCorrupt for bytes that are not what was saved, PolicyError for another feature catalogue.
    """
    if checksum is not None and hashlib.sha256(data).hexdigest() != checksum:
        raise CheckpointCorrupt(f"checkpoint of {len(data)} bytes does not have the checksum {checksum} it should")
    try:
        texts = json.loads(_metadata(data)[METADATA_KEY])
        tensors = safetensors.load(data)
        header = CheckpointHeader.model_validate_json(texts["header"])
        state = _unpack(json.loads(texts["state"]), tensors)
    except (SafetensorError, ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointCorrupt(f"checkpoint of {len(data)} bytes cannot be read: {error}") from error
    if header.feature_version != FEATURE_VERSION:
        raise PolicyError(
            f"checkpoint {header.version} reads feature version {header.feature_version}, this program writes "
            f"{FEATURE_VERSION}: let the learner start anew, or run the release that made it"
        )
    weights = {name.removeprefix("policy/"): v for name, v in tensors.items() if name.startswith("policy/")}
    policy = copy.deepcopy(_blank(header.config))
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointCorrupt(f"checkpoint {header.version} does not hold its own network: {error}") from error
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise CheckpointCorrupt(f"checkpoint {header.version} holds weights that are not finite")
    if blueprints is not None and tuple(blueprints) != header.config.blueprints:
        policy, state = _with_blueprints(policy, tuple(blueprints)), None
    policy.calibration = header.calibration
    return policy.eval(), header, state


@lru_cache(maxsize=4)
def _blank(config: PolicyConfig) -> TamiyoPolicy:
    # Building one takes torch-geometric most of a decision's latency budget, copying one a tenth of that.
    return TamiyoPolicy(config)


def _with_blueprints(old: TamiyoPolicy, blueprints: tuple[str, ...]) -> TamiyoPolicy:
    """The same policy over other kinds of action; kinds it did not know are as in a new policy."""
    new = TamiyoPolicy(old.config.model_copy(update={"blueprints": blueprints}))
    shared = [kind for kind in new.kinds if kind in old.kinds]
    to = torch.tensor([new.kinds.index(kind) for kind in shared])
    come_from = torch.tensor([old.kinds.index(kind) for kind in shared])
    weights = new.state_dict()
    for name, value in old.state_dict().items():
        axis = KIND_AXIS.get(name)
        if axis is None:
            weights[name] = value
        else:
            weights[name] = weights[name].index_copy(axis, to, value.index_select(axis, come_from))
    new.load_state_dict(weights)
    return new


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of safetensors bytes, which its torch reader does not return."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError("the header is cut off")
    found = json.loads(data[8 : 8 + length])["__metadata__"]
    if not isinstance(found, dict):
        raise ValueError("there is no metadata")
    return found


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU: safetensors refuses shared memory."""
    return tensor.detach().cpu().contiguous().clone()


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors put into `tensors` under the path they stand at.

    JSON keys are text and torch numbers its parameters, so a dict becomes a list of pairs.
    """
    if isinstance(value, Tensor):
        tensors[path] = _own(value)
        return {"tensor": path}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str | int) for key in value):
            raise PolicyError(f"{path} has keys that are neither text nor whole numbers")
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise PolicyError(f"{path} is a {type(value).__name__} ({value!r}): a checkpoint holds plain values and tensors")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["dict"]}
    return value
