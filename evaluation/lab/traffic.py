"""Runs with their twins, in parallel and resumable: what the reward's estimator is fitted to and judged by.

Each run is one Parquet file: its rows are the records that the rewards stage read, in order, and its metadata has the
run's curve and the curves of its branches. A finished file is not made again.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import structlog
import torch

from tamiyo.evaluation.common.parquet import write_table
from tamiyo.evaluation.common.worker_process import prepare
from tamiyo.evaluation.lab.baselines import Baseline, Never, baseline
from tamiyo.evaluation.lab.run import Run, RunResult, RunSpec
from tamiyo.evaluation.lab.statics import remember, trained_otherwise
from tamiyo.evaluation.lab.twins import twin
from tamiyo.models.behaviour import Choice
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import TamiyoError
from tamiyo.schemas.identity import decision_id, sampling_seed
from tamiyo.schemas.topics import BY_NAME, DECISIONS, GRAPHS, OUTCOMES, WINDOWS, Topic

LOGGED = (GRAPHS, DECISIONS, OUTCOMES, WINDOWS)
"""What the rewards stage reads."""

ALONE = "alone"
"""The branch without the decision and with no later adaptation."""
UNDER_POLICY = "under_policy"
"""The branch without the decision that goes on under the run's policy."""
REPEATED_WITH = "repeated_with"
REPEATED_WITHOUT = "repeated_without"
"""With and without the decision, no later adaptation, on another order of the data from there on."""
REORDERED_WITH = "reordered_with"
REORDERED_WITHOUT = "reordered_without"
"""With and without the decision under the run's policy, on another order of the data from there on."""
REDRAWN_WITH = "redrawn_with"
REDRAWN_WITHOUT = "redrawn_without"
"""The same on a third order of the data, and with another random stream of the policy."""

MOST_LOST = 3
"""Processes killed in a row, without a run finished between, after which no more are started."""

REORDERED = 1_000_003
"""Added to a run's seed for another order of the data; twice for a third order."""
STREAM = 1
"""The policy's other random stream."""


def file_name(*parts: object) -> str:
    """Return parts of a name, such as a task, a policy and a seed, as the name of a file, without its suffix."""
    return re.sub(r"[^\w.-]", "_", "-".join(map(str, parts)))


@dataclass(frozen=True, slots=True)
class Job:
    """One run to make."""

    task: str
    policy: str
    """Name of a baseline; `random:0.3` is random traffic at that rate."""
    seed: int
    alone: float = 1.0
    """Share of the decisions whose branch without later adaptations is trained."""
    under_policy: float = 0.0
    """Share of the decisions whose branch under the same policy is trained."""
    repeated: float = 0.0
    """Share of the decisions whose effect is measured again on another order of the data."""
    reordered: float = 0.0
    """Share of the decisions whose worth is measured again on another order of the data."""
    redrawn: float = 0.0
    """Share of the decisions whose worth is measured again with another random stream of the policy as well."""
    steps: int = 0
    """Length of the run; 0: as the task recommends."""

    @property
    def name(self) -> str:
        """Name of the run's file."""
        return file_name(self.task, self.policy, self.seed)

    def make_policy(self) -> Baseline:
        """Return the policy; raises ConfigurationError if there is none of this name."""
        return baseline(self.policy)

    def make(self) -> Traffic:
        """Make the run with its branches."""
        return make(self)


@dataclass(frozen=True, slots=True)
class Branch:
    """A twin that left its run at a decision."""

    decision_id: str
    kind: str
    result: RunResult


@dataclass(frozen=True, slots=True)
class Traffic:
    """A run, its branches, and what the rewards stage read of it."""

    job: Job
    result: RunResult
    branches: list[Branch] = field(default_factory=list)
    log: list[tuple[str, bytes]] = field(default_factory=list)
    """Topic and record, in order."""

    def records(self) -> Iterator[tuple[Topic, Any]]:
        """Yield the logged records, decoded."""
        for name, data in self.log:
            topic = BY_NAME[name]
            yield topic, decode(data, topic.record)

    def branch(self, decision: str, kind: str) -> RunResult | None:
        """Return the result of a decision's branch; None if it was not trained."""
        return next((b.result for b in self.branches if (b.decision_id, b.kind) == (decision, kind)), None)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        about = {
            "job": asdict(self.job),
            "result": self.result.to_dict(),
            "branches": [{**asdict(b), "result": b.result.to_dict()} for b in self.branches],
        }
        schema = pa.schema([("topic", pa.string()), ("record", pa.binary())], metadata={"tamiyo": json.dumps(about)})
        write_table(pa.table([[t for t, _ in self.log], [d for _, d in self.log]], schema=schema), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote."""
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"tamiyo"])
        branches = [Branch(b["decision_id"], b["kind"], RunResult.from_dict(b["result"])) for b in about["branches"]]
        log = list(zip(table["topic"].to_pylist(), table["record"].to_pylist(), strict=True))
        return cls(Job(**about["job"]), RunResult.from_dict(about["result"]), branches, log)


class Saved(Protocol):
    """The result of a job."""

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""


class AnyJob(Protocol):
    """A run to make, of any kind."""

    @property
    def name(self) -> str:
        """Name of the run's file, without its suffix."""

    def make(self) -> Saved:
        """Make the run."""


OneJob = TypeVar("OneJob", bound=AnyJob)


def make(job: Job, on_step: Callable[[int], None] | None = None) -> Traffic:
    """Make one run with its branches; `on_step` is called at every decision with the completed steps."""
    spec = RunSpec(job.task, job.seed, job.steps)
    if (train := trained_otherwise(job.policy)) is not None:
        return Traffic(job, train(spec))
    log: list[tuple[str, bytes]] = []
    branches: list[Branch] = []

    def observe(topic: Topic, record: Any, data: bytes) -> None:
        if topic in LOGGED:
            log.append((topic.name, data))

    rule = {"rewards": {"estimator": "rule"}}  # rewards do not influence a run, and an estimator is fitted to this
    with Run(spec, job.make_policy(), settings=rule, observer=observe) as run:
        while (graph := run.advance()) is not None:
            if on_step is not None:
                on_step(run.step)
            choice = run.pipeline.choose(graph)
            if choice.index != 0:
                branches += _branches(job, run, graph, choice)
            run.decide(choice)
        result = run.result()
    remember(job.policy, spec, result)
    return Traffic(job, result, branches, log)


def _branches(job: Job, run: Run, graph: ModelGraph, choice: Choice) -> Iterator[Branch]:
    name = decision_id(graph.graph_id)
    compute = run.plain_compute
    if run.clock.training_seconds >= compute:
        return  # nothing that happens from here on counts at equal compute
    draw = (sampling_seed(name) % 10_000) / 10_000  # the same decisions for every share
    if draw < job.alone:
        yield Branch(name, ALONE, twin(run, policy=Never(), compute=compute))
    if draw < job.under_policy:
        yield Branch(name, UNDER_POLICY, twin(run))
    if draw < job.repeated:
        other = job.seed + REORDERED
        yield Branch(name, REPEATED_WITH, twin(run, choice, policy=Never(), compute=compute, data_seed=other))
        yield Branch(name, REPEATED_WITHOUT, twin(run, policy=Never(), compute=compute, data_seed=other))
    if draw < job.reordered:
        other = job.seed + REORDERED
        yield Branch(name, REORDERED_WITH, twin(run, choice, data_seed=other))
        yield Branch(name, REORDERED_WITHOUT, twin(run, data_seed=other))
    if draw < job.redrawn:
        third = job.seed + 2 * REORDERED
        yield Branch(name, REDRAWN_WITH, twin(run, choice, data_seed=third, stream=STREAM))
        yield Branch(name, REDRAWN_WITHOUT, twin(run, data_seed=third, stream=STREAM))


def missing(jobs: Iterable[OneJob], folder: Path) -> list[OneJob]:
    """Return the jobs whose file does not exist yet."""
    return [job for job in jobs if not file_path(folder, job).exists()]


def load(folder: Path, jobs: Iterable[Job] | None = None) -> Iterator[Traffic]:
    """Yield the runs of a folder: those of `jobs` that exist, or all, by name."""
    paths = sorted(folder.glob("*.parquet")) if jobs is None else [file_path(folder, job) for job in jobs]
    for path in paths:
        if path.exists():
            yield Traffic.load(path)


def conflicts(jobs: Iterable[Job], folder: Path) -> list[Job]:
    """Return the jobs whose file exists and was made by another job of the same name, such as one of other length."""
    return [job for job in jobs if (path := file_path(folder, job)).exists() and Job(**_about(path)["job"]) != job]


def _about(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"tamiyo"])
    return found


def generate(
    jobs: Iterable[OneJob], folder: Path, workers: int, on_done: Callable[[OneJob, Exception | None], None]
) -> int:
    """Make the missing runs in `workers` processes, and return how many there were; Ctrl-C keeps what is finished.

    Args:
        jobs: The runs.
        folder: Where their files are.
        workers: Processes, one core each.
        on_done: Called after each run, with the error if it failed; the other runs go on.

    Raises:
        TamiyoError: Processes are killed again and again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = missing(jobs, folder)
    if workers == 1:
        for job in left:
            on_done(job, _make_file(job, folder))
        return len(left)
    count, lost = len(left), 0
    while left:
        before = len(left)
        left = _in_parallel(left, folder, workers, on_done)
        lost = lost + 1 if len(left) == before else 0
        if lost == MOST_LOST:
            raise TamiyoError(
                f"{lost} times in a row a process ended before any of {len(left)} runs was finished; is there memory "
                f"for {workers} workers?"
            )
    return count


def _in_parallel(
    jobs: list[OneJob], folder: Path, workers: int, on_done: Callable[[OneJob, Exception | None], None]
) -> list[OneJob]:
    """Make runs in processes; return those that are left because a process was killed."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=prepare) as pool:
        try:
            pending = {pool.submit(_make_file, job, folder): job for job in jobs}
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    error = future.result()
                    on_done(pending.pop(future), error)
        except BrokenProcessPool:
            return missing(pending.values(), folder)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # waits for the files being written
            raise
    return []


def _make_file(job: AnyJob, folder: Path) -> Exception | None:
    """Make a run and write its file; return the error instead of raising it."""
    try:
        with quiet():
            job.make().save(file_path(folder, job))
    except Exception as error:
        return RuntimeError(f"{job.name}: {type(error).__name__}: {error}")
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Return a context with one torch thread in which errors only are logged: a run logs every decision."""
    logger, before = logging.getLogger("tamiyo"), structlog.get_config()
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.ERROR)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)
        structlog.configure(**before)


def file_path(folder: Path, job: AnyJob) -> Path:
    """Return where the run of a job is kept."""
    return folder / f"{job.name}.parquet"
