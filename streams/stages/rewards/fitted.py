"""An estimator of gains fitted to twins: a small calibrated model over the evidence, with an interval.

It predicts two quantities: the *gain* in the run's final objective, which rewards are made of, and the *near effect*,
the change of the log held-out loss some 300 steps later, which explains them. `evaluation/lab/fit.py` fits it.
Intervals are conformal: half-width = scale x predicted absolute error, with the scale from runs that were not fitted
to (Papadopoulos et al., "Inductive confidence machines for regression", 2002).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import fsspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tamiyo.schemas.errors import PolicyError
from tamiyo.streams.stages.rewards.evidence import Case, as_row, evidence
from tamiyo.streams.stages.rewards.forest import Forest
from tamiyo.streams.stages.rewards.gain import Gain

BUILTIN = Path(__file__).with_name("builtin_estimator.safetensors")

GAIN, NEAR = "gain", "near"
TARGETS = (GAIN, NEAR)
SMALLEST_WIDTH = 1e-3  # nats: no estimate is surer than this


@dataclass(frozen=True, slots=True)
class Fitted:
    """The model of one target."""

    mean: Forest
    error: Forest
    """Predicts the absolute error of the mean."""
    scale: float
    """Half-width of the 90 % interval / predicted absolute error."""

    def estimate(self, row: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Return the value and half of its 90 % interval."""
        return self.mean.predict(row), self.scale * max(self.error.predict(row), SMALLEST_WIDTH)


class FittedEstimator:
    """Estimates the gain and the near effect of an adaptation from the evidence.

    A gain that a shadow twin has measured on the host replaces the estimate of the near effect, and is evidence for the
    gain.
    """

    one_quantity = True

    def __init__(self, version: str, names: tuple[str, ...], models: Mapping[str, Fitted], about: Mapping[str, Any]):
        """Take the models by target.

        Args:
            version: Name of the estimator, recorded with every reward.
            names: The evidence that the models read, in order.
            models: By target, `TARGETS`.
            about: What it was fitted to, for people to read.
        """
        self.version = version
        self.names = names
        self.about = dict(about)
        self._models = dict(models)

    def gain(self, case: Case) -> Gain | None:
        """Return the gain with its interval, or None if no loss was measured in the span."""
        if not any(w.train_loss is not None or w.validation_loss is not None for w in case.inside):
            return None
        return self.estimate(evidence(case))

    def estimate(self, values: Mapping[str, float]) -> Gain:
        """Return the gain that the evidence `values` speaks for."""
        row = as_row(values, self.names)
        value, half_width = self._models[GAIN].estimate(row)
        near, _ = self._models[NEAR].estimate(row)
        measured = values.get("twin", np.nan)
        if values.get("compute_left", 1.0) <= 0:  # nothing from there on counts at equal compute
            value, half_width = 0.0, SMALLEST_WIDTH
        return Gain(value, half_width=half_width, near=near if np.isnan(measured) else measured)

    def near_half_width(self, values: Mapping[str, float]) -> float:
        """Return half of the 90 % interval of the near effect, without a twin."""
        return self._models[NEAR].estimate(as_row(values, self.names))[1]

    def save(self) -> bytes:
        """Return the estimator as a safetensors file."""
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for target, model in self._models.items():
            tensors |= model.mean.tensors(f"{target}.mean") | model.error.tensors(f"{target}.error")
            tensors[f"{target}.scale"] = np.array([model.scale])
        header = {"version": self.version, "names": self.names, "about": self.about}
        return save_tensors(tensors, metadata={"tamiyo": json.dumps(header)})

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read what `save` wrote; raises PolicyError if it is no estimator or a damaged one."""
        try:
            header = json.loads(_metadata(data)["tamiyo"])
            tensors = load_tensors(data)
            names = tuple(str(name) for name in header["names"])
            models = {
                target: Fitted(
                    Forest.of(tensors, f"{target}.mean", len(names)),
                    Forest.of(tensors, f"{target}.error", len(names)),
                    float(tensors[f"{target}.scale"][0]),
                )
                for target in TARGETS
            }
            version, about = str(header["version"]), dict(header["about"])
        except (SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
            raise PolicyError(f"not a fitted estimator: {type(error).__name__}: {error}") from error
        if any(not 0 < model.scale < np.inf for model in models.values()):
            raise PolicyError("not a fitted estimator: the scale of an interval is not positive")
        return cls(version, names, models, about)


@lru_cache(maxsize=4)
def load_fitted(url: str) -> FittedEstimator:
    """Return the estimator at an fsspec URL, or the one shipped with the package for "builtin"; read once a process.

    Raises:
        PolicyError: It cannot be read, or is no estimator.
    """
    try:
        if url == "builtin":
            data = BUILTIN.read_bytes()
        else:
            with fsspec.open(url, "rb") as file:
                data = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise PolicyError(f"the estimator {url!r} cannot be read: {error}") from error
    return FittedEstimator.load(data)


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata
