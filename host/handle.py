"""The handle of an attached run: what a training loop calls after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch import Tensor, nn

Validation = float | Tensor | tuple[float | Tensor, float | Tensor] | Mapping[str, float | Tensor]


@dataclass(frozen=True, slots=True)
class HandleStats:
    """Where a run stands, as the SDK has counted it."""

    run_id: str
    step: int
    overhead_ratio: float
    sdk_seconds: float
    training_seconds: float
    published_records: int
    dropped_records: int
    decisions: int
    repeated: int
    executed: int
    refused: int
    failed: int
    parameters: int
    kernel_parameters: int
    connected: bool


class Handle:
    """Made by `attach`."""

    run_id: str
    epoch: int

    @property
    def sampling(self) -> bool:
        """Whether the step under way is measured (so that a loop computes an accuracy only then)."""
        raise NotImplementedError

    @property
    def stats(self) -> HandleStats:
        raise NotImplementedError

    def step(self, *, loss: Tensor | float, accuracy: Tensor | float | None = None, samples: int | None = None) -> None:
        """Call once after each optimiser step."""
        raise NotImplementedError

    def validate(self, fn: Callable[[], Validation]) -> Validation:
        """Run the user's validation; its loss (and accuracy) goes into the next frame."""
        raise NotImplementedError

    def export(self) -> nn.Module:
        raise NotImplementedError

    def close(self) -> None:
        """End the run: final frames, answers to what is still open, delivery in bounded time."""
        raise NotImplementedError

    def detach(self) -> None:
        """Close, and put back the plain layers wherever no kernel was grown."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
