"""What `tamiyo lab` is given: its options, and how their values are checked."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tamiyo.schemas.errors import ConfigurationError, DatasetError

HIGHEST_SEED = 2**31 - 1
MOST_SEEDS = 10_000
FEWEST_STEPS = 100
"""A run's first decision is due after the first window, of 50 steps."""
MOST_STEPS = 1_000_000
EXTRA = ("gymnasium", "pyarrow", "scipy")

# For a shell's completion, which must not import torch; `task_names`, `BASELINES`, `STATICS` and `GROMO` have them too.
TASKS = (
    "mnist1d", "digits", "mnist5k", "chars", "resnet", "charconv", "mixer", "digits_deep", "digits_clean",
    "digits_wide", "mnist1d_flat", "mnist1d_gelu", "mnist5k_flat", "mnist5k_few",
)  # fmt: skip
POLICIES = (
    "never", "heuristic", "random", "pump", "at_once", "cheapest", "periodic", "plateau", "greedy_growth",
    "greedy_counterfactual", "learned", "builtin", "builtin_without_edges", "static", "static_wider", "gromo",
)  # fmt: skip


def complete_tasks(incomplete: str) -> list[str]:
    """Return the tasks that complete the last of the names, which are separated by commas."""
    return _completed(incomplete, TASKS)


def complete_policies(incomplete: str) -> list[str]:
    """Return the policies that complete the last of the names, which are separated by commas."""
    return _completed(incomplete, POLICIES)


def _completed(incomplete: str, names: Sequence[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


TaskArgument = Annotated[
    str, typer.Argument(autocompletion=complete_tasks, help="Training task; `tamiyo lab tasks` lists them.")
]
PolicyOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=complete_policies,
        help="What decides, such as never, heuristic, builtin, random:0.2 or learned:FILE; `run` also takes static, "
        "static_wider and gromo, in which nobody does.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=HIGHEST_SEED, metavar="N", help="Seed of the initialisation and the data order.")
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=FEWEST_STEPS, max=MOST_STEPS, metavar="N", help="Training steps. [default: as many as the task recommends]"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]
TasksOption = Annotated[
    str, typer.Option(metavar="NAMES", autocompletion=complete_tasks, help="Training tasks, separated by commas.")
]
PoliciesOption = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        autocompletion=complete_policies,
        help="Policies, separated by commas; `compare` also takes static, static_wider, static:NAME and gromo.",
    ),
]
SeedsOption = Annotated[str, typer.Option(metavar="SEEDS", help="Seeds, such as 0-9 or 1,3,8-12.")]
WorkersOption = Annotated[
    int, typer.Option(min=1, max=256, metavar="N", help="Processes, one core and some 500 MB each.")
]


def task_names() -> dict[str, str]:
    """Return every task with its use."""
    from tamiyo.evaluation.lab.hosts import HOSTS
    from tamiyo.host._reference.tasks import HELD_OUT_TASKS, LAB_TASKS

    return {
        **dict.fromkeys(LAB_TASKS, "training"),
        **dict.fromkeys(HELD_OUT_TASKS, "held out: nothing is fitted to it"),
        **dict.fromkeys(HOSTS, "fitting the reward's estimator"),
    }


def require_known(tasks: Sequence[str], policies: Sequence[str], *, rivals: bool = False) -> None:
    """Raise DatasetError or ConfigurationError for a name that does not exist.

    Args:
        tasks: Names of tasks.
        policies: Names of policies.
        rivals: Whether these may also be what trains a network without a policy.
    """
    from tamiyo.evaluation.lab.baselines import baseline
    from tamiyo.evaluation.lab.hosts import DRAWN, is_drawn
    from tamiyo.evaluation.lab.statics import trained_otherwise

    for name in tasks:
        if name not in task_names() and not is_drawn(name):
            *others, last = (f"{prefix}-N" for prefix in DRAWN)
            drawn = f"{', '.join(others)} and {last}, drawn from the seed N"
            raise DatasetError(f"there is no task {name!r}; there are {', '.join(task_names())}, and {drawn}")
    for name in policies:
        if name == "learned" or (rivals and trained_otherwise(name)):  # learned takes a second to make, and exists
            continue
        baseline(name)


def parse_names(text: str, flag: str) -> list[str]:
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise ConfigurationError(f"{flag} {text!r}: expected names separated by commas")
    return found


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that `text` lists, such as 0-9 or 1,3,8-12."""
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_seed(first) or (dash and not _is_seed(last)):
            raise ConfigurationError(f"--seeds {text}: expected seeds up to {HIGHEST_SEED}, such as 0-9 or 1,3,8-12")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ConfigurationError(f"--seeds {text}: {low} is greater than {high}")
        if high - low >= MOST_SEEDS or len(found) > MOST_SEEDS:
            raise ConfigurationError(f"--seeds {text}: more than {MOST_SEEDS:,} seeds")
        found.update(dict.fromkeys(range(low, high + 1)))
    return list(found)


def _is_seed(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= HIGHEST_SEED


def require_writable(folder: Path) -> None:
    """Make a folder if it is missing; raise ConfigurationError if files cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".tamiyo-")
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise ConfigurationError(f"cannot write into {folder}: {error.strerror}") from error


@contextmanager
def needs_extra() -> Iterator[None]:
    """Explain a missing package of the extra in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise ConfigurationError(f"`tamiyo lab` needs {error.name}: pip install 'esper-tamiyo[lab]'") from error
