"""Gradients and updates of the layers' own parameters in one step.

The gradient is taken where autograd adds it to the parameter, in units of the loss that the loop minimises: before it
is clipped, and before an optimiser uses its memory for something else (SGD with Nesterov momentum does). A gradient
scaler multiplies it; the scale is that of the `torch.amp.GradScaler` that calls the optimiser's step, or the
optimiser's `grad_scale`, or the power of two by which the loop has divided the gradient in between.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tamiyo.host._common.device import read_all
from tamiyo.host._layers.kasmina_layer import KasminaLayer

MAX_PARAMETERS = 1 << 18
"""Values of a parameter of which the update is measured; more are thinned evenly."""

_HALF = (torch.float16, torch.bfloat16)
_EXACT = 1e-6  # float32 scales exactly by a power of two, so anything further away is another factor


@dataclass(frozen=True, slots=True)
class Learning:
    """One layer's own parameters in a step.

    Attributes:
        gradient_norm: L2 norm of the gradient of the loss, before clipping.
        update_ratio: Norm of the update divided by that of the values before it.
        loss_scale: Factor of the gradients in the backward pass.
    """

    gradient_norm: float
    update_ratio: float
    loss_scale: float = 1.0


@dataclass(slots=True, eq=False)
class _Step:
    """A call of an optimiser's step."""

    scale: float | Tensor | None
    """Of a gradient scaler; None: not known before the norms are read."""
    scaled: bool
    """Whether the gradients are still scaled when the step begins."""


@dataclass(slots=True, eq=False)
class ParameterGradient:
    """A parameter's gradient and update in the step under way; norms are tensors, to be read later."""

    parameter: nn.Parameter
    gradient: Tensor | None = None
    """The gradient as autograd has left it; None: autograd has not added to it."""
    version: int = 0
    norm: Tensor | None = None
    norm_at_step: Tensor | None = None
    step: _Step | None = None
    values: Tensor | None = None
    """The parameter's values, thinned."""
    before: Tensor | None = None
    """A copy of them from before the step, and after it its norm."""
    change: Tensor | None = None
    updated: bool = False
    discarded: bool = False
    """Whether the gradient so far is of an earlier backward pass than the next."""

    @property
    def touched(self) -> bool:
        """Whether the gradient is not as autograd has left it."""
        gradient = self.parameter.grad
        return gradient is None or gradient is not self.gradient or gradient._version != self.version

    def begin(self) -> bool:
        """Note that a backward pass has reached the layer; return whether it begins a new gradient.

        It does if the loop has discarded the one that autograd left, and adds to that otherwise.
        """
        fresh = self.discarded or (self.gradient is not None and self.touched)
        if fresh:
            self.forget()
            self.discarded = False
        return fresh

    def accumulated(self) -> bool:
        """Take the gradient that autograd has just added to; return whether its norm is of interest."""
        gradient = self.parameter.grad
        if self.updated or gradient is None:
            return False
        self.gradient, self.version = gradient, gradient._version
        return True

    def forget(self) -> None:
        """Forget the gradient."""
        self.gradient = self.norm = self.norm_at_step = None


class GradientRecorder:
    """Records the first update of each parameter of some layers, and the gradient that it was computed from."""

    def __init__(
        self, layers: Mapping[str, KasminaLayer], measuring: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        """Hook into the parameters that are trained now; errors stay inside `measuring`."""
        self._measuring = measuring
        # By id, because the hash of a tensor is a call of Python.
        self._records: dict[int, ParameterGradient] = {}
        self._layers: dict[str, list[ParameterGradient]] = {}
        for layer_id, layer in layers.items():
            trained = [parameter for parameter in layer.own_parameters() if parameter.requires_grad]
            self._layers[layer_id] = [self._records.setdefault(id(p), ParameterGradient(p)) for p in trained]
        self._stepping: list[ParameterGradient] = []
        self._averaged = _averages_gradients()
        """Whether other processes contribute to the gradients, after autograd has left them."""
        self._backward = -1
        """The backward pass under way, as autograd numbers them."""
        self._added: list[ParameterGradient] = []
        """Records whose norms are taken at its end."""
        self._hooks: list[RemovableHandle] = []
        # Weak, because autograd's reference to a hook is invisible to the garbage collector: a run that is dropped
        # amid a measured step would keep its model for ever.
        own = weakref.ref(self)

        def accumulated(parameter: Tensor) -> None:
            recorder = own()
            if recorder is not None:
                recorder._accumulated(parameter)

        with measuring("gradients"):
            for record in self._records.values():
                hook = record.parameter.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def of_layer(self, layer_id: str) -> ParameterGradient | None:
        """Return the record of a layer's first parameter; None if it trains none."""
        return next(iter(self._layers[layer_id]), None)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer, *, evaluates: bool) -> None:
        """Take the state before an update.

        Args:
            optimizer: It is about to update the parameters of its groups.
            evaluates: It runs the backward pass itself, in a closure: the gradients so far are of an earlier one.
        """
        self._take_norms()
        parameters = (id(p) for group in optimizer.param_groups for p in group["params"])
        own = [self._records[key] for key in parameters if key in self._records]
        self._stepping = [
            record for record in own if not record.updated and (evaluates or record.parameter.grad is not None)
        ]
        if not self._stepping:
            return
        scale = getattr(optimizer, "grad_scale", None)
        step = _Step(_calling_scalers_scale() if scale is None else scale, scaled=scale is not None)
        values = [_part(record.parameter) for record in self._stepping]
        copies = torch._foreach_mul(values, 1.0)
        for record, part, before in zip(self._stepping, values, copies, strict=True):
            record.step, record.values, record.before = step, part, before
            if evaluates:
                record.forget()
                record.discarded = True
            elif record.gradient is not record.parameter.grad:  # the loop has put another in its place
                record.norm = None
        if not evaluates:
            # One that is as autograd has left it has the same norm still, unless other processes have added theirs.
            changed = [r for r in self._stepping if self._averaged or r.norm is None or r.touched]
            norms = _norms([r.parameter.grad for r in changed if r.parameter.grad is not None]) if changed else []
            for record, norm in zip(changed, norms, strict=True):
                record.norm_at_step = norm

    @torch.no_grad()
    def after_step(self) -> None:
        """Measure the update for which `before_step` has prepared."""
        stepped = [r for r in self._stepping if r.norm is not None or r.norm_at_step is not None]
        self._stepping = []
        before = [record.before for record in stepped if record.before is not None]
        after = [record.values for record in stepped if record.values is not None]
        if not stepped:
            return
        sizes = _norms(before)
        torch._foreach_sub_(before, after)  # in place, because fresh memory costs more than the arithmetic
        for record, change, size in zip(stepped, _norms(before), sizes, strict=True):
            record.change, record.before, record.updated = change, size, True

    def learning(self) -> dict[str, Learning]:
        """Return gradient and update by layer_id.

        A layer is absent if it trains no parameter, if a parameter with a gradient was not updated by an optimiser that
        is attached, or if a value is not finite.
        """
        read = _read([record for record in self._records.values() if record.updated], self._averaged)
        found = {}
        for layer_id, records in self._layers.items():
            missing = any(record.gradient is not None and not record.updated for record in records)
            mine = [read[record] for record in records if record in read]
            if not mine or missing:
                continue
            size = math.hypot(*(each.size for each in mine))
            learning = Learning(
                math.hypot(*(each.gradient for each in mine)),
                math.hypot(*(each.change for each in mine)) / size if size else 0.0,
                mine[0].scale,
            )
            if math.isfinite(learning.gradient_norm + learning.update_ratio):
                found[layer_id] = learning
        return found

    def _accumulated(self, parameter: Tensor) -> None:
        """Note that autograd has added to a parameter's gradient; all norms are taken at once when it has ended."""
        record = self._records[id(parameter)]
        if not record.accumulated():
            return
        self._added.append(record)
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward = backward
            try:
                torch.autograd.Variable._execution_engine.queue_callback(self._ended)
            except RuntimeError:  # a backward pass of compiled code
                self._ended()

    def _ended(self) -> None:
        with self._measuring("gradients"), torch.no_grad():
            self._take_norms()

    def _take_norms(self) -> None:
        """Take the norms of the gradients that autograd has left."""
        if not self._added:
            return
        added, self._added = self._added, []
        gradients = {id(record): (record, record.gradient) for record in added if record.gradient is not None}
        norms = _norms([gradient for _, gradient in gradients.values()])
        for (record, _), norm in zip(gradients.values(), norms, strict=True):
            record.norm = norm


class _Norms(NamedTuple):
    """Norms over a whole parameter, read from the device, and the scale of its gradient."""

    gradient: float
    size: float
    change: float
    scale: float


def _read(records: Sequence[ParameterGradient], averaged: bool) -> dict[ParameterGradient, _Norms]:
    """Return the norms of updated parameters, with one transfer from each device.

    Args:
        records: Of the updated parameters.
        averaged: Whether other processes contribute to the gradients.
    """
    tensors = [t for r in records for t in (r.norm, r.norm_at_step, r.before, r.change) if t is not None]
    scales = {id(record.step): record.step.scale for record in records if record.step is not None}
    tensors += [scale for scale in scales.values() if isinstance(scale, Tensor)]
    values: dict[int, float] = dict(zip(map(id, tensors), read_all(tensors), strict=True))
    by_step: defaultdict[_Step | None, list[ParameterGradient]] = defaultdict(list)
    for record in records:
        by_step[record.step].append(record)
    found = {}
    for step, updated in by_step.items():
        assert step is not None
        if step.scale is not None:
            scale = values[id(step.scale)] if isinstance(step.scale, Tensor) else step.scale
        else:
            both = [r for r in updated if r.norm is not None and r.norm_at_step is not None and not averaged]
            total, at_step = (math.hypot(*(values[id(t)] for t in column)) for column in (
                [r.norm for r in both], [r.norm_at_step for r in both]
            ))  # fmt: skip
            scale = _power_of_two(total, at_step)
        for record in updated:
            if record.norm is None or (averaged and record.norm_at_step is not None):
                gradient = values[id(record.norm_at_step)] / (scale if step.scaled else 1.0)
            else:
                gradient = values[id(record.norm)] / scale
            assert record.values is not None
            thinned = math.sqrt(record.parameter.numel() / max(1, record.values.numel()))
            size, change = values[id(record.before)], values[id(record.change)]
            found[record] = _Norms(gradient, thinned * size, thinned * change, scale)
    return found


def _calling_scalers_scale() -> float | None:
    """Return the scale of the gradient scaler that calls the optimiser; None if none does.

    Only the scaler knows it: it divides the gradients before, and the loop may clip them in between.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "step":
            caller: Any = frame.f_locals.get("self")
            if isinstance(caller, torch.amp.GradScaler) and caller.is_enabled():
                return caller.get_scale()
        frame = frame.f_back
    return None


def _power_of_two(norm: float, norm_at_step: float) -> float:
    """Return norm / norm_at_step if it is a power of two above 1, which a loop's own scaling is and clipping is not."""
    if not (0 < norm_at_step < norm < math.inf):
        return 1.0
    ratio = norm / norm_at_step
    power = 2.0 ** round(math.log2(ratio))
    return power if power > 1 and abs(ratio / power - 1) < _EXACT else 1.0


def _averages_gradients() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the L2 norm of each tensor; that of half precision in single, because it may exceed 65,504."""
    return torch._foreach_norm([_single(t) if t.is_sparse or t.dtype in _HALF else t for t in tensors])


def _single(gradient: Tensor) -> Tensor:
    values: Tensor = gradient.coalesce().values() if gradient.is_sparse else gradient  # type: ignore[no-untyped-call]
    return values.float() if values.dtype in _HALF else values


def _part(parameter: nn.Parameter) -> Tensor:
    """Return the parameter's values, thinned evenly if there are more than MAX_PARAMETERS: a view in any layout."""
    values = parameter.detach()
    for dimension, size in enumerate(values.shape):
        excess = values.numel() / MAX_PARAMETERS
        if excess <= 1:
            break
        every = min(size, math.ceil(excess))
        if every > 1:
            values = values[(slice(None),) * dimension + (slice(None, None, every),)]
    return values
