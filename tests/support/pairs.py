"""A small stage that sums each run's numbers in pairs. `python -m tests.support.pairs` runs it.

A number is `CacheHitRates.hits`, its place in the run `step`. 666 is rejected as late, 999 is a bug, 888 never
returns: it blocks the event loop, or with the argument `offload` only the stage. The sum of a pair that ends with 777
is a message of 8 kB, and 555 takes 5 ms.
"""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic_settings import BaseSettings

from tamiyo.schemas.identity import identity
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.schemas.topics import Topic
from tamiyo.streams.process.logs import configure
from tamiyo.streams.runtime.worker import run_entries
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.registry import StageEntry

NUMBERS = Topic("test.numbers", CacheHitRates, "test", ("pairs",))
LETTERS = Topic("test.letters", CacheHitRates, "test", ("pairs",))
FACTORS = Topic("test.factors", CacheHitRates, "test", ("pairs",), cleanup="compact")
SUMS = Topic("test.sums", CacheHitRates, "pairs", ("test",))


def number(run_id: str, step: int, value: int) -> CacheHitRates:
    """Return one number of a run."""
    return CacheHitRates(
        run_id=run_id, step=step, time_ms=0, hits=value, misses=0, evictions=0, hit_rate=1, entries=0, capacity=0
    )


class PairSettings(BaseSettings):
    """Nothing to set."""


class PairStage(Stage):
    """Sums numbers in pairs, times the run's factor where there is one."""

    name: ClassVar[str] = "pairs"
    inputs: ClassVar[tuple[Topic, ...]] = (NUMBERS, LETTERS)
    outputs: ClassVar[tuple[Topic, ...]] = (SUMS,)
    views: ClassVar[tuple[Topic, ...]] = (FACTORS,)
    offload: ClassVar[bool] = False

    def __init__(self, partition: int, settings: PairSettings, views: Mapping[str, View[Any]]) -> None:
        self._factors = views[FACTORS.name]
        self._open: dict[str, Incoming] = {}
        self._closing: set[int] = set()

    def restore(self, outputs: Iterable[PriorOutput]) -> None:
        # The first of a pair may be before the committed offset and its second after it: the second opens nothing.
        self._closing = {each.sources[NUMBERS.name] for each in outputs}

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        outputs: list[Output | Reject] = []
        for each in batch:
            run, value = each.record.run_id, each.record.hits
            if value == 555:
                time.sleep(0.005)
            if value == 666:
                outputs.append(Reject(each, "the number of the beast", late=True))
            elif value == 888:
                time.sleep(3600)
            elif value == 999:
                raise ZeroDivisionError("a bug")
            elif run not in self._open:
                if each.offset not in self._closing:
                    self._open[run] = each
            else:
                first = self._open.pop(run)
                factor = self._factors.get(run)
                total = (first.record.hits + value) * (factor.hits if factor else 1)
                step = first.record.step
                inside = [identity("number", run, one) for one in (step, each.record.step)]
                inside *= 250 if value == 777 else 1
                outputs.append(Output(SUMS, number(run, step, total), identity("pair", run, step), each, inside))
        return outputs

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        return ()

    def open_offsets(self) -> Mapping[str, int]:
        return {NUMBERS.name: min(each.offset for each in self._open.values())} if self._open else {}


ENTRY = StageEntry("tests.support.pairs", "PairStage", PairSettings, "tamiyo_pairs")

if __name__ == "__main__":
    configure()
    ENTRY.load().offload = "offload" in sys.argv  # type: ignore[attr-defined]
    sys.exit(run_entries({"pairs": ENTRY}))
