"""Real data in separate splits, and networks that are the same again."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from tamiyo.host.reference.tasks import TASKS, Split, load_task
from tamiyo.schemas.errors import DatasetError

SIZES = {
    "mnist1d": ((1, 40), (3200, 800, 1000), 574),
    "digits": ((64,), (1150, 287, 360), 415),
    "mnist5k": ((1, 28, 28), (3200, 800, 1000), 328),
}


def rows(split: Split) -> set[bytes]:
    return {row.numpy().tobytes() for row in split.inputs}


@pytest.mark.parametrize("name", TASKS)
def test_splits_have_their_sizes_and_share_no_sample(name: str) -> None:
    task = load_task(name)
    shape, sizes, parameters = SIZES[name]
    splits = (task.train, task.validation, task.test)
    assert tuple(len(split) for split in splits) == sizes
    for split in splits:
        assert split.inputs.shape[1:] == shape
        assert (split.inputs.dtype, split.labels.dtype) == (torch.float32, torch.int64)
        assert split.labels.unique().tolist() == list(range(10))
    train, validation, test = (rows(split) for split in splits)
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert sum(p.numel() for p in task.network(0).parameters()) == parameters
    assert task.network(0)(task.train.inputs[:3]).shape == (3, 10)


def test_making_data_leaves_global_random_states_alone() -> None:
    load_task.cache_clear()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index, union-attr]
    load_task("digits").network(3)
    after = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index, union-attr]
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_a_seed_decides_initialisation_and_order() -> None:
    task = load_task("digits")

    def start(seed: int) -> tuple[Tensor, Tensor]:
        weight = next(task.network(seed).parameters()).detach()
        return weight, next(task.batches(seed))[1]

    (w0, x0), (w0_again, x0_again), (w1, x1) = start(0), start(0), start(1)
    assert torch.equal(w0, w0_again)
    assert torch.equal(x0, x0_again)
    assert not torch.equal(w0, w1)
    assert not torch.equal(x0, x1)


def test_an_epoch_sees_every_sample_at_most_once_and_the_next_in_another_order() -> None:
    task = load_task("mnist1d")
    batches = task.batches(0)
    seen = [next(batches) for _ in range(100)]
    assert [epoch for epoch, _, _ in seen] == [0] * 50 + [1] * 50
    assert len({row.numpy().tobytes() for _, inputs, _ in seen[:50] for row in inputs}) == 3200
    assert not torch.equal(seen[0][1], seen[50][1])


def test_only_training_inputs_carry_noise() -> None:
    task = load_task("digits")
    _, inputs, _ = next(task.batches(0))
    assert not {row.numpy().tobytes() for row in inputs} & rows(task.train)
    assert 0 <= float(task.validation.inputs.min()) <= float(task.validation.inputs.max()) <= 1


def test_the_held_out_batch_is_of_the_validation_split() -> None:
    task = load_task("digits")
    assert rows(task.held_out(32)) <= rows(task.validation)
    assert len(task.held_out(32)) == 32


def test_an_unknown_task_is_a_dataset_error() -> None:
    with pytest.raises(DatasetError, match="mnist1d, digits, mnist5k"):
        load_task("imagenet")
