"""The wheel contains the tree, and the README's facts are true."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tamiyo.schemas.topics import CATALOGUE

ROOT = Path(__file__).parents[1]
FOLDERS = ("schemas", "streams", "models", "host", "evaluation")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Return the files that git would hand out."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: there is no list of files to compare with")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_wheel_contains_the_tree(tracked: list[str], tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "wheel"
    for name in tracked:
        if not name.startswith(("tests/", "typings/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(target), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        shipped = {name for name in wheel.namelist() if name.startswith("tamiyo/")}
    assert shipped == {
        f"tamiyo/{name}" for name in tracked if name.startswith(FOLDERS) and name.endswith((".py", ".avsc"))
    }


def test_the_training_side_needs_no_pipeline() -> None:
    # A fresh interpreter, in which importing Faust, torch-geometric or a stage fails.
    code = (
        "import sys\n"
        "for name in ('faust', 'torch_geometric', 'aiokafka', 'typer', 'tamiyo.streams', 'tamiyo.models'):\n"
        "    sys.modules[name] = None\n"
        "import tamiyo.host.attachment, tamiyo.host.layers.export, tamiyo.host.kernels.compiler\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_lists_the_topics() -> None:
    text = (ROOT / "README.md").read_text()
    for topic in CATALOGUE:
        record = topic.record.__name__
        row = f"| `{topic.name}` | [{record}](schemas/avro/{record}.avsc) | {topic.writer} | "
        assert f"{row}{', '.join(topic.readers)} | {topic.cleanup} |" in text


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
