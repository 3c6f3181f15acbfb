"""Real data in separate splits, and networks that are the same again."""

import heapq
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tamiyo.host._reference import source_text
from tamiyo.host._reference.tasks import HELD_OUT_TASKS, LAB_TASKS, TASKS, Split, load_task
from tamiyo.schemas.errors import DatasetError

SIZES = {
    "mnist1d": ((1, 40), (3200, 800, 1000), 574),
    "digits": ((64,), (1150, 287, 360), 415),
    "mnist5k": ((1, 28, 28), (3200, 800, 1000), 328),
}

TEXT_SIZES = {"chars": ((64, 64), 64, 628_193), "charconv": ((64,), 1024, 6369)}


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


@pytest.mark.parametrize(("name", "parameters"), [("resnet", 19_810), ("mixer", 1418)])
def test_other_networks_share_the_images_of_mnist5k(name: str, parameters: int) -> None:
    task, images = load_task(name), load_task("mnist5k")
    assert (task.train, task.validation, task.test) == (images.train, images.validation, images.test)
    assert sum(p.numel() for p in task.network(0).parameters()) == parameters
    assert task.network(0)(task.train.inputs[:3]).shape == (3, 10)


@pytest.mark.parametrize("name", TEXT_SIZES)
def test_text_comes_from_other_files_in_each_split(name: str) -> None:
    task = load_task(name)
    shape, held_out, parameters = TEXT_SIZES[name]
    splits = (task.train, task.validation, task.test)
    assert [len(split) for split in splits[1:]] == [held_out, held_out]
    assert task.batch_size * task.steps < len(task.train)  # no sample comes twice in a run of the recommended length
    for split in splits:
        assert split.inputs.shape[1:] == (64,)
        assert split.labels.shape[1:] == shape[1:]
        assert (split.inputs.dtype, split.labels.dtype) == (torch.int64, torch.int64)
        assert 0 <= int(split.inputs.min()) <= int(split.inputs.max()) < source_text.VOCABULARY
    train, validation, test = (rows(split) for split in splits)
    assert not train & (validation | test)
    assert not validation & test
    assert sum(p.numel() for p in task.network(0).parameters()) == parameters
    assert task.network(0)(task.train.inputs[:3]).shape == (3, source_text.VOCABULARY, *shape[1:])


def test_a_sample_of_another_split_gives_way_to_the_next_that_is_none() -> None:
    samples = torch.tensor([[1, 1, 9], [2, 2, 9], [3, 3, 9], [1, 1, 8], [1, 1, 7]])
    seen = source_text.inputs_of(torch.tensor([[1, 1, 0]]))
    assert torch.equal(source_text.spaced(samples, 3, unlike=seen), samples[[1, 2, 1]])
    assert torch.equal(source_text.spaced(samples, 3, unlike=frozenset()), samples[[0, 2, 4]])


def test_labels_are_the_characters_that_follow() -> None:
    text = source_text.text_of(source_text.TRAIN)
    chars, charconv = load_task("chars").train, load_task("charconv").train
    assert torch.equal(chars.inputs[:5].flatten(), text[:320])
    assert torch.equal(chars.labels[:5].flatten(), text[1:321])
    assert torch.equal(charconv.inputs[3], text[48:112])
    assert charconv.labels[3] == text[112]


def test_text_is_the_source_in_a_fixed_vocabulary() -> None:
    text = source_text.text_of(["heapq"])
    source = Path(heapq.__file__).read_text(encoding="utf-8")
    vocabulary = source_text.CHARACTERS + "\0"
    assert "".join(vocabulary[index] for index in text.tolist()) == "".join(
        character if character in source_text.CHARACTERS else "\0" for character in source
    )
    assert int((text == source_text.VOCABULARY - 1).sum()) == sum(c not in source_text.CHARACTERS for c in source) > 0


def test_no_file_is_in_two_splits() -> None:
    files = (*source_text.TRAIN, *source_text.VALIDATION, *source_text.TEST)
    assert len(set(files)) == len(files)


def test_a_missing_source_file_is_a_dataset_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source_text.sysconfig, "get_path", lambda _name: str(tmp_path))
    load_task.cache_clear()
    with pytest.raises(DatasetError, match=r"needs the source files of Python's standard library: .*argparse\.py"):
        load_task("chars")


def test_held_out_tasks_are_no_laboratory_tasks() -> None:
    assert LAB_TASKS == ("mnist1d", "digits", "mnist5k", "chars", "resnet")
    assert HELD_OUT_TASKS == ("charconv", "mixer")
    assert LAB_TASKS[:3] == TASKS


def test_a_task_names_its_kind_of_optimiser() -> None:
    kinds = {name: type(load_task(name).optimizer(load_task(name).network(0))) for name in ("digits", "chars")}
    assert kinds == {"digits": torch.optim.Adam, "chars": torch.optim.AdamW}


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
    with pytest.raises(DatasetError, match="mnist1d, digits, mnist5k, chars, resnet, charconv, mixer"):
        load_task("imagenet")
