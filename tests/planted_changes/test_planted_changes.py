"""The lists of planted changes fit the code, and the runner distinguishes caught changes from survivors."""

from pathlib import Path

import pytest

from tests.planted_changes import ROOT, Change, areas, load
from tests.planted_changes.__main__ import Verdict, passes_unchanged, plant, select


@pytest.mark.parametrize("area", areas())
def test_every_change_fits_the_code(area: str) -> None:
    for change in load([area]):
        found = (ROOT / change.file).read_text().count(change.before)
        assert found == 1, f"{change.file}: found {found} times, expected once:\n{change.before}"
        assert change.after != change.before, change
        assert change.why, change
        for test in change.tests.split():
            assert (ROOT / test.partition("::")[0]).exists(), f"{change.file}: there is no {test}"


def test_no_change_is_listed_twice() -> None:
    changes = [(each.file, each.before, each.after) for each in load()]
    assert len(changes) == len(set(changes))


def test_an_unknown_area_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no area 'nowhere'"):
        load(["nowhere"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of one function and one test."""
    (tmp_path / "streams").mkdir()
    (tmp_path / "streams" / "sums.py").write_text("def add(a, b):\n    return a + b  # of two numbers\n")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["kafka"]\n')
    test = "from tamiyo.streams.sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
    (tmp_path / "test_sums.py").write_text(test)
    return tmp_path


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("a + b", "a - b", Verdict.CAUGHT),
        ("# of two numbers", "# of two integers", Verdict.SURVIVED),
        ("def add", "de add", Verdict.FAILED),
    ],
)
def test_a_change_is_judged_by_its_tests(tree: Path, before: str, after: str, verdict: Verdict) -> None:
    change = Change("area", "streams/sums.py", before, after, "test_sums.py", "sums would be wrong")
    outcome = plant(tree, change)
    assert outcome.verdict == verdict, outcome.output
    assert before in (tree / "streams" / "sums.py").read_text()  # planted in a copy


def test_tests_that_fail_without_the_change_prove_nothing(tree: Path) -> None:
    assert passes_unchanged(tree, "test_sums.py") == ""
    (tree / "test_sums.py").write_text("def test():\n    assert False\n")
    assert "1 failed" in passes_unchanged(tree, "test_sums.py")


def test_a_text_that_is_not_there_once_is_not_replaced(tree: Path) -> None:
    for before in ("a", "missing"):
        change = Change("area", "streams/sums.py", before, "c", "test_sums.py", "why")
        with pytest.raises(ValueError, match=r"found it \d+ times"):
            change.apply(tree)


def test_some_changes_are_chosen_by_their_file_or_their_reason() -> None:
    made = [Change("area", f"streams/{name}.py", "a", "b", "t.py", f"{name} would fail") for name in ("seek", "send")]
    assert select(made, "") == made
    assert select(made, "streams/seek") == select(made, "seek would") == made[:1]
    with pytest.raises(ValueError, match="contains 'nowhere'; --list"):
        select(made, "nowhere")
