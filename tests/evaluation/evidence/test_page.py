from pathlib import Path

import pytest

from tamiyo.evaluation.evidence import figures, page, policy, reward
from tests.evaluation.evidence.rows import decision_rows, run_rows


def test_the_page_is_replaced_between_its_marks_only(tmp_path: Path) -> None:
    path = tmp_path / "evidence.md"
    path.write_text(f"before\n{page.BEGIN}\noutdated text\n{page.END}\nafter\n")
    found = {
        "reward": reward.report(decision_rows(), run_rows(), "fitted-1"),
        "fitted_to": {"runs": 7},
        **policy.report([], [], []),
    }
    page.write(path, found)
    first = path.read_text()
    assert first.startswith("before\n")
    assert first.endswith(f"{page.END}\nafter\n")
    assert "outdated text" not in first
    assert "`fitted-1`, fitted to 7 runs" in first
    assert "| digits |  |" in first
    assert "| mixer | yes |" in first
    page.write(path, found)
    assert path.read_text() == first


@pytest.mark.parametrize("text", ["", page.BEGIN, page.END])
def test_a_page_without_marks_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evidence.md"
    path.write_text(text)
    found = {"reward": reward.report(decision_rows(), run_rows(), "x"), "fitted_to": {}, **policy.report([], [], [])}
    with pytest.raises(ValueError, match="lacks the marks"):
        page.write(path, found)
    assert path.read_text() == text


def test_the_same_rows_give_the_same_figures(tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        figures.draw(decision_rows(), run_rows(), tmp_path / name)
        drawn.append({each.name: each.read_bytes() for each in sorted((tmp_path / name).iterdir())})
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {figures.GAINS, figures.SUMS}
