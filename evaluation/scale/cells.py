"""What `make scale` measures, a cell at a time: more runs, more layers, more workers."""

from collections.abc import Iterator
from dataclasses import dataclass

from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.streams.settings import WindowSettings

WIDTH: int = WindowSettings.model_fields["width"].default
CHAIN = ("intake", "windows", "graphs", "decisions")
EACH_ALONE = (*((stage,) for stage in CHAIN), ("rewards",))
"""A worker for every stage, so that each stage's processor time is known."""
INTERVAL = 25
"""Training steps from one sampled step to the next: the SDK's default."""
STEPS_PER_WINDOW = WIDTH // INTERVAL


@dataclass(frozen=True)
class Cell:
    """One measurement: a load, and the workers that process it."""

    name: str
    load: Load
    workers: tuple[tuple[str, ...], ...]
    """The stages of each worker process."""
    pinned: bool = False
    """Whether each worker has a core of its own."""
    repeats: int = 1


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measurements."""

    runs: tuple[int, ...]
    memory: tuple[tuple[int, int], ...]
    """Further (runs, layers), for the memory of a run of more layers."""
    layers: tuple[int, ...]
    signals: int
    """Layer-signals of a cell, at least; the cells of most runs and most layers have more."""
    learner: tuple[int, ...]
    """Layers of the networks whose experiences the learner's update is measured with."""
    repeats: int


FULL = Sizes(
    runs=(1, 10, 100, 1000),
    memory=((20, 200), (200, 200)),
    layers=(1, 10, 100, 1000, 2000),
    signals=80_000,
    learner=(20, 200),
    repeats=3,
)
QUICK = Sizes(runs=(1, 10), memory=((2, 40),), layers=(1, 20), signals=2_000, learner=(4, 8), repeats=1)
RUN_LAYERS = 20
"""Layers of each run where the number of runs grows."""
MOST_STEPS = 2_000
"""Sampled steps of all runs of a cell of few layers: a frame of one layer costs as much as one of many."""


def steps_of(windows: int) -> int:
    """Return how many sampled steps complete `windows` windows and leave a last step for the next one."""
    return STEPS_PER_WINDOW * windows + 2


def load_of(name: str, *, runs: int, layers: int, signals: int) -> Load:
    """Return a load of at least `signals` layer-signals, if `MOST_STEPS` allow it, and of one window a run."""
    wanted = min(signals / (2 * layers), MOST_STEPS) / runs
    windows = max(1, round((wanted - 2) / STEPS_PER_WINDOW))
    return Load(runs=runs, layers=layers, frames=steps_of(windows), interval=INTERVAL, name=name)


def cells(sizes: Sizes, cores: int) -> Iterator[Cell]:
    """Yield every measurement on a broker."""
    for runs, layers in (*((runs, RUN_LAYERS) for runs in sizes.runs), *sizes.memory):
        name = f"{runs} runs of {layers} layers"
        load = load_of(f"scale-runs-{runs}-{layers}", runs=runs, layers=layers, signals=sizes.signals)
        yield Cell(name, load, (CHAIN,))
    for layers in sizes.layers:
        load = load_of(f"scale-layers-{layers}", runs=4, layers=layers, signals=sizes.signals)
        yield Cell(f"{layers} layers a frame", load, EACH_ALONE)
    for workers in (1, 2)[: min(cores, 2)]:
        load = load_of(f"scale-workers-{workers}", runs=32, layers=50, signals=sizes.signals)
        yield Cell(f"{workers} workers", load, (CHAIN,) * workers, pinned=True, repeats=sizes.repeats)
