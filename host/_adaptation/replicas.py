"""The ranks of a distributed run: one of them receives the decisions, and all execute them at the same step.

In data-parallel training every rank has a copy of the network, and the copies must stay equal to the bit. Rank 0
carries the telemetry and receives the decisions. Every few steps it sends what has arrived, kernels included, to the
others, so that each rank executes the same decisions at the same step on the same bytes. DistributedDataParallel does
not know parameters that join later, so the gradients of kernels are averaged here, as soon as the backward pass has
made them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tamiyo.host._client.transport import InboundRecord, Transport
from tamiyo.host._common import clock
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._layers.kasmina_layer import KERNELS
from tamiyo.schemas.adaptation import AdaptationDecision, CompiledKernel, ControlCommand, KernelStatus
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.errors import ConfigurationError, KernelError
from tamiyo.schemas.record import Record

log = logging.getLogger(__name__)

T = TypeVar("T")

_RECORDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (AdaptationDecision, CompiledKernel, ControlCommand)
}


_hooks: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()
"""Those that average a kernel's gradients: a kernel may outlive its run, and go on in another one."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What rank 0 sends: its clock, and each record with the file of its kernel."""

    seconds: float
    records: tuple[tuple[str, bytes, bytes | None], ...]


class Replicas:
    """The group of ranks that train one network. Every method must be called by all of them alike."""

    def __init__(self, model: nn.Module, *, interval: int, check_interval: int, timeout_s: float) -> None:
        """Join the ranks over which `model` is replicated: those of its DistributedDataParallel, else all.

        Args:
            model: As the training loop has it.
            interval: Steps between two exchanges.
            check_interval: Steps between two searches for kernels that have failed on some rank.
            timeout_s: Seconds to wait for the other ranks.
        """
        over = model.process_group if isinstance(model, nn.parallel.DistributedDataParallel) else dist.group.WORLD
        ranks = dist.get_process_group_ranks(over)
        local = len(ranks) < dist.get_world_size()
        # Groups of its own, so that no order among these operations and the loop's is needed.
        timeout = timedelta(seconds=timeout_s)
        self._control = dist.new_group(ranks, timeout, backend="gloo", use_local_synchronization=local)
        self._gradients = dist.new_group(ranks, use_local_synchronization=local)
        self._interval = interval
        self._check_interval = check_interval
        self._averaged: WeakSet[nn.Module] = WeakSet()
        self._first = ranks[0]
        self._seconds = 0.0
        self._timeout_s = timeout_s
        self.apart = False
        """Whether the ranks have missed each other: none of them changes its network any more."""
        self.ranks = tuple(ranks)
        """Their global ranks."""
        self.size = len(ranks)
        """Number of ranks."""
        self.leads = dist.get_rank() == self._first
        """Whether this rank carries the telemetry and receives the decisions."""

    def agree(self, value: T) -> T:
        """Return rank 0's value."""
        values = [value if self.leads else None]
        with self._meeting():
            dist.broadcast_object_list(values, src=self._first, group=self._control)
        agreed: Any = values[0]
        return agreed  # type: ignore[no-any-return]

    def seconds(self) -> float:
        """Return rank 0's clock at the last exchange: what is overdue is so for all ranks."""
        return self._seconds

    def exchange(self, step: int, transport: Transport, cache: KernelCache) -> Sequence[InboundRecord]:
        """Return what has arrived at rank 0, on every rank; nothing between two exchanges.

        Args:
            step: The training step, the same on all ranks.
            transport: Rank 0's; the others' has nothing.
            cache: Where rank 0 has the kernels, and the others put them.
        """
        if self.apart or step % self._interval:
            return ()
        own = transport.receive()
        sent = self.agree(_Sent(clock.seconds(), tuple(_packed(each, cache) for each in own)) if self.leads else None)
        assert sent is not None
        self._seconds = sent.seconds
        return own if self.leads else [_unpacked(*each, cache) for each in sent.records]

    def checks(self, step: int) -> bool:
        """Return whether the ranks search for failed kernels at `step`."""
        return step % self._check_interval == 0 and not self.apart

    def worst(self, values: Tensor) -> Tensor:
        """Return the largest of every rank's values, [n], on the CPU."""
        found = values.detach().to("cpu", torch.float32, copy=True)
        with self._meeting():
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._control)
        return found

    def common(self, names: Iterable[str]) -> set[str]:
        """Return the names that every rank has."""
        return set.intersection(*map(set, self._gathered(sorted(names))))

    def require_equal(self, saved: Mapping[str, Any]) -> None:
        """Return if every rank loads the state of the same step with the same kernels. Raises KernelError if not."""
        state = saved.get("model")
        names = sorted(name for name in state if f".{KERNELS}." in f".{name}") if isinstance(state, Mapping) else None
        found = self._gathered((saved.get("step"), names))
        if any(each != found[0] for each in found):
            steps = ", ".join(str(step) for step, _ in found)
            raise KernelError(
                f"the ranks load different states (steps {steps}): call load_state_dict with the same one on every rank"
            )

    def _gathered(self, value: Any) -> list[Any]:
        """Return every rank's value."""
        found: list[Any] = [None] * self.size
        with self._meeting():
            dist.all_gather_object(found, value, group=self._control)
        return found

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Explain a collective operation that not all ranks have taken part in; none is begun after it."""
        try:
            yield
        except RuntimeError as error:  # of torch.distributed: a timeout, or a process that has ended
            self.apart = True
            raise KernelError(
                f"the ranks of this run did not meet within {self._timeout_s:g} s: every rank must call attach, "
                "handle.step and handle.load_state_dict equally often; from now on no decision is executed "
                f"({error})"
            ) from error

    def average_gradients(self, kernel: nn.Module) -> None:
        """Average the gradients of a kernel's parameters over the ranks in every backward pass from now on.

        With accumulation each pass adds to a gradient that is the same everywhere, so that the average is right too.
        """
        if kernel in self._averaged:
            return
        self._averaged.add(kernel)
        for hook in _hooks.pop(kernel, ()):  # of an earlier run
            hook.remove()
        _hooks[kernel] = [
            parameter.register_post_accumulate_grad_hook(self._average)  # type: ignore[no-untyped-call]
            for parameter in kernel.parameters()
        ]

    def _average(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=self._gradients)
            parameter.grad.div_(self.size)


def _packed(record: InboundRecord, cache: KernelCache) -> tuple[str, bytes, bytes | None]:
    file = None
    if isinstance(record, CompiledKernel) and record.status is KernelStatus.COMPILED:
        try:
            file = cache.file(record.kernel_id, record.checksum)
        except KernelError as error:  # no rank has it then, and each fails alike
            log.warning("kernel %s cannot be sent to the other ranks: %s", record.kernel_id, error)
    return type(record).__name__, encode(record), file


def _unpacked(name: str, data: bytes, file: bytes | None, cache: KernelCache) -> InboundRecord:
    record: Any = decode(data, _RECORDS[name])
    if file is not None:
        cache.store.write(record.kernel_id, file)
    found: InboundRecord = record
    return found


def require_ranks() -> None:
    """Raise ConfigurationError unless torch.distributed is ready."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigurationError("distributed=True needs torch.distributed.init_process_group first")


def replicated() -> bool:
    """Return whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
