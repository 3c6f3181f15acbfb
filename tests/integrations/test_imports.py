"""Without its framework, an integration names the extra to install."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "framework"),
    [
        ("lightning", "lightning.pytorch"),
        ("transformers", "transformers"),
        ("accelerate", "accelerate"),
        ("tensorboard", "tensorboard"),
        ("mlflow", "mlflow"),
    ],
)
def test_a_missing_framework_is_reported_with_its_extra(module: str, framework: str) -> None:
    code = f"import sys; sys.modules[{framework!r}] = None; import tamiyo.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"pip install 'esper-tamiyo[{module}]'" in done.stderr.splitlines()[-1]
