"""The frameworks in two processes: one run, the same decisions at the same step, equal parameters, and a resume."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.host.loops.ranks import needs_gloo
from tests.integrations.ranked_training import SAVED, STEPS

pytestmark = [*needs_gloo, pytest.mark.timeout(300)]

TIMEOUT_S = 240
"""A busy machine imports a framework in half a minute, twice."""

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint",
            "127.0.0.1:0", "--no-python", sys.executable]  # fmt: skip
LAUNCHERS: dict[str, list[str]] = {"lightning": [], "accelerate": TORCHRUN, "transformers": TORCHRUN}
"""Lightning starts its second process by itself."""


@pytest.fixture(scope="module", params=LAUNCHERS)
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    name = request.param
    pytest.importorskip(name)
    folder = tmp_path_factory.mktemp(name)
    command = [sys.executable, *LAUNCHERS[name], "-m", "tests.integrations.ranked_training", name, str(folder)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert code == 0, log.read_text()[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_all_ranks_execute_the_same_decisions_at_the_same_step(reports: list[dict[str, Any]]) -> None:
    first, second = (report["whole"] for report in reports)
    assert first["executed"] == second["executed"]
    assert [step for step, _ in first["executed"]] == [4, 12]
    assert first["run"] == second["run"]
    assert first["step"] == second["step"] == STEPS
    assert first["errors"] == second["errors"] == 0
    assert first["kernel_parameters"] == second["kernel_parameters"] == 0
    assert first["closed"]


def test_parameters_stay_equal(reports: list[dict[str, Any]]) -> None:
    for part in ("whole", "resumed"):
        assert reports[0][part]["parameters"] == reports[1][part]["parameters"]


def test_telemetry_is_that_of_rank_0(reports: list[dict[str, Any]]) -> None:
    for part in ("whole", "resumed"):
        assert reports[0][part]["frames"] > 2
        assert reports[1][part]["frames"] <= 1  # the final one, in a transport that a user has passed to it


def test_a_resumed_training_continues_as_if_it_had_not_stopped(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        whole, resumed = report["whole"], report["resumed"]
        assert resumed["parameters"] == whole["parameters"]
        assert resumed["step"] == STEPS
        assert [step for step, _ in resumed["executed"]] == [12]  # the kernel came with the checkpoint of step SAVED
        assert SAVED < 12
        assert resumed["errors"] == 0
