"""Plant the listed changes, one at a time, and check that a test fails for each; see the package's docstring."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.planted_changes import ROOT, Change, load

PACKAGES = ("schemas", "models", "streams", "host", "integrations", "data", "evaluation")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".ns", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "results", "site"
)
TIMEOUT_S = 600  # of the tests of one change; pytest's own limit of 120 s a test comes first

console = Console()


class Verdict(StrEnum):
    """Whether the tests noticed a change."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    FAILED = "failed"
    """No test ran, or the tests fail without the change too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one change, and the end of what pytest printed."""

    change: Change
    verdict: Verdict
    output: str


@contextmanager
def copied_tree(root: Path) -> Iterator[Path]:
    """Copy the tree at `root`, with a folder `.ns` from which its packages are imported as `tamiyo.*`."""
    with tempfile.TemporaryDirectory(prefix="tamiyo-planted-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(root, copy, ignore=LEFT_OUT)
        namespace = copy / ".ns" / "tamiyo"
        namespace.mkdir(parents=True)
        for name in PACKAGES:
            if (copy / name).is_dir():
                (namespace / name).symlink_to(copy / name)
        yield copy


def run_tests(tree: Path, tests: str) -> tuple[int, str]:
    """Run tests of a copied tree on its own code; return pytest's exit status and the end of its output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / ".ns"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not kafka"]
    try:
        done = subprocess.run(
            [*command, *tests.split()],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"the tests did not end within {TIMEOUT_S} s"
    return done.returncode, (done.stdout + done.stderr)[-2000:]


def passes_unchanged(root: Path, tests: str) -> str:
    """Return why tests prove nothing about a change: they fail without it; empty when they pass."""
    with copied_tree(root) as tree:
        status, output = run_tests(tree, tests)
        return "" if status == 0 else output


def plant(root: Path, change: Change) -> Outcome:
    """Apply one change to a copy of the tree and run its tests."""
    with copied_tree(root) as tree:
        change.apply(tree)
        status, output = run_tests(tree, change.tests)
    verdict = {0: Verdict.SURVIVED, 1: Verdict.CAUGHT}.get(status, Verdict.FAILED)  # 2 to 5: pytest ran no test
    return Outcome(change, verdict, output)


def plant_all(root: Path, changes: Sequence[Change], jobs: int) -> Iterator[Outcome]:
    """Yield the outcome of every change as it is known; `jobs` run at a time."""
    by_tests: dict[str, list[Change]] = {}
    for change in changes:
        by_tests.setdefault(change.tests, []).append(change)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            checks = {pool.submit(passes_unchanged, root, tests): tests for tests in by_tests}
            plants = []
            for check in as_completed(checks):
                waiting = by_tests[checks[check]]
                if problem := check.result():
                    yield from (Outcome(each, Verdict.FAILED, f"without the change:\n{problem}") for each in waiting)
                else:
                    plants += [pool.submit(plant, root, each) for each in waiting]
            for planted in as_completed(plants):
                yield planted.result()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # each running pytest got the signal too, and its copy is removed
            raise


def select(changes: Sequence[Change], only: str) -> list[Change]:
    """Return the changes whose file or reason contains a text.

    Raises:
        ValueError: no change does.
    """
    if not (chosen := [each for each in changes if only in each.file or only in each.why]):
        raise ValueError(f"no file and no reason of a change contains {only!r}; --list prints them")
    return chosen


def main(
    areas: Annotated[list[str] | None, typer.Argument(help="Lists to take: streams, host, ... [default: all]")] = None,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Take changes whose file or reason contains this")] = "",
    list_only: Annotated[bool, typer.Option("--list", help="Print the changes and plant none")] = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Changes tried at a time")] = 2,
) -> None:
    """Plant small wrong changes in copies of the tree, one at a time; exit 1 if a change survives its tests.

    Examples: `python -m tests.planted_changes` · `python -m tests.planted_changes host models --jobs 4` ·
    `python -m tests.planted_changes runtime --only seek_to_committed` · `python -m tests.planted_changes --list`
    """
    try:
        changes = select(load(areas or ()), only)
    except ValueError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from error
    if list_only:
        for each in changes:
            console.print(f"{each.area}: {each.file}: {each.why}", markup=False, highlight=False, soft_wrap=True)
        return
    began, outcomes = time.monotonic(), []
    tests = len({each.tests for each in changes})
    console.print(f"{len(changes)} changes; {tests} sets of tests run on the unchanged tree first")
    for outcome in plant_all(ROOT, changes, jobs):
        outcomes.append(outcome)
        words = f"{len(outcomes):4} of {len(changes)}  {outcome.verdict:8}  {outcome.change.file}: {outcome.change.why}"
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    for outcome in outcomes:
        if outcome.verdict != Verdict.CAUGHT:
            change = outcome.change
            console.rule(f"{outcome.verdict}: {change.file}")
            text = f"{change.why}\n- {change.before.strip()}\n+ {change.after.strip()}\n{outcome.output}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    table = Table("area", *Verdict)
    for area in sorted({each.area for each in changes}):
        counts = Counter(each.verdict for each in outcomes if each.change.area == area)
        table.add_row(area, *(str(counts[verdict]) for verdict in Verdict))
    console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s")
    if any(each.verdict != Verdict.CAUGHT for each in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
