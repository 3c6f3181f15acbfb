"""`make overload`: send ten times the sustainable rate for a minute, and check how the installation copes.

On a real Kafka from KAFKA_HOME, one worker with all stages and a learner. First comes the search for the sustainable
rate: the fastest one tried at which the backlog does not grow. Then ten times that rate is sent. The report covers
memory, which signals intake shed and whether they had the lowest priorities, the time to drain, and whether every graph
has exactly one decision.
"""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from confluent_kafka import Producer
from rich.console import Console
from scipy.stats import theilslopes

from tamiyo.evaluation.common.account import Ledger
from tamiyo.evaluation.common.account_reader import Reader
from tamiyo.evaluation.common.command_line import program
from tamiyo.evaluation.common.fleet import Fleet
from tamiyo.evaluation.common.installation import PARTITIONS, Installation
from tamiyo.evaluation.common.measure import command, machine, versions
from tamiyo.evaluation.common.program import begin
from tamiyo.evaluation.common.report import ReportFile, write_report
from tamiyo.evaluation.common.samples import LagSampler, ProcessSampler
from tamiyo.evaluation.overload.load import Flood, Template
from tamiyo.evaluation.overload.shed import shed
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames

FORMAT = 1
TICK_S = 0.05
SAMPLE_S = 2.0
SETTLE_S = 10.0  # at the begin of a try, until its windows close
FLAT = 0.1  # of the rate: a backlog that grows more slowly counts as constant
FIRST = 0.8  # share of the burst rate that is tried first
UP, DOWN = 1.4, 0.75  # factors of the next try: up until a rate is too fast, down until one is not
TRIES = 6
MEMORY_LIMIT_MB = 1_074  # a container's limit in deploy/kubernetes: 1 GiB
FLOWING = ("intake", "windows", "graphs", "decisions")
WORKER = "worker"
SETTINGS = {"TAMIYO_LEARNER_FRESH_BATCH": "256", "TAMIYO_LEARNER_KEEP_CHECKPOINTS": "20"}

Sample = dict[str, Any]


class Overload:
    """The load on one installation, and the samples of its processes."""

    def __init__(
        self, kafka: KafkaSettings, names: TopicNames, fleet: Fleet, *, layers: int, frames: int, runs: int
    ) -> None:
        self._names = names
        self._fleet = fleet
        self._ledger = Ledger()
        self._reader = Reader(kafka, names, self._ledger)
        self._producer: Any = Producer(
            kafka.librdkafka(
                **PRODUCER,
                **{"queue.buffering.max.messages": 500_000, "queue.buffering.max.kbytes": 1_000_000, "log_level": 0},
            )
        )
        self._flood = Flood(Template.of(layers, frames), runs, self._produce, self._ledger)
        self._lag = LagSampler(kafka, names, PARTITIONS)
        self._processes = ProcessSampler()
        self._sampled = 0.0
        self.samples: list[Sample] = []
        self.undelivered = 0

    def _produce(self, topic: str, value: bytes, key: str) -> None:
        while True:
            try:
                self._producer.produce(self._names.full(topic), value, key, on_delivery=self._delivered)
                break
            except BufferError:  # the broker is slower than the load; the report states the rate reached
                self._producer.poll(0.1)

    def _delivered(self, error: Any, _message: Any) -> None:
        self.undelivered += error is not None

    def _read_and_sample(self, phase: str) -> None:
        """Read the records that have arrived, and sample every `SAMPLE_S`."""
        self._producer.poll(0)
        for _ in self._reader.poll(0.0):
            pass
        if time.monotonic() - self._sampled >= SAMPLE_S:
            self._sampled = time.monotonic()
            lag = self._lag.read(self._reader.learned)
            account = self._ledger.verdict()
            processes = self._processes.read(self._fleet.running())
            self.samples.append(
                {
                    "t": time.monotonic(),
                    "phase": phase,
                    "lag": lag,
                    "undecided": account.windows_missing + account.graphs_unanswered,
                    "rss_mb": {name: each["rss_mb"] for name, each in processes.items()},
                    "cpu_s": {name: each["cpu_s"] for name, each in processes.items()},
                }
            )

    def send(self, rate: float, seconds: float, phase: str) -> float:
        """Publish at `rate` records a second; return the rate reached."""
        began, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - began) < seconds:
            due = round(rate * elapsed) - sent
            if due > 0:
                # In small pieces, so that reading and sampling continue at any rate.
                sent += self._flood.publish(min(due, 500), time.time())
            self._read_and_sample(phase)
            if due < 500:
                time.sleep(TICK_S)
        return sent / (time.monotonic() - began)

    def drain(self, phase: str, timeout_s: float) -> float:
        """End all runs and wait until everything is decided and nothing waits; return the seconds that took."""
        self._flood.finish(time.time())
        self._producer.flush(60)
        began = time.monotonic()
        while not self._drained():
            if time.monotonic() - began > timeout_s:
                raise BrokerError(f"not drained within {timeout_s:.0f} s: {self._ledger.verdict()}")
            self._read_and_sample(phase)
            time.sleep(TICK_S)
        return time.monotonic() - began

    def _drained(self) -> bool:
        account = self._ledger.verdict()
        waiting = (self.samples[-1]["lag"] or {}).get("intake", 1) if self.samples else 1
        return not (account.windows_missing or account.graphs_unanswered or waiting)

    def burst(self, records: int) -> float:
        """Return the rate at which a burst of `records` is processed, records per second."""
        self._flood.publish(records, time.time())
        return records / self.drain("burst", 600)

    def sustainable(self, guess: float, seconds: float, console: Console) -> tuple[float, list[dict[str, Any]]]:
        """Return the fastest rate tried at which the backlog does not grow, and all tries."""
        tries = []
        rate, best, exceeded = guess, 0.0, False
        for _ in range(TRIES):
            reached = self.send(rate, seconds, "search")
            growth = self._growth(seconds - SETTLE_S)
            flat = growth <= FLAT * rate
            tries.append({"records_per_second": round(reached, 1), "growth": round(growth, 2), "flat": flat})
            console.print(f"{rate:.0f} records/s: the backlog grows by {growth:.1f} records/s", highlight=False)
            self.drain("search", 600)
            best = reached if flat else best
            exceeded = exceeded or not flat
            if best and exceeded:
                return best, tries
            rate *= UP if flat else DOWN
        if best:
            return best, tries
        raise BrokerError(f"no sustainable rate among the tries: {tries}")

    def _growth(self, seconds: float) -> float:
        """Return the growth of the backlog over the last `seconds`, records per second.

        It is computed from complete windows without a decision: a group's lag also contains what open windows need.
        """
        since = self.samples[-1]["t"] - seconds
        points = [(each["t"], each["undecided"]) for each in self.samples if each["t"] >= since]
        slope = float(theilslopes([undecided for _, undecided in points], [t for t, _ in points]).slope)
        return slope * self._flood.records / max(1, self._ledger.verdict().windows_expected)

    def account(self) -> dict[str, Any]:
        """Return the ledger's verdict."""
        return self._ledger.verdict().to_dict()

    @property
    def records(self) -> int:
        """Telemetry records sent so far."""
        return self._flood.records

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()


def memory(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Return each process's resident memory before, during and after the overload, MB."""
    found: dict[str, dict[str, float]] = {}
    for name in samples[-1]["rss_mb"]:
        phases: dict[str, list[float]] = {}
        for sample in samples:
            if name in sample["rss_mb"]:
                phases.setdefault(sample["phase"], []).append(sample["rss_mb"][name])
        found[name] = {
            "before": phases["search"][-1],
            "maximum_during": max(phases["overload"]),
            "maximum_draining": max(phases["draining"]),
            "after": phases["draining"][-1],
        }
    return found


def cores(samples: list[Sample]) -> dict[str, float]:
    """Return the cores that each process used during overload and draining."""
    late = [each for each in samples if each["phase"] in ("overload", "draining")]
    first, last = late[0], late[-1]
    return {
        name: round((cpu_s - first["cpu_s"][name]) / (last["t"] - first["t"]), 3)
        for name, cpu_s in last["cpu_s"].items()
        if name in first["cpu_s"]
    }


def waiting(samples: list[Sample]) -> dict[str, Any]:
    """Return the largest backlog of each stage, and the most windows without a decision."""
    late = [each for each in samples if each["phase"] in ("overload", "draining")]
    known = [each["lag"] for each in late if each["lag"]]
    return {
        "maximum": {stage: max(each[stage] for each in known) for stage in FLOWING},
        "windows_undecided": max(each["undecided"] for each in late),
        "after": {stage: known[-1][stage] for stage in FLOWING},
    }


def run(
    installation: Installation,
    console: Console,
    *,
    layers: int,
    runs: int,
    factor: float,
    seconds: float,
    search_s: float,
    burst: int,
) -> dict[str, Any]:
    """Find the sustainable rate, exceed it, drain; return the results for the report."""
    with ExitStack() as stack:
        overload = Overload(
            installation.kafka, installation.names, installation.fleet, layers=layers, frames=60, runs=runs
        )
        stack.callback(overload.close)
        overload.burst(burst // 4)  # warm-up
        capacity = overload.burst(burst)
        console.print(f"a burst of {burst} records is processed at {capacity:.0f} records/s", highlight=False)
        rate, tries = overload.sustainable(FIRST * capacity, search_s, console)
        before = overload.records
        reached = overload.send(factor * rate, seconds, "overload")
        sent = overload.records - before
        console.print(f"{seconds:g} s at {reached:.0f} records/s, {reached / rate:.1f} times the rate", highlight=False)
        drained_s = overload.drain("draining", 60 + 3 * seconds * reached / rate)
        console.print(f"drained after {drained_s:.0f} s", highlight=False)
        account = overload.account()
        samples, undelivered = overload.samples, overload.undelivered
    used = memory(samples)
    return {
        "burst_records_per_second": round(capacity, 1),
        "sustainable": {"records_per_second": round(rate, 1), "tries": tries},
        "overload": {
            "factor_asked": factor,
            "factor": round(reached / rate, 2),
            "seconds": seconds,
            "records": sent,
            "records_per_second": round(reached, 1),
        },
        "drained_seconds": round(drained_s, 1),
        "taken_records_per_second": round(sent / (seconds + drained_s), 1),
        "cores": cores(samples),
        "memory_mb": used,
        "memory_limit_mb": MEMORY_LIMIT_MB,
        "waiting": waiting(samples),
        "shed": shed(installation.kafka, installation.names),
        "account": account,
        "undelivered": undelivered,
        "restarts": dict(installation.fleet.restarts),
    }


def problems(result: dict[str, Any]) -> list[str]:
    """Return the failed requirements in words."""
    requirements: list[tuple[bool, str]] = [
        (result["account"]["clean"], "the account is not clean"),
        (not result["undelivered"], "records were not delivered"),
        (not result["restarts"], "processes ended"),
        (result["shed"]["layer_signals"] > 0, "nothing was shed"),
        (result["shed"]["out_of_order"] == 0, "a signal of higher priority had a lower chance of survival"),
        (
            result["overload"]["factor"] >= 0.9 * result["overload"]["factor_asked"],
            "the requested rate was not reached",
        ),
        *(
            (max(each.values()) <= result["memory_limit_mb"], f"{name} used more memory than a container's limit")
            for name, each in result["memory_mb"].items()
        ),
    ]
    return [words for fine, words in requirements if not fine]


app = program()


@app.command(
    epilog="Examples: `make overload` · `make overload ARGS='--seconds 20 --factor 5'` · "
    "`make overload ARGS='--report evaluation/results/overload.json'`"
)
def main(
    factor: Annotated[float, typer.Option(min=1, help="Multiple of the sustainable rate")] = 10.0,
    seconds: Annotated[float, typer.Option(min=5, help="Duration of the overload")] = 60.0,
    layers: Annotated[int, typer.Option(min=2, max=1_000, help="Layers of each run's network")] = 64,
    runs: Annotated[int, typer.Option(min=1, max=1_000, help="Simulated runs at a time")] = 24,
    search: Annotated[float, typer.Option(min=20, help="Duration of each try, seconds")] = 40.0,
    burst: Annotated[int, typer.Option(min=100, help="Records of the burst that the first rate follows from")] = 4_000,
    report: ReportFile = None,
) -> None:
    """Send ten times the sustainable rate for a minute; exit 1 if a requirement is not met."""
    console, home = begin(report)
    began = machine()
    with (
        tempfile.TemporaryDirectory(prefix="tamiyo-overload-") as folder,
        Installation(home, Path(folder), settings=SETTINGS) as installation,
    ):
        installation.fleet.start_all({WORKER: ()})
        result = run(
            installation, console, layers=layers, runs=runs, factor=factor, seconds=seconds, search_s=search,
            burst=burst,
        )  # fmt: skip
    found = problems(result)
    whole = {
        "format": FORMAT,
        "command": command("tamiyo.evaluation.overload", sys.argv[1:]),
        "machine": began,
        "versions": versions(home),
        "settings": SETTINGS,
        "load": {"layers": layers, "runs": runs},
        "problems": found,
        **result,
    }
    console.print_json(data={name: whole[name] for name in result})
    for words in found:
        console.print(f"[red]{words}[/]")
    write_report(report, whole, console)
    if found:
        sys.exit(1)


if __name__ == "__main__":
    app()
