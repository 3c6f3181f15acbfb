"""Telemetry in quantity: encoded once, then sent repeatedly under the names of other runs.

Ten times the rate of a pipeline is too much to simulate and encode on the same machine. A run's name occurs once in
every record, so the same telemetry of another run has the same bytes with another name of equal length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tamiyo.evaluation.common.account import Ledger
from tamiyo.evaluation.common.live_runs import sampled_steps
from tamiyo.evaluation.common.simulated_runs import TOPICS, Load, topology
from tamiyo.schemas.codec import encode
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import TOPOLOGY

PLACEHOLDER = "overload-0000000"
Message = tuple[str, bytes]
"""Topic and value."""
Produce = Callable[[str, bytes, str], None]


@dataclass(frozen=True)
class Template:
    """One run's telemetry, encoded."""

    topology: bytes
    steps: Sequence[tuple[int, Sequence[Message], Sequence[Message]]]
    """Step, its messages, and its messages if it is the run's last."""

    @classmethod
    def of(cls, layers: int, frames: int) -> "Template":
        """Encode a run of `frames` sampled steps."""
        load = Load(runs=1, layers=layers, frames=frames)
        steps = []
        for records in sampled_steps(load, 0):
            named = [record.model_copy(update={"run_id": PLACEHOLDER}) for record in records]
            step: int = named[0].step  # type: ignore[attr-defined]
            steps.append((step, [_message(each) for each in named], [_message(_final(each)) for each in named]))
        return cls(encode(topology(PLACEHOLDER, layers)), steps)


def _message(record: Record) -> Message:
    return TOPICS[type(record)].name, encode(record)


def _final(record: Record) -> Record:
    companion = bool(record.companions) and TOPICS[type(record)].name in record.companions  # type: ignore[attr-defined]
    return record.model_copy(update={"final": companion})


@dataclass
class _Live:
    run_id: str
    next: int = 0


@dataclass
class Flood:
    """`size` runs at a time that step in turn on each `publish`; a run that ends is followed by another."""

    template: Template
    size: int
    produce: Produce
    ledger: Ledger
    numbers: int = 0
    records: int = 0
    _live: list[_Live] = field(default_factory=list)
    _turn: int = 0

    def publish(self, records: int, now: float) -> int:
        """Publish whole sampled steps until at least `records` are sent; return their number."""
        sent = 0
        while len(self._live) < self.size:
            run = self._begin()
            # The first runs begin at different steps, so that windows are not completed all at once.
            run.next = len(self._live) * len(self.template.steps) // self.size
            self._live.append(run)
        while sent < records:
            self._turn = (self._turn + 1) % self.size
            run = self._live[self._turn]
            sent += self._step(run, now, last=run.next == len(self.template.steps) - 1)
            if run.next == len(self.template.steps):
                self._live[self._turn] = self._begin()
        self.records += sent
        return sent

    def finish(self, now: float) -> None:
        """End every run with a final step."""
        for run in self._live:
            self.records += self._step(run, now, last=True)
        self._live = []

    def _begin(self) -> _Live:
        run = _Live(f"overload-{self.numbers:07d}")
        self.numbers += 1
        self.produce(TOPOLOGY.name, self._named(self.template.topology, run.run_id), run.run_id)
        self.ledger.began(run.run_id)
        return run

    def _step(self, run: _Live, now: float, *, last: bool) -> int:
        step, messages, final = self.template.steps[run.next]
        run.next += 1
        for topic, value in final if last else messages:
            self.produce(topic, self._named(value, run.run_id), run.run_id)
        self.ledger.stepped(run.run_id, step, now, last)
        if last:
            self.ledger.ended(run.run_id, now)
        return len(messages)

    @staticmethod
    def _named(value: bytes, run_id: str) -> bytes:
        return value.replace(PLACEHOLDER.encode(), run_id.encode(), 1)
