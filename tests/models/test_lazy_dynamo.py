import subprocess
import sys
from pathlib import Path

import pytest

from tamiyo.models.checkpoint import CheckpointHeader, checksum, save
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tests.support.factories import BLUEPRINTS

ROOT = Path(__file__).parents[2]
LOADED = "'torch._dynamo' in sys.modules"


def run(program: str) -> None:
    """Run a program in an interpreter of its own, in which nothing is imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_decision_is_sampled_without_it(tmp_path: Path) -> None:
    policy = TamiyoPolicy(PolicyConfig(blueprints=BLUEPRINTS, hidden=8, layers=1))
    header = CheckpointHeader.of(
        policy, version=0, parent_version=None, offsets={}, experiences=0, updates=0, metrics={}, time_ms=0
    )
    data = save(policy, None, header)
    (tmp_path / "checkpoint").write_bytes(data)
    run(
        "import sys\n"
        "from pathlib import Path\n"
        "import tamiyo.streams.stages.decisions.stage\n"
        "from tamiyo.models.behaviour import choose\n"
        "from tamiyo.models.checkpoint import load\n"
        "from tamiyo.models.masks import MaskLimits, legal_actions\n"
        "from tests.support.factories import make_graph\n"
        f"data = Path({str(tmp_path / 'checkpoint')!r}).read_bytes()\n"
        f"policy = load(data, {checksum(data)!r})[0]\n"
        "graph = make_graph(5)\n"
        "choose(policy, graph, legal_actions(graph, policy.kinds, limits=MaskLimits()), seed=7)\n"
        f"assert not {LOADED}\n"
    )


@pytest.mark.parametrize(
    "use",
    [
        "from torch_geometric import is_torch_instance\n"
        "model = torch.compile(torch.nn.Linear(2, 3), backend='eager')\n"
        "assert is_torch_instance(model, torch.nn.Linear)\n"
        "assert model(torch.ones(1, 2)).shape == (1, 3)",
        "torch.optim.AdamW(torch.nn.Linear(2, 3).parameters())",
    ],
    ids=["compile", "optimizer"],
)
def test_the_first_use_loads_the_real_module(use: str) -> None:
    run(
        "import sys\n"
        "import tamiyo.models.policy\n"
        "import torch\n"
        f"assert not {LOADED}\n"
        f"{use}\n"
        "assert sys.modules['torch._dynamo'].__file__ == torch._dynamo.__file__\n"
    )


def test_two_threads_use_it_first_at_the_same_time() -> None:
    run(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "import tamiyo.models.policy\n"
        "import torch\n"
        "barrier = Barrier(2)\n"
        "def use(statement):\n"
        "    barrier.wait()\n"
        "    exec(statement, {'torch': torch})\n"
        "with ThreadPoolExecutor(2) as pool:\n"
        "    statements = 'torch._dynamo.OptimizedModule', 'from torch._dynamo.eval_frame import OptimizedModule'\n"
        "    list(pool.map(use, statements))\n"
    )


def test_a_use_inside_the_context_loads_the_real_module() -> None:
    run(
        "import sys\n"
        "from tamiyo.models.lazy_dynamo import without_dynamo\n"
        "with without_dynamo():\n"
        "    import torch._dynamo\n"
        "    assert type(sys.modules['torch._dynamo']).__name__ == '_Placeholder'\n"
        "    from torch._dynamo import OptimizedModule\n"
        "    import torch._dynamo.eval_frame\n"
        "assert sys.modules['torch._dynamo'] is torch._dynamo\n"
        "assert torch._dynamo.OptimizedModule is OptimizedModule\n"
    )


def test_a_module_that_is_loaded_already_stays() -> None:
    run(
        "import sys\n"
        "import torch._dynamo\n"
        "loaded = torch._dynamo\n"
        "import tamiyo.models.policy\n"
        "assert sys.modules['torch._dynamo'] is torch._dynamo is loaded\n"
    )
