"""The cost of a broker outage for training: two networks train in turns, one of them without its Kafka for minutes.

    python -m tamiyo.evaluation.outage --minutes 10 --report outage.json

Each network trains in its own process, so that the SDK's background work (reconnecting, dropping records) affects that
network alone; both brokers are real. Turns take a few tenths of a second, so that other load on the machine affects
neighbouring turns alike.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from scipy.stats import quantile_test

from tamiyo.evaluation.bench.host import BLOCK
from tamiyo.evaluation.common.command_line import run_program
from tamiyo.evaluation.common.installation import end_by_signal
from tamiyo.evaluation.common.measure import machine, versions
from tamiyo.evaluation.common.report import ReportFile, prepare_report, write_report
from tamiyo.evaluation.outage.training import Training, Turn
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import LocalKafka, required_kafka_home
from tamiyo.streams.admin.topics import Topics

LIMIT = 1.05  # of the duration of a step with a broker
WARM_UP = 10  # turns, until the governor and the allocator settle
SETTLE_S = 15.0  # with both brokers, before and after; less for a short outage
MIN_TURNS = 6  # with fewer, a median has no interval of 95 %
RECONNECT_S = 120.0  # for the SDK to publish again


@dataclass(frozen=True)
class Pair:
    """Neighbouring turns of the two networks, and when they ended, in seconds since the measurement began."""

    at_s: float
    connected: Turn
    cut: Turn
    """The network whose broker goes down."""

    @property
    def ratio(self) -> float:
        """Return the step time of the network whose broker goes down / that of the other."""
        return self.cut.seconds / self.connected.seconds


def compare(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the median ratio of turns with its 95 % confidence interval, and step times; None with too few turns."""
    ratios = [pair.ratio for pair in pairs]
    counted: dict[str, Any] = {"pairs": len(pairs), "steps_each": len(pairs) * BLOCK, "ratio": None, "interval": None}
    if len(ratios) < MIN_TURNS:
        return counted
    low, high = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    sides = {"connected": [pair.connected for pair in pairs], "cut": [pair.cut for pair in pairs]}
    return {
        **counted,
        "ratio": round(statistics.median(ratios), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "step_ms": {
            side: round(1000 * statistics.median(turn.seconds for turn in turns) / BLOCK, 4)
            for side, turns in sides.items()
        },
        "longest_step_ms": {
            side: round(1000 * max(turn.longest_step_s for turn in turns), 1) for side, turns in sides.items()
        },
        "dropped": pairs[-1].cut.dropped - pairs[0].cut.dropped,
    }


class Outage:
    """The measurement; its results so far are available at any time."""

    def __init__(self, connected: Training, cut: Training, broker: LocalKafka, console: Console) -> None:
        self.phases: dict[str, list[Pair]] = {}
        self.reconnected_s: float | None = None
        self._connected, self._cut, self._broker, self._console = connected, cut, broker, console
        self._began = time.monotonic()

    def run(self, minutes: float) -> None:
        """Train with both brokers, then without one of them, then with both again."""
        for _ in range(WARM_UP):
            self._connected.turn(), self._cut.turn()
        settle_s = min(SETTLE_S, 15 * minutes)
        self._phase("before", settle_s)
        self._broker.kill()
        self._console.print(f"broker stopped for {minutes:g} minutes", highlight=False)
        self._phase("without", 60 * minutes)
        last = self.phases["without"][-1].cut.published
        self._broker.start()
        began = time.monotonic()
        while self._cut.turn().published <= last:
            self._connected.turn()
            if time.monotonic() - began > RECONNECT_S:
                raise BrokerError(f"no record arrived within {RECONNECT_S:.0f} s of the broker's restart")
        self.reconnected_s = round(time.monotonic() - began, 2)
        self._console.print(f"records arrive again {self.reconnected_s} s after the broker's restart", highlight=False)
        self._phase("after", settle_s)

    def _phase(self, name: str, seconds: float) -> None:
        pairs = self.phases.setdefault(name, [])
        began, printed = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            connected, cut = self._connected.turn(), self._cut.turn()
            pairs.append(Pair(time.monotonic() - self._began, connected, cut))
            if passed // 60 > printed:
                printed = int(passed // 60)
                self._print(name, pairs)
        self._print(name, pairs)

    def _print(self, name: str, pairs: Sequence[Pair]) -> None:
        found = compare(pairs)
        text = f"{time.monotonic() - self._began:5.0f} s  {name}: ratio {found['ratio']}, {found['interval']}"
        self._console.print(f"{text}, dropped {pairs[-1].cut.dropped}", highlight=False)


def outage(
    minutes: Annotated[float, typer.Option(min=0.1, max=600, help="Duration of the outage")] = 10.0,
    task: Annotated[str, typer.Option(help="Training task: mnist1d, digits or mnist5k")] = "mnist1d",
    report: ReportFile = None,
) -> None:
    """Train with and without a broker in turns; exit 1 if a step may take over 5 % longer without. Needs KAFKA_HOME.

    Examples: `make outage` · `make outage ARGS="--minutes 1 --task digits"` ·
    `make outage ARGS="--report evaluation/results/outage.json"`
    """
    prepare_report(report)
    home = required_kafka_home()
    end_by_signal()
    console, where_measured, complete = Console(), machine(), False
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tamiyo-outage-")))
        sides = []
        for name in ("connected", "cut"):
            broker = stack.enter_context(LocalKafka(home))
            Topics(KafkaSettings(bootstrap_servers=broker.bootstrap_servers), TopicNames(prefix="")).create(
                partitions=4
            )
            training = Training(task, broker, folder / name)
            stack.callback(training.close)
            sides.append(training)
        measured = Outage(sides[0], sides[1], broker, console)
        try:
            measured.run(minutes)
            complete = True
        except KeyboardInterrupt:
            console.print("\n[yellow]stopped: the report covers the time until now[/]")
    result = result_of(measured, minutes=minutes, task=task) | {"complete": complete, "machine": where_measured}
    console.print_json(data={name: result[name] for name in ("ratio", "within", "phases")})
    write_report(report, result | {"versions": versions()}, console)
    if not result["within"]:
        sys.exit(1)


def result_of(measured: Outage, *, minutes: float, task: str) -> dict[str, Any]:
    """Return the results, JSON-able; `within`: the whole interval of the ratio is at most the limit."""
    without = measured.phases.get("without", [])
    by_minute: dict[int, list[Pair]] = {}
    for pair in without:
        by_minute.setdefault(int((pair.at_s - without[0].at_s) // 60), []).append(pair)
    found = compare(without)
    return {
        "command": f"python -m tamiyo.evaluation.outage --minutes {minutes:g} --task {task}",
        "ratio": found["ratio"],
        "limit": LIMIT,
        "within": found["interval"] is not None and found["interval"][1] <= LIMIT,
        "phases": {name: compare(pairs) for name, pairs in measured.phases.items()},
        "ratio_by_minute": [compare(pairs)["ratio"] for pairs in by_minute.values()],
        "heard_again_s": measured.reconnected_s,
        "last": asdict(without[-1].cut) if without else None,
    }


if __name__ == "__main__":
    run_program(outage)
