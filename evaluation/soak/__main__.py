"""`make soak`: run an installation under constant load and faults for hours, and sample it.

On a real Kafka from KAFKA_HOME: two workers with all stages, a learner, and simulated runs that begin and end. Faults
are drawn from a seed. Samples are written line by line, so that an interrupted soak keeps its measurements; the report
is made from that file, at the end or later (`python -m tamiyo.evaluation.soak.report SAMPLES`). Given again with the
same file, the program goes on with another piece.
"""

import os
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from confluent_kafka import Producer
from rich.console import Console

from tamiyo.evaluation.common.account import Ledger, Verdict
from tamiyo.evaluation.common.account_reader import Reader
from tamiyo.evaluation.common.command_line import program
from tamiyo.evaluation.common.installation import PARTITIONS, Installation, working_folder
from tamiyo.evaluation.common.measure import command, commit, machine, versions
from tamiyo.evaluation.common.program import begin
from tamiyo.evaluation.common.report import ReportFile, require_folder, write_report
from tamiyo.evaluation.common.samples import LagSampler, ProcessSampler, SampleFile
from tamiyo.evaluation.soak.faults import EVERY_S, Fault, schedule
from tamiyo.evaluation.soak.pieces import earlier
from tamiyo.evaluation.soak.report import report_of, show
from tamiyo.evaluation.soak.runs import Population
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import PRODUCER
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic
from tamiyo.streams.process.interrupts import stoppable

SAMPLE_S = 10.0
POLL_S = 0.05
IDLE_S = 90.0  # the last window of an abandoned run closes after 60 s
DRAIN_S = 420.0
SHORTEST_MIN = 0.5  # less is not worth an installation
STOP_DRAIN_S = 60.0  # for draining after Ctrl-C
VICTIMS = ("worker-1", "worker-2", "learner")
WITNESSES = ("worker-2", "learner")
SETTINGS = {
    # Every update writes 6 MB; all checkpoints of two hours would fill a disk.
    "TAMIYO_LEARNER_KEEP_CHECKPOINTS": "20",
    "TAMIYO_LEARNER_FRESH_BATCH": "32",
    # Idle runs are kept for minutes rather than half an hour, so that an hour contains many such cycles: with a few, a
    # lag that grows cannot be distinguished from one that rises and falls.
    "TAMIYO_WINDOW_IDLE_TIMEOUT_S": "60",
    "TAMIYO_DECISION_IDLE_TIMEOUT_S": "120",
    "TAMIYO_REWARD_IDLE_TIMEOUT_S": "120",
    # The default of 10,000 windows a partition suits busy installations; here it would take a day.
    "TAMIYO_GRAPH_HISTORY_STRETCH": "100",
}

app = program()


class Soak:
    """One soak: its load, its faults and its account."""

    def __init__(
        self,
        installation: Installation,
        samples: SampleFile,
        seconds: float,
        faults: list[Fault],
        options: dict[str, Any],
    ) -> None:
        self._installation = installation
        self._samples = samples
        self._seconds = seconds
        self._faults = deque(faults)
        self._injecting: threading.Thread | None = None
        self._ledger = Ledger()
        self._reader = Reader(installation.kafka, installation.names, self._ledger)
        self._producer: Any = Producer(
            installation.kafka.librdkafka(**PRODUCER, **{"message.timeout.ms": 300_000, "log_level": 0})
        )
        self.undelivered = 0
        self.population = Population(
            options["runs"], layers=options["layers"], pace_s=options["pace"], frames=(60, 240),
            seed=options["seed"], publish=self._publish, journal=self._ledger,
        )  # fmt: skip
        self._processes = ProcessSampler()
        self._lag = LagSampler(installation.kafka, installation.names, PARTITIONS)

    def _publish(self, topic: Topic, record: Record, key: str) -> None:
        self._producer.produce(
            self._installation.names.full(topic.name), encode(record), key, on_delivery=self._delivered
        )
        self._producer.poll(0)

    def _delivered(self, error: Any, _message: Any) -> None:
        if error is not None:
            self.undelivered += 1

    def run(self, stopped: threading.Event) -> None:
        """Publish, read, sample and inject faults until the time is over or `stopped` is set."""
        began = time.monotonic()
        sample_at = 0.0
        while (elapsed := time.monotonic() - began) < self._seconds and not stopped.is_set():
            self.population.abandoning = elapsed < self._seconds - IDLE_S
            self.population.advance(time.time())
            self._read()
            if elapsed >= sample_at:
                sample_at += SAMPLE_S
                self.sample()
            self._inject_due(elapsed)

    def _read(self) -> None:
        for record in self._reader.poll(POLL_S):
            self.population.receive(record, time.time())

    def _inject_due(self, elapsed: float) -> None:
        """Inject the next due fault, one at a time, in a thread: the load continues meanwhile."""
        if self._injecting is not None and self._injecting.is_alive():
            return
        if self._faults and self._faults[0].at_s <= elapsed:
            fault = self._faults.popleft()
            self._samples.write("fault", what=fault.kind, victim=fault.victim, duration_s=fault.duration_s)
            self._injecting = threading.Thread(target=fault.inject, args=(self._installation,), daemon=True)
            self._injecting.start()

    def drain(self, timeout_s: float = DRAIN_S) -> None:
        """End all runs and wait until everything is decided, at most `timeout_s`."""
        if self._injecting is not None:
            self._injecting.join(60)
        self.population.finish(time.time())
        self._producer.flush(60)
        deadline, sample_at = time.monotonic() + timeout_s, 0.0
        while not self._drained() and time.monotonic() < deadline:
            self._read()
            if time.monotonic() >= sample_at:
                sample_at = time.monotonic() + SAMPLE_S
                self.sample()
        for _ in range(20):  # time for records that should not arrive
            self._read()
        self.sample()

    def _drained(self) -> bool:
        verdict = self.verdict()
        return not (verdict.windows_missing or verdict.graphs_unanswered or verdict.windows_open)

    def verdict(self) -> Verdict:
        """Return the current account."""
        return self._ledger.verdict()

    def sample(self) -> None:
        """Write one sample."""
        fleet, broker = self._installation.fleet, self._installation.broker.pid
        running = [*fleet.running(), ("soak", os.getpid())]
        running += [("broker", broker)] if broker is not None else []
        self._ledger.forget(time.time())
        self._samples.write(
            "sample",
            processes=self._processes.read(running),
            lag=self._lag.read(self._reader.learned),
            latencies_ms=[round(each, 1) for each in self._ledger.latencies()],
            sent=sum(self.population.sent.values()),
            runs=self.population.numbers,
            read=dict(self._reader.counts),
            policy_version=self._reader.policy_version,
            undelivered=self.undelivered,
            load_average=round(os.getloadavg()[0], 2),
            restarts=dict(fleet.restarts),
            ends=[[end.name, end.code, end.meant] for end in fleet.ends],
            account=self.verdict().to_dict(),
        )

    def close(self) -> None:
        """Close the clients."""
        self._reader.close()


@app.command(
    epilog="Examples: `make soak ARGS='--minutes 3'` · `make soak ARGS='--minutes 120 --seed 0 --report soak.json "
    "--samples soak.jsonl'`, then `python -m tamiyo.evaluation.soak.plot soak.json soak.svg`"
)
def main(
    minutes: Annotated[
        float, typer.Option(min=0.5, max=20_000, help="Duration of the load of all pieces, without draining")
    ] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the faults and the simulated runs")] = 0,
    runs: Annotated[int, typer.Option(min=1, max=500, help="Simulated runs at a time")] = 6,
    layers: Annotated[int, typer.Option(min=2, max=500, help="Layers of each run's network")] = 10,
    pace: Annotated[float, typer.Option(min=0.01, help="Seconds between two sampled steps of a run")] = 1.0,
    fault_every: Annotated[float, typer.Option(min=5, help="Mean seconds between two faults")] = EVERY_S,
    samples: Annotated[Path, typer.Option(help="File that samples are added to")] = Path("soak.jsonl"),
    keep: Annotated[Path | None, typer.Option(help="Keep the logs and the store in this folder")] = None,
    report: ReportFile = None,
) -> None:
    """Run an installation on a real Kafka for hours, with faults; Ctrl-C ends it early and still reports.

    Given again with the same file of samples, it goes on with a new installation until all pieces together have the
    minutes; the report is over all pieces.
    """
    console, home = begin(report)
    require_folder(samples, "--samples")
    options = {"seed": seed, "runs": runs, "layers": layers, "pace": pace, "fault_every": fault_every}
    try:
        before = earlier(samples, options)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="--samples") from error
    if (left := minutes - sum(piece.seconds for piece in before) / 60) >= SHORTEST_MIN:
        complete = _piece(home, samples, left, options, keep, console, number=len(before))
    else:
        console.print(f"{samples} has {minutes - left:.1f} minutes of {minutes:g} already", highlight=False)
        complete = True
    result = report_of(samples)
    show(result, console)
    write_report(report, result, console)
    if not (complete and result["account"]["clean"]):
        sys.exit(1)


def _piece(
    home: Path,
    samples: Path,
    minutes: float,
    options: dict[str, Any],
    keep: Path | None,
    console: Console,
    *,
    number: int,
) -> bool:
    """Run one piece after `number` others; return whether its time was over when it ended."""
    seconds = 60 * minutes
    # Every piece has its own faults and runs.
    drawn = {**options, "seed": options["seed"] + number}
    faults = schedule(seconds, drawn["seed"], VICTIMS, WITNESSES, every_s=options["fault_every"])
    with ExitStack() as stack:
        folder = stack.enter_context(working_folder(keep, "tamiyo-soak-"))
        file = SampleFile(samples)
        stack.callback(file.close)
        file.write(
            "begin",
            command=command("tamiyo.evaluation.soak", sys.argv[1:]),
            minutes=minutes,
            options=options,
            settings=SETTINGS,
            machine=machine(),
            versions=versions(home),
            commit=commit(),
            witnesses=WITNESSES,
        )
        complete = False
        try:
            installation = stack.enter_context(Installation(home, folder, settings=SETTINGS))
            installation.fleet.start_all(dict.fromkeys(VICTIMS[:2], ()))
            soak = Soak(installation, file, seconds, faults, drawn)
            stack.callback(soak.close)
            console.print(f"{minutes:.3g} minutes, {len(faults)} faults; samples go to {samples}")
            with stoppable() as stopped:
                soak.run(stopped)
                if stopped.is_set():
                    console.print("[yellow]stopping: ending the runs and draining[/]")
                soak.drain(STOP_DRAIN_S if stopped.is_set() else DRAIN_S)
            complete = not stopped.is_set()
        except KeyboardInterrupt:
            console.print("[yellow]stopped: the report covers the time until now[/]")
        file.write("end", complete=complete)
    return complete


if __name__ == "__main__":
    app()
