"""Hosts that are drawn at random: the same seed gives the same one, and each learns its task."""

import pytest
import torch
from torch.nn import functional as F

from tamiyo.evaluation.lab.hosts import lab_task
from tamiyo.evaluation.lab.hosts.networks import Encoder
from tamiyo.schemas.errors import DatasetError

ARCHITECTURES = 7


def trained(name, steps):
    """Mean losses of the first and last 20 steps of a short training."""
    task = lab_task(name)
    network, batches = task.network(0), task.batches(0)
    optimizer = task.optimizer(network)
    losses = []
    for _ in range(steps):
        _, inputs, labels = next(batches)
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return sum(losses[:20]) / 20, sum(losses[-20:]) / 20


@pytest.mark.parametrize("name", [*(f"varied-{seed}" for seed in range(ARCHITECTURES)), "text-0", "text-1"])
def test_each_architecture_learns(name):
    first, last = trained(name, 150)
    assert last < 0.98 * first


@pytest.mark.parametrize("name", ["host-7", "varied-7", "varied-8", "text-7"])
def test_the_same_seed_gives_the_same_host(name):
    lab_task.cache_clear()
    once = lab_task(name)
    lab_task.cache_clear()
    again = lab_task(name)
    assert once is not again
    assert (once.learning_rate, once.noise, len(once.train)) == (again.learning_rate, again.noise, len(again.train))
    for first, second in zip(once.network(0).parameters(), again.network(0).parameters(), strict=True):
        assert torch.equal(first, second)


def test_other_seeds_give_other_hosts():
    sizes = {sum(p.numel() for p in lab_task(f"varied-{seed}").network(0).parameters()) for seed in range(28)}
    assert len(sizes) > 24


def test_the_order_of_the_pieces_matters_to_an_encoder_only_by_their_positions():
    torch.manual_seed(0)
    encoder = Encoder(4, 3, width=6, heads=2, blocks=2).eval()
    samples = torch.randn(5, 4, 3)
    swapped = samples[:, [1, 0, 3, 2]]
    assert torch.allclose(encoder(samples), encoder(swapped), atol=1e-4) is False
    with torch.no_grad():
        encoder.positions.zero_()
    assert torch.allclose(encoder(samples), encoder(swapped), atol=1e-4)


@pytest.mark.parametrize("name", ["varied-", "varied--1", "varied-x", "host-1.5", "host-¹", "host-" + "9" * 5000])
def test_a_name_without_a_number_is_unknown(name):
    with pytest.raises(DatasetError, match="there is no task"):
        lab_task(name)
