"""Ids are the same everywhere, and different for different causes."""

from tamiyo.schemas import identity


def test_ids_never_change_between_releases() -> None:
    window = identity.window_id("run", "step", 50, 100)
    assert window == "e9271d2533de9e4a551be1bcb3a6d3bd"
    assert identity.decision_id(identity.graph_id(window, "topology")) == "9edfada85e55b45ef803b7a17eab3716"


def test_parts_do_not_run_together() -> None:
    assert identity.identity("kind", "ab", "c") != identity.identity("kind", "a", "bc")
    assert identity.identity("kind", "a") != identity.identity("dnik", "a")


def test_the_sampling_seed_fits_a_long() -> None:
    seeds = {identity.sampling_seed(f"decision-{i}") for i in range(1_000)}
    assert len(seeds) == 1_000
    assert all(0 <= seed < 2**62 for seed in seeds)
