"""The notebooks run from their first cell to their last, and lie in the repository without outputs."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "topics_to_plot.ipynb"
TIMEOUT_S = 90


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after a run, in a process of its own."""
    folder = tmp_path_factory.mktemp("jupyter")
    names = {"IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "runtime", "MPLCONFIGDIR": "matplotlib"}
    private = {
        name: str(folder / each) for name, each in names.items()
    }  # nothing of the user's, and nothing left there
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(EXAMPLES)}})
    client.execute(env={**os.environ, **private})
    return notebook


def outputs(notebook: Any, kind: str) -> list[str]:
    """Return what the cells showed in one format."""
    shown = [each.get("data", {}) for cell in notebook.cells for each in cell.get("outputs", [])]
    return [each[kind] for each in shown if kind in each]


def test_the_notebook_shows_a_plot_and_tables(executed: Any) -> None:
    (plot,) = outputs(executed, "image/png")
    assert len(plot) > 10_000
    actions, windows = outputs(executed, "text/plain")[1:]
    assert "load_kernel" in actions
    assert "layers.0" in windows


def test_the_plot_takes_ten_lines() -> None:
    (plot,) = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "plt.plot(" in cell.source]
    assert len([line for line in plot.splitlines() if line]) <= 10


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_have_no_outputs_in_the_repository(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
