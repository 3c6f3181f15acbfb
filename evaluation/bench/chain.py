"""The stages in a Faust worker on a broker, telemetry in, decisions out."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tamiyo.evaluation.bench.kafka import (
    PARTITIONS,
    Broker,
    Counter,
    Measured,
    Message,
    measure,
    publish,
    worker,
)
from tamiyo.evaluation.common.measure import Result, Spent
from tamiyo.evaluation.common.policies import release
from tamiyo.evaluation.common.simulated_runs import TOPICS, Load, frames, topology
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import CHECKPOINTS, DECISIONS, TOPOLOGY, WINDOWS, Topic
from tamiyo.streams.settings import WindowSettings

CHAIN = ("intake", "windows", "graphs", "decisions")
AGGREGATION = ("intake", "windows")


def messages(load: Load) -> Iterator[Message]:
    """Yield all topologies, then the telemetry of all runs interleaved; runs are spread evenly over the partitions."""
    topics: dict[type[Record], Topic] = {**TOPICS, ModelTopology: TOPOLOGY}

    def message(record: Record, run: int) -> Message:
        topic = topics[type(record)]
        time_ms: int = record.time_ms  # type: ignore[attr-defined]
        return Message(topic.name, run % PARTITIONS, load.run_ids[run], encode(record), time_ms)

    for run, run_id in enumerate(load.run_ids):
        yield message(topology(run_id, load.layers), run)
    for together in zip(*(frames(load, run) for run in range(load.runs)), strict=True):
        for run, frame in enumerate(together):
            yield message(frame, run)


def rounds(
    process: Measured,
    counter: Counter,
    load: Load,
    repeats: int,
    make: Callable[[Load], Iterator[Message]],
    expected: Callable[[Load], int],
    identify: Callable[[bytes], str],
    where: Broker,
) -> list[Spent]:
    """Publish the load repeatedly under new run ids, wait for all of its outputs, and return the costs.

    The first round is the warm-up. Messages are made before the clock starts.
    """
    spent = []
    for number in range(repeats + 1):
        fresh = replace(load, seed=load.seed + number)
        ready = list(make(fresh))

        def work(ready: Sequence[Message] = ready, fresh: Load = fresh) -> None:
            publish(where, ready)
            counter.wait([process], fresh.run_ids, expected(fresh), identify)

        spent.append(measure(process, work))
    return spent[1:]


def ours(where: Broker, load: Load, stages: Sequence[str], target: Topic, *, name: str, repeats: int) -> Result:
    """Measure stages in one worker process, from publishing telemetry to reading the last record of `target`."""
    width = WindowSettings().width

    def identify(value: bytes) -> str:
        record = decode(value, target.record)
        return str(getattr(record, "decision_id", None) or getattr(record, "window_id", None))

    load = replace(load, name=name.replace(" ", "-").replace(",", ""))
    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as store:
        # Every worker has a new store, so the policy is released and announced again.
        announced = release(f"file://{store}")
        publish(where, [Message(CHECKPOINTS.name, 0, announced.name, encode(announced), announced.time_ms)])
        counter = Counter(where, target.name)
        with worker(where, stages, f"file://{store}") as process:
            spent = rounds(
                process, counter, load, repeats, messages, lambda fresh: fresh.windows(width), identify, where
            )
        counter.close()
    return result(name, load, spent, {"stages": list(stages), "processes": 1, "broker": where.kind})


def chain(where: Broker, load: Load, *, repeats: int) -> Result:
    """Measure the whole chain: telemetry frames to decisions."""
    return ours(where, load, CHAIN, DECISIONS, name="telemetry to decision", repeats=repeats)


def aggregation(where: Broker, load: Load, *, repeats: int, name: str = "telemetry to window") -> Result:
    """Measure telemetry frames to windows, the part that the peer is compared with."""
    return ours(where, load, AGGREGATION, WINDOWS, name=name, repeats=repeats)


def result(name: str, load: Load, spent: Sequence[Spent], extra: dict[str, object]) -> Result:
    """Return the layer-signals of a load per processor second, one value a round."""
    sizes = {"runs": load.runs, "layers": load.layers, "frames": load.frames, "layer_signals": load.layer_signals}
    wall = [load.layer_signals / each.wall_s for each in spent]
    values = tuple(load.layer_signals / each.cpu_s for each in spent)
    return Result("on a broker", name, "signals/s/core", values, "higher", {**extra, **sizes, "per_second": wall})
