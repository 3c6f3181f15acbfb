import torch

from tamiyo.host._layers import wrapping_cost


def test_measuring_the_wrappers_cost_draws_nothing_from_the_users_random_stream() -> None:
    wrapping_cost._wrapping_seconds.cache_clear()
    before = torch.get_rng_state()
    assert wrapping_cost.wrapping_seconds() >= 0
    assert torch.equal(torch.get_rng_state(), before)
