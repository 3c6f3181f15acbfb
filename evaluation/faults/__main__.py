"""`make faults`: an installation on a real Kafka, faults at random moments from a seed, and a verdict on what was said.

Workers of every stage, a learner, simulated runs and hosts live through kills, freezes, rebalance storms, full disks
and a broker that goes away, several at once. Then everything drains and stops, and the judge (`faults_judge.py`)
recomputes from the logs what must be there. Exit status 1 where anything is not as it must be.
"""

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from confluent_kafka import KafkaException
from rich.console import Console

from tamiyo.evaluation.common.installation import PARTITIONS, Installation, end_by_signal, refuse_used, working_folder
from tamiyo.evaluation.faults.collect import Collector, collect, save
from tamiyo.evaluation.faults.disk import Disk
from tamiyo.evaluation.faults.judge import Violation, judge
from tamiyo.evaluation.faults.kinds import ALL, Scene, plan
from tamiyo.evaluation.faults.ledger import Evidence, Ledger
from tamiyo.evaluation.faults.report import Course, Injection, summary, told
from tamiyo.evaluation.faults.world import Host, Telemetry
from tamiyo.schemas.topics import DECISIONS, EXPERIENCE, GRAPHS, KERNELS, REWARDS, SIGNALS, WINDOWS
from tamiyo.streams.admin.brokers import required_kafka_home
from tamiyo.streams.process.exit_codes import EXIT_SOFTWARE

WIDTH = 50
SAMPLE_S = 2.0
RECOVERY_PATIENCE_S = 300.0  # a machine that does other things too starts a worker in a minute
QUIET_S = 6.0  # without a new record on any topic, after which everything has drained
DRAIN_PATIENCE_S = 300.0
ANSWERS = (SIGNALS, WINDOWS, GRAPHS, DECISIONS, KERNELS, REWARDS, EXPERIENCE)
LAYOUT = {"front": ("intake", "windows", "graphs", "rewards"), "policy": ("decisions", "kernels")}
"""What a worker of each sort hosts. Those that need torch take ten times as long to start again."""
SETTINGS = {
    "TAMIYO_WINDOW_WIDTH": str(WIDTH),
    # Runs of a minute: spans and waits that end within one.
    "TAMIYO_REWARD_SPAN_STEPS": "[50, 100, 200, 300]",
    "TAMIYO_DECISION_IN_FLIGHT_STEPS": "100",
    # An update every few seconds, of a second.
    "TAMIYO_LEARNER_FRESH_BATCH": "32",
    "TAMIYO_LEARNER_UPDATE_EPOCHS": "1",
}

console = Console()


def run(home: Path, folder: Path, *, faults: int, seed: int, workers: int, gap_s: float, open_faults: int) -> Course:
    """Live through `faults` faults and judge; Ctrl-C goes on to the judgement.

    One comes about every `gap_s` seconds, and none while `open_faults` others are not recovered from: what has stopped
    altogether cannot be broken further.
    """
    course, ledger = Course(seed), Ledger()
    began = time.monotonic()
    with ExitStack() as stack:
        kernels = stack.enter_context(Disk(folder / "store" / "kernels"))
        checkpoints = stack.enter_context(Disk(folder / "store" / "checkpoints"))
        course.means = kernels.means
        installation = stack.enter_context(Installation(home, folder, settings=SETTINGS))
        names = [f"{sort}-{number + 1}" for sort in LAYOUT for number in range(workers)]
        for name in names:
            installation.fleet.add_worker(name, LAYOUT[name.split("-")[0]])
        installation.fleet.add_learner()
        telemetry = Telemetry(installation.kafka, installation.names, ledger, seed=seed, partitions=PARTITIONS)
        host = Host(installation.kafka, installation.names, ledger, telemetry, PARTITIONS)
        console.print(f"seed {seed}: waiting for {len(names)} workers and a learner")
        installation.fleet.wait_ready()
        telemetry.start()
        host.start()
        stack.callback(host.stop)
        try:
            with _sampling(installation, ledger):
                _wait(lambda: host.recovered(began) is not None, RECOVERY_PATIENCE_S)
                _inject(course, Scene(installation, names, kernels, checkpoints), host, faults, gap_s, open_faults)
                _recover(course, host)
        except KeyboardInterrupt:
            course.interrupted = True
            console.print("interrupted: no more faults; what happened so far is drained and judged")
        telemetry.finish()
        course.drained = _drained(installation, host, telemetry)
        for name in installation.fleet.names:
            installation.fleet.stop(name)
        course.ends = Counter(str(end.code) for end in installation.fleet.ends)
        ledger.crashes += [
            f"{end.name} ended with status {end.code}" for end in installation.fleet.ends if end.code == EXIT_SOFTWARE
        ]
        console.print("reading everything and judging")
        evidence = collect(installation.kafka, installation.names, installation.store, ledger)
        course.violations += judge(evidence, width=WIDTH)
        course.counts = _counts(evidence, host)
        if course.violations:
            save(evidence, folder / "evidence")
    course.seconds = time.monotonic() - began
    return course


def _inject(course: Course, scene: Scene, host: Host, faults: int, gap_s: float, open_faults: int) -> None:
    rng = random.Random(course.seed)
    start = time.monotonic()
    threads: list[threading.Thread] = []

    def happen(injection: Injection, source: random.Random) -> None:
        began = time.monotonic()
        try:
            injection.what = ALL[injection.kind][0](scene, source)
        except Exception as error:
            course.violations.append(Violation("a fault went wrong itself", injection.kind, repr(error)[:500]))
        injection.ended_s = round(time.monotonic() - start, 2)
        injection.healed = began if injection.kind == "freeze_worker" else time.monotonic()

    for number, kind in enumerate(plan(faults, rng)):
        injection = Injection(kind, round(time.monotonic() - start, 2))
        course.injections.append(injection)
        threads.append(
            threading.Thread(target=happen, args=(injection, random.Random(rng.random())), name=kind, daemon=True)
        )
        threads[-1].start()
        console.print(f"{number + 1:4} of {faults}  {injection.began_s:7.1f} s  {kind}")
        time.sleep(rng.uniform(0.4, 1.6) * gap_s)
        _wait(lambda: _not_recovered(course, host) < open_faults, RECOVERY_PATIENCE_S)
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)


def _not_recovered(course: Course, host: Host) -> int:
    """Note what has been recovered from, and return how many faults have not."""
    for number, injection in enumerate(course.injections):
        if injection.healed and injection.recovery_seconds is None:
            took = host.recovered(injection.healed)
            if took is not None:
                injection.recovery_seconds = round(took, 2)
                console.print(f"          {number + 1} {injection.kind} ({injection.what}): recovered in {took:.1f} s")
    return sum(each.recovery_seconds is None for each in course.injections)


def _recover(course: Course, host: Host) -> None:
    if not _wait(lambda: not _not_recovered(course, host), RECOVERY_PATIENCE_S):
        left = f"{_not_recovered(course, host)} faults, {RECOVERY_PATIENCE_S:.0f} s after the last"
        course.violations.append(Violation("no recovery", "", left))


def _wait(done: Any, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _drained(installation: Installation, host: Host, telemetry: Telemetry) -> bool:
    """Wait until every run's last graph is decided and no topic grows any more; return whether that came to be."""
    console.print("no more telemetry: waiting until all of it is answered")
    ends: Mapping[Any, int] = {}
    since = time.monotonic()
    with closing(Collector(installation.kafka, installation.names)) as collector:
        places = [(topic.name, number) for topic in ANSWERS for number in range(PARTITIONS)]

        def quiet() -> bool:
            nonlocal ends, since
            with suppress(KafkaException):
                now = collector.ends(places)
                if now != ends or not set(telemetry.finished) <= host.ended:
                    ends, since = now, time.monotonic()
            return time.monotonic() - since >= QUIET_S

        return _wait(quiet, DRAIN_PATIENCE_S)


@contextmanager
def _sampling(installation: Installation, ledger: Ledger) -> Iterator[None]:
    """Look at commits every two seconds, in a thread of its own."""
    over = threading.Event()

    def look() -> None:
        places = [(topic.name, number) for topic in ANSWERS for number in range(PARTITIONS)]
        with closing(Collector(installation.kafka, installation.names)) as collector:
            while not over.wait(SAMPLE_S):
                with suppress(KafkaException):  # the broker is away: that is what this is about
                    ledger.samples.append(collector.sample(places))

    thread = threading.Thread(target=look, name="samples", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _counts(evidence: Evidence, host: Host) -> dict[str, int]:
    messages = {topic.name: len(evidence.entries(topic)) for topic in ANSWERS}
    late = sum(len(found) for name, found in evidence.messages.items() if name.endswith(".late"))
    dead = sum(len(found) for name, found in evidence.messages.items() if name.endswith(".dlq"))
    different = {
        "different graphs": len(evidence.first(GRAPHS, "graph_id")),
        "different decisions": len(evidence.first(DECISIONS, "decision_id")),
        "policies": len(evidence.checkpoints),
        "sent": len(evidence.ledger.sent),
        "executions": len(evidence.ledger.executions),
        "commit samples": len(evidence.ledger.samples),
        "late": late,
        "dead letters": dead,
        "host began to read anew": host.reassigned,
        **{f"host's consumer: {name}": count for name, count in sorted(host.errors.items())},
    }
    return {**messages, **different, **{f"decided {name}": count for name, count in sorted(host.types.items())}}


def main(
    faults: Annotated[int, typer.Option(min=1, max=10_000, help="How many, for each seed")] = 20,
    seed: Annotated[list[int] | None, typer.Option(help="What is drawn from; repeat for several [default: 0]")] = None,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Worker processes of each stage")] = 2,
    gap: Annotated[float, typer.Option(min=0.5, max=600, help="Mean seconds from one fault to the next")] = 6.0,
    at_once: Annotated[
        int, typer.Option(min=1, max=100, help="No new fault while so many others are not recovered from")
    ] = 3,
    keep: Annotated[
        Path | None, typer.Option(help="Keep logs, the store, and where something is wrong the topics, in this folder")
    ] = None,
    merge: Annotated[list[Path] | None, typer.Option(help="Inject nothing: sum up these reports; repeat")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the result as JSON to this file")] = None,
) -> None:
    """Break an installation on a real Kafka, again and again, and judge what it said; exit 1 on any violation.

    Ctrl-C injects no more faults: what happened until then is drained, judged and reported; a second one ends at once.

    Examples: `make faults` · `make faults ARGS="--faults 50 --seed 1 --seed 2 --report faults.json"` ·
    `make faults ARGS="--faults 10 --gap 15 --keep /tmp/faults"` ·
    `make faults ARGS="--merge one.json --merge two.json --report both.json"`
    """
    end_by_signal()
    runs: list[Mapping[str, Any]] = [run for each in merge or () for run in json.loads(each.read_text())["runs"]]
    folders = {} if merge else {each: keep and keep / f"seed-{each}" for each in seed or [0]}
    for kept in folders.values():  # all of them now: a seed takes a quarter of an hour
        refuse_used(kept)
    for each, kept in folders.items():
        with working_folder(kept, "tamiyo-faults-") as folder:
            course = run(
                required_kafka_home(), folder, faults=faults, seed=each, workers=workers, gap_s=gap, open_faults=at_once
            )
        verdict = "[green]nothing is wrong[/]" if not course.violations else f"[red]{len(course.violations)} wrong[/]"
        console.print(f"seed {each}: {len(course.injections)} faults in {course.seconds:.0f} s: {verdict}")
        for violation in course.violations[:20]:
            console.print(f"  {violation.kind}: {violation.where}: {violation.what}", markup=False, highlight=False)
        options = f"--faults {faults} --seed {each} --workers {workers} --gap {gap:g} --at-once {at_once}"
        runs.append(told(course, f'make faults ARGS="{options}"'))
        if report is not None:  # after every seed: what has been found stays found
            report.write_text(json.dumps(summary(runs), indent=1) + "\n")
        if course.interrupted:
            break
    result = summary(runs)
    console.print_json(
        json.dumps({key: result[key] for key in ("faults", "graphs", "violations", "counts", "recovery_seconds")})
    )
    if report is not None:
        report.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"report {report}")
    if result["violations"]:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
