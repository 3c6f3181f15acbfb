from collections.abc import Callable
from pathlib import Path

import pytest

from tests.streams.stages.decisions.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def make_bench(tmp_path: Path) -> Callable[..., Bench]:
    return lambda **fields: Bench(tmp_path, **fields)
