"""One fault run: an installation is started, faults are injected, everything drains and stops, and the judge checks."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from rich.console import Console

from tamiyo.evaluation.common import last_release
from tamiyo.evaluation.common.installation import PARTITIONS, Installation
from tamiyo.evaluation.faults.collect import Collector, collect, save
from tamiyo.evaluation.faults.disk import Disk
from tamiyo.evaluation.faults.host import Host
from tamiyo.evaluation.faults.judge import Violation, judge
from tamiyo.evaluation.faults.kinds import ALL, plan
from tamiyo.evaluation.faults.ledger import Evidence, Ledger, Place
from tamiyo.evaluation.faults.report import Course, Injection
from tamiyo.evaluation.faults.scene import Scene
from tamiyo.evaluation.faults.telemetry import Telemetry
from tamiyo.evaluation.faults.upgrade import Upgrade
from tamiyo.evaluation.faults.wall_clock import prepare
from tamiyo.schemas.errors import TamiyoError
from tamiyo.schemas.topics import DECISIONS, EXPERIENCE, GRAPHS, KERNELS, REWARDS, SIGNALS, WINDOWS
from tamiyo.streams.process.exit_codes import EXIT_SOFTWARE

WIDTH = 50
SAMPLE_S = 2.0
RECOVERY_TIMEOUT_S = 300.0  # a busy machine takes a minute to start a worker
QUIET_S = 6.0  # without a new record on any topic everything has drained, if every input is committed
BEHIND_S = 45.0  # if one is not: a group whose member is gone needs its session, and a busy machine to start a worker
DRAIN_TIMEOUT_S = 300.0
OUTPUTS = (SIGNALS, WINDOWS, GRAPHS, DECISIONS, KERNELS, REWARDS, EXPERIENCE)
MAX_MESSAGE_BYTES = 1024 * 1024  # a quarter of the default, so that 2,000 layers are too many
LAYOUT = {"front": ("intake", "windows", "graphs", "rewards"), "policy": ("decisions", "kernels")}
"""The stages of each kind of worker. Those that need torch take ten times as long to restart."""
SETTINGS = {
    "TAMIYO_WINDOW_WIDTH": str(WIDTH),
    # Runs last a minute, so reward spans and waits must end within one.
    "TAMIYO_REWARD_SPAN_STEPS": "[50, 100, 200, 300]",
    "TAMIYO_DECISION_IN_FLIGHT_STEPS": "100",
    # An update every few seconds that takes a second.
    "TAMIYO_LEARNER_FRESH_BATCH": "32",
    "TAMIYO_LEARNER_UPDATE_EPOCHS": "1",
    "TAMIYO_WORKER_MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES),
    # Nothing is shed: after seconds without a broker a large network alone fills the default. Shedding has its own
    # program, `make overload`.
    "TAMIYO_INTAKE_BUFFER_SIGNALS": str(10**7),
}

console = Console()


def run(
    home: Path,
    folder: Path,
    *,
    faults: int,
    seed: int,
    workers: int,
    gap_s: float,
    open_faults: int,
    registry_home: Path | None = None,
    kinds: Collection[str] = tuple(ALL),
    advance: Callable[[], object] = lambda: None,
) -> Course:
    """Inject `faults` faults and check the records; Ctrl-C during the faults skips to the check.

    The faults are of `kinds`. One is injected about every `gap_s` seconds, and none while `open_faults` others are not
    recovered from: an installation that has stopped altogether cannot be broken further. `advance` is called at each
    fault.
    """
    course, ledger = Course(seed), Ledger()
    began = time.monotonic()
    with ExitStack() as stack:
        settings = {**SETTINGS, **prepare(folder / "clock", os.environ)}
        installation = Installation(home, folder, settings=settings, registry_home=registry_home)
        # The broker removes its folder when it ends, but not the mounted one in it.
        stack.callback(shutil.rmtree, installation.broker.data.parent, ignore_errors=True)
        logs = stack.enter_context(Disk(installation.broker.data))
        kernels = stack.enter_context(Disk(folder / "store" / "kernels"))
        checkpoints = stack.enter_context(Disk(folder / "store" / "checkpoints"))
        course.means = kernels.means
        release = last_release.unpack(folder / "release")
        course.left_out = _left_out(registry_home is not None, release is not None)
        for kind, reason in course.left_out.items():
            console.print(f"left out: {kind} ({reason})", highlight=False)
        stack.enter_context(installation)
        layout = {f"{kind}-{n + 1}": stages for kind, stages in LAYOUT.items() for n in range(workers)}
        telemetry = Telemetry(installation.kafka, installation.names, ledger, seed=seed, partitions=PARTITIONS)
        host = Host(installation.kafka, installation.names, ledger, telemetry)
        console.print(f"seed {seed}: starting {len(layout)} workers and a learner")
        upgrade = None
        if release is not None and "upgrade" not in course.left_out:
            upgrade = Upgrade(installation.fleet, telemetry, release, layout)
            upgrade.start()
            ledger.upgraded = True
        installation.fleet.start_all(layout if upgrade is None else upgrade.first)
        telemetry.start()
        host.start()
        stack.callback(host.stop)
        with _sampling(installation, ledger, telemetry):
            _wait(lambda: host.recovered(began) is not None, RECOVERY_TIMEOUT_S)
            if upgrade is not None:
                _step(course, host, "upgrade", began, upgrade.finish)
            try:
                possible = [name for name in ALL if name in kinds and name not in course.left_out]
                scene = Scene(installation, list(layout), telemetry, kernels, checkpoints, logs, possible)
                _inject(course, scene, host, faults, gap_s, open_faults, advance)
                _recover(course, host)
            except KeyboardInterrupt:
                course.interrupted = True
                console.print("interrupted: no more faults; draining and checking what happened so far")
            telemetry.finish()
            course.drained = _drained(installation, host, telemetry)
            if not course.interrupted:
                _step(course, host, "add_partitions", began, lambda: _add_partitions(installation, telemetry))
                telemetry.finish()
                course.drained = _drained(installation, host, telemetry) and course.drained
        for name in installation.fleet.names:
            installation.fleet.stop(name)
        course.ends = Counter(str(end.code) for end in installation.fleet.ends)
        ledger.crashes += [
            f"{end.name} ended with status {end.code}:\n{end.last_words}"
            for end in installation.fleet.ends
            if end.code == EXIT_SOFTWARE
        ]
        console.print("reading and checking all records")
        evidence = collect(installation.kafka, installation.names, installation.store, ledger)
        course.violations += judge(evidence, width=WIDTH, max_bytes=MAX_MESSAGE_BYTES)
        course.counts = _counts(evidence, host)
        if course.violations:
            save(evidence, folder / "evidence")
    course.seconds = time.monotonic() - began
    return course


def _left_out(registry: bool, release: bool) -> dict[str, str]:
    """Return the kinds and steps that are not possible, with the reason."""
    reasons = {}
    if registry:
        reasons["upgrade"] = "with a schema registry, which does not have the last release's schemas"
    else:
        reasons["registry_away"] = "no schema registry: REGISTRY_HOME is not set, or the seed is odd"
        if not release:
            reasons["upgrade"] = "the last release is not in the history here: no git repository, or a shallow one"
    return reasons


def _step(course: Course, host: Host, kind: str, began: float, happen: Callable[[], object]) -> None:
    """Do what is not possible among other faults, before or after them, and wait until the installation decides."""
    injection = Injection(kind, round(time.monotonic() - began, 2))
    course.injections.append(injection)
    console.print(f"             {kind}")
    try:
        injection.what = str(happen())
    except (TamiyoError, subprocess.CalledProcessError) as error:
        course.violations.append(Violation("a fault could not be injected", kind, _reason(error)))
        return
    injection.ended_s, injection.healed = round(time.monotonic() - began, 2), time.monotonic()
    _recover(course, host)


def _reason(error: TamiyoError | subprocess.CalledProcessError) -> str:
    output = f": {error.stdout}" if isinstance(error, subprocess.CalledProcessError) else ""
    return f"{error}{output}"[:2000]


def _add_partitions(installation: Installation, telemetry: Telemetry) -> str:
    """Give every topic twice the partitions after all runs have ended, and begin new runs."""
    partitions = 2 * telemetry.partitions
    command = [sys.executable, "-m", "tamiyo.streams.cli", "topics", "grow", "--partitions", str(partitions), "--yes"]
    subprocess.run(  # noqa: S603 (this command line, no shell)
        command, env={**os.environ, **installation.environment}, check=True, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    telemetry.partitions = partitions
    telemetry.start()
    return f"{partitions // 2} to {partitions}"


def _inject(
    course: Course, scene: Scene, host: Host, faults: int, gap_s: float, open_faults: int, advance: Callable[[], object]
) -> None:
    rng = random.Random(course.seed)
    start = time.monotonic()
    threads: list[threading.Thread] = []

    def happen(injection: Injection, source: random.Random) -> None:
        began = time.monotonic()
        try:
            injection.what = ALL[injection.kind][0](scene, source)
        except Exception as error:
            course.violations.append(Violation("a fault could not be injected", injection.kind, repr(error)[:500]))
        injection.ended_s = round(time.monotonic() - start, 2)
        injection.healed = began if injection.kind == "freeze_worker" else time.monotonic()

    for number, kind in enumerate(plan(faults, rng, scene.kinds)):
        injection = Injection(kind, round(time.monotonic() - start, 2))
        course.injections.append(injection)
        threads.append(
            threading.Thread(target=happen, args=(injection, random.Random(rng.random())), name=kind, daemon=True)
        )
        threads[-1].start()
        advance()
        console.print(f"{number + 1:4} of {faults}  {injection.began_s:7.1f} s  {kind}")
        time.sleep(rng.uniform(0.4, 1.6) * gap_s)
        _wait(lambda: _not_recovered(course, host) < open_faults, RECOVERY_TIMEOUT_S)
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)


def _not_recovered(course: Course, host: Host) -> int:
    """Record recoveries, and return the number of faults without one."""
    for number, injection in enumerate(course.injections):
        if injection.healed and injection.recovery_seconds is None:
            took = host.recovered(injection.healed)
            if took is not None:
                injection.recovery_seconds = round(took, 2)
                console.print(f"          {number + 1} {injection.kind} ({injection.what}): recovered in {took:.1f} s")
    return sum(each.recovery_seconds is None for each in course.injections)


def _recover(course: Course, host: Host) -> None:
    if not _wait(lambda: not _not_recovered(course, host), RECOVERY_TIMEOUT_S):
        left = f"{_not_recovered(course, host)} faults, {RECOVERY_TIMEOUT_S:.0f} s after the last"
        course.violations.append(Violation("no recovery", "", left))


def _wait(done: Any, timeout_s: float) -> bool:
    """Wait until `done`; return whether that came within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _drained(installation: Installation, host: Host, telemetry: Telemetry) -> bool:
    """Wait until every run's last graph is decided and no topic grows; return whether that happened in time.

    A topic that does not grow may also wait for a stage whose partitions nobody holds just then. So a shorter time
    without growth is enough only where the stages have committed all that they read.
    """
    console.print("no more telemetry: waiting for the remaining decisions")
    ends: Mapping[Any, int] = {}
    since, behind = time.monotonic(), True
    with closing(Collector(installation.kafka, installation.names)) as collector:

        def quiet() -> bool:
            nonlocal ends, since, behind
            with suppress(KafkaException):
                now = collector.ends(_places(telemetry.partitions))
                if now != ends or not set(telemetry.finished) <= host.ended:
                    ends, since = now, time.monotonic()
                behind = collector.behind(telemetry.partitions)
            return time.monotonic() - since >= (BEHIND_S if behind else QUIET_S)

        return _wait(quiet, DRAIN_TIMEOUT_S)


def _places(partitions: int) -> list[Place]:
    """Return the partitions of everything that stages publish, dead letters included."""
    names = [name for topic in OUTPUTS for name in (topic.name, topic.dead_letters)]
    return [(name, number) for name in names for number in range(partitions)]


@contextmanager
def _sampling(installation: Installation, ledger: Ledger, telemetry: Telemetry) -> Iterator[None]:
    """Sample committed offsets every two seconds, in a thread."""
    over = threading.Event()

    def sample() -> None:
        with closing(Collector(installation.kafka, installation.names)) as collector:
            while not over.wait(SAMPLE_S):
                with suppress(KafkaException):  # the broker is down, as a fault demands
                    ledger.samples.append(collector.sample(_places(telemetry.partitions)))

    thread = threading.Thread(target=sample, name="samples", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _counts(evidence: Evidence, host: Host) -> dict[str, int]:
    messages = {topic.name: len(evidence.entries(topic)) for topic in OUTPUTS}
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
