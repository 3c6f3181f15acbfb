"""What faults are injected into."""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tamiyo.evaluation.common.installation import Installation
from tamiyo.evaluation.faults.disk import Disk
from tamiyo.evaluation.faults.telemetry import Telemetry


@dataclass(slots=True)
class Scene:
    """An installation with its surroundings, and locks for what only one fault at a time may change."""

    installation: Installation
    workers: Sequence[str]
    telemetry: Telemetry
    kernels: Disk
    checkpoints: Disk
    logs: Disk
    """Under the broker."""
    kinds: Sequence[str]
    """Those that are possible here."""
    broker: threading.Lock = field(default_factory=threading.Lock)
    """Held while a fault changes the broker: it cannot be stopped while it starts."""
    learners: threading.Lock = field(default_factory=threading.Lock)
    """Held while there are two learners, so that there is never a third."""
    registry: threading.Lock = field(default_factory=threading.Lock)
    """Held while the schema registry is away."""


Fault = Callable[[Scene, random.Random], str]
"""Injects one fault, returns when its cause is over, and describes it: a killed process is being restarted, the broker
runs."""
