import pytest

from tamiyo.evaluation.bench import host
from tamiyo.evaluation.bench.host import long_enough, loop


@pytest.mark.parametrize(
    ("shortest_s", "batch"),
    [(0.0, 64), (3600.0, 512)],  # a step that no batch makes long enough: the largest with two batches an epoch
)
def test_batches_grow_until_a_step_is_long_enough_for_its_bar(monkeypatch, shortest_s, batch):
    monkeypatch.setattr(host, "TIMED_STEPS", 1)
    monkeypatch.setattr(host, "TURNS", 1)
    task = loop("digits")
    found = long_enough(task, shortest_s)
    assert found.batch_size == batch
    assert found.train is task.train
