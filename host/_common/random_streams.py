"""The global random streams: torch's on every device of a model, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomStreams:
    """A copy of the global random streams, from which a computation can draw without moving the originals."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        """Copy the streams as they are now; `devices` are those whose torch stream is copied beside the CPU's."""
        self._devices = [device for device in devices if device.type == "cuda"]
        self._states = self._read()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Draw from the copy inside the context, not nested; afterwards the global streams are as they were."""
        outside = self._read()
        self._write(self._states)
        try:
            yield
        finally:
            self._states = self._read()
            self._write(outside)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draw from the global streams inside the context; afterwards they are as they were when copied."""
        try:
            yield
        finally:
            self._write(self._states)

    def _read(self) -> tuple[Any, ...]:
        on_devices = [torch.cuda.get_rng_state(device) for device in self._devices]
        return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_devices

    def _write(self, states: tuple[Any, ...]) -> None:
        python, numpy, cpu, on_devices = states
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for device, state in zip(self._devices, on_devices, strict=True):
            torch.cuda.set_rng_state(state, device)
