"""The wheel contains the tree."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("schemas", "streams", "models", "host", "integrations", "data", "evaluation")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Return the files that git would hand out."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: there is no list of files to compare with")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def source(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree, to build in."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked:
        if not name.startswith(("tests/", "typings/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


def test_the_wheel_contains_the_tree_and_the_licence(tracked: list[str], source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*command, "."], cwd=source, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        names = wheel.namelist()
        (licence,) = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        assert {b"License-Expression: Apache-2.0", b"License-File: LICENSE"} <= set(wheel.read(metadata).splitlines())
    shipped = {name for name in names if name.startswith("tamiyo/")}
    assert shipped == {
        f"tamiyo/{name}"
        for name in tracked
        if name.startswith(FOLDERS)
        and (
            name.endswith((".py", ".avsc", ".safetensors", "/py.typed", "/unit_costs.json"))
            or name.startswith("streams/watch/page/")
        )
    }


def test_the_source_distribution_contains_the_licence(source: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "host/_handle.py"} <= names


def test_the_training_side_needs_no_pipeline() -> None:
    # A fresh interpreter, in which importing Faust, torch-geometric or a stage fails.
    code = (
        "import sys\n"
        "pipeline = ('faust', 'torch_geometric', 'aiokafka', 'typer', 'tamiyo.streams', 'tamiyo.models')\n"
        "extras = ('matplotlib', 'lightning', 'transformers', 'accelerate', 'tensorboard', 'wandb', 'mlflow')\n"
        "extras += ('opentelemetry',)\n"
        "for name in (*pipeline, *extras):\n"
        "    sys.modules[name] = None\n"
        "import tamiyo.host._kernels.compiler, tamiyo.host.testing\n"
        "from tamiyo.host import Blueprint, Handle, HostSettings, attach, export, register\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
