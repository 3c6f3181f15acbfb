"""The examples that train: each runs as a user would run it, and shows what it promises."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    """Return what an example prints."""
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_attaching_a_model_grows_it() -> None:
    printed = run("attach_your_model.py")
    losses = [float(each) for each in re.findall(r"held-out loss ([\d.]+)", printed)]
    parameters = [int(each) for each in re.findall(r"(\d+) parameters", printed)]
    assert losses[1] < losses[0]
    assert parameters[1] > parameters[0]
    assert "load_kernel parallel_expansion at layer 2: executed at step 301" in printed
    assert "equal outputs: True" in printed


def test_a_blueprint_of_the_users_is_loaded_and_trained() -> None:
    printed = run("write_a_blueprint.py")
    without, with_kernel = (float(each) for each in re.findall(r"loss ([\d.]+)", printed))
    assert with_kernel < without / 2
    assert "example_gated_unit: executed, 228 parameters added" in printed


def test_a_compiled_model_grows() -> None:
    printed = run("compiled_model.py")
    assert "1 kernel" in printed
    assert "compiled and plain agree: True" in printed


def test_the_ranks_of_a_distributed_run_grow_alike() -> None:
    printed = run("distributed_training.py")
    assert "1 kernel" in printed
    assert "parameters of all ranks are equal: True" in printed
