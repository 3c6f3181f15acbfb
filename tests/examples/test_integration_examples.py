"""The examples of the frameworks' pages: each grows, and the frameworks' resume with the kernels."""

import re

import pytest

from tests.examples.test_training_examples import run

GROWN = re.compile(r"^step (\d+): .*?([\d,]+)(?: of them)? (?:parameters )?in kernels$", re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "steps", "loads"),
    [
        ("pytorch_loop.py", [128], ["step 33: load_kernel bottleneck at layer 0: executed"]),
        ("lightning_trainer.py", [64, 128], ["step 41: load_kernel bottleneck at layer net.0: executed"]),
        ("huggingface_trainer.py", [64, 128], ["step 41: load_kernel parallel_expansion at layer bert."]),
        ("accelerate_loop.py", [32, 96], ["step 11: load_kernel bottleneck at layer 0: executed"]),
    ],
)
def test_the_network_grows_and_a_resumed_process_has_the_kernels(name: str, steps: list[int], loads: list[str]) -> None:
    printed = run(name)
    for load in loads:
        assert printed.count(load) == 1
    grown = [(int(step), int(parameters.replace(",", ""))) for step, parameters in GROWN.findall(printed)]
    assert [step for step, _ in grown] == steps
    assert len({parameters for _, parameters in grown}) == 1
    assert grown[0][1] > 0
    assert printed.count("kernel_added") == 2  # when it was loaded, and when it was restored


def test_a_run_is_logged_and_drawn() -> None:
    printed = run("log_a_run.py")
    values = re.search(r"MLflow has (\d+) values", printed)
    assert values is not None
    assert int(values[1]) >= 2
    for line in ("TensorBoard: 1 file", "W&B: 1 offline run", "step 101: load_kernel bottleneck", "drawn: True"):
        assert line in printed
