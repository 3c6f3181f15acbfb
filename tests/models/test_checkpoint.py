import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save as raw_save

from tamiyo.models.behaviour import choose
from tamiyo.models.checkpoint import (
    KIND_AXIS,
    CheckpointHeader,
    CheckpointStore,
    GateResult,
    ReleaseRecord,
    Verdict,
    checksum,
    load,
    read_header,
    save,
)
from tamiyo.models.features import FEATURE_VERSION
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.errors import CheckpointCorrupt, PolicyError
from tests.support.factories import make_graph

CONFIG = PolicyConfig(blueprints=("parallel_expansion", "low_rank", "bottleneck"), hidden=16, layers=2)


def learned(config=CONFIG):
    """A policy all of whose learned parameters are random."""
    policy = TamiyoPolicy(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    policy.calibration = policy.calibration.update(np.zeros(30), np.full(30, 0.1), np.linspace(-0.5, 0.5, 30))
    return policy


def choice(policy, seed=7):
    graph = make_graph(5)
    return choose(policy, graph, legal_actions(graph, policy.kinds, limits=MaskLimits()), seed=seed)


def test_round_trip():
    policy = learned()
    header = CheckpointHeader.of(
        policy, version=12, parent_version=11, offsets={"0": 5, "3": 2**40}, experiences=99, updates=3,
        metrics={"losses/policy_loss": -0.5}, time_ms=1_700_000_000_000,
    )  # fmt: skip
    data = save(policy, None, header)
    assert save(policy, None, header) == data
    served, found, state = load(data, checksum(data))
    assert found == header
    assert state is None
    assert not served.training
    assert served.calibration == policy.calibration
    for name, value in policy.state_dict().items():
        assert torch.equal(value, served.state_dict()[name]), name
    assert choice(served).probabilities.tobytes() == choice(policy).probabilities.tobytes()


def test_an_optimisers_state_goes_on_where_it_was():
    policy = learned()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4)

    def step(policy, optimizer):
        optimizer.zero_grad()
        sum(parameter.square().sum() for parameter in policy.parameters()).backward()
        optimizer.step()

    step(policy, optimizer)
    state = {
        "optimizer": optimizer.state_dict(),
        "proximal": dict(policy.state_dict()),
        "rounds": 4,
        "nested": [1, (2.5,)],
    }
    data = save(policy, state, CheckpointHeader.of(policy, version=1))
    served, _, found = load(data)
    assert (found["rounds"], found["nested"]) == (4, [1, [2.5]])
    assert torch.equal(found["proximal"]["encoder.weight"], policy.encoder.weight)
    resumed = torch.optim.AdamW(served.parameters(), lr=1.0)
    resumed.load_state_dict(found["optimizer"])
    step(policy, optimizer)
    step(served, resumed)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), served.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), object(), {1.5: 2}, {"x": {2, 3}}])
def test_what_cannot_be_saved_is_named(value):
    policy = TamiyoPolicy(CONFIG)
    with pytest.raises(PolicyError, match="state/odd"):
        save(policy, {"odd": value}, CheckpointHeader.of(policy, version=0))


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded():
    policy = TamiyoPolicy(CONFIG)
    good = save(policy, None, CheckpointHeader.of(policy, version=0))
    with torch.no_grad():
        policy.encoder.weight[0, 0] = float("inf")
    with pytest.raises(PolicyError, match=r"policy/encoder\.weight"):
        save(policy, None, CheckpointHeader.of(policy, version=0))
    tensors = {f"policy/{name}": value for name, value in policy.state_dict().items()}
    length = int.from_bytes(good[:8], "little")
    bad = raw_save(tensors, json.loads(good[8 : 8 + length])["__metadata__"])
    with pytest.raises(CheckpointCorrupt, match="not finite"):
        load(bad)


@pytest.mark.parametrize("damage", ["flip", "truncated", "empty", "garbage", "no_metadata", "other_network", "short"])
def test_corruption_is_found(damage):
    policy = TamiyoPolicy(CONFIG)
    data = save(policy, None, CheckpointHeader.of(policy, version=0))
    length = int.from_bytes(data[:8], "little")
    other = TamiyoPolicy(CONFIG.model_copy(update={"hidden": 8}))
    broken = {
        "flip": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        "truncated": data[:-1],
        "empty": b"",
        "garbage": b"\xff" * 1000,
        "no_metadata": raw_save({"policy/x": torch.zeros(1)}),
        "other_network": raw_save(
            {f"policy/{n}": v for n, v in other.state_dict().items()},
            json.loads(data[8 : 8 + length])["__metadata__"],
        ),
        "short": data[:4],
    }[damage]
    with pytest.raises(CheckpointCorrupt):
        load(broken, checksum(data))
    if damage != "flip":  # a flipped bit in a weight shows in the checksum alone
        with pytest.raises(CheckpointCorrupt):
            load(broken)


def test_another_feature_catalogue_is_refused():
    policy = TamiyoPolicy(CONFIG)
    header = CheckpointHeader.of(policy, version=3).model_copy(update={"feature_version": FEATURE_VERSION + 1})
    with pytest.raises(PolicyError, match="reads feature version 2"):
        load(save(policy, None, header))


def test_other_blueprints_are_mapped_by_name():
    policy = learned()
    data = save(policy, {"step": 1}, CheckpointHeader.of(policy, version=5))
    served, header, state = load(data, blueprints=("bottleneck", "parallel_expansion", "squeeze_excite"))
    assert state is None
    assert header.config.blueprints == CONFIG.blueprints
    assert served.config.blueprints == ("bottleneck", "parallel_expansion", "squeeze_excite")
    assert served.calibration == policy.calibration
    old, new = policy.state_dict(), served.state_dict()
    for name, value in old.items():
        axis = KIND_AXIS.get(name)
        if axis is None:
            assert torch.equal(value, new[name]), name
            continue
        for kind in (
            "load_kernel:bottleneck",
            "load_kernel:parallel_expansion",
            "unload_kernel",
            "optimize_parameters",
        ):
            was = value.select(axis, policy.kinds.index(kind))
            assert torch.equal(new[name].select(axis, served.kinds.index(kind)), was), (name, kind)
        if "prior" not in name:  # a blueprint never seen is left to the heuristic, at full uncertainty
            assert not new[name].select(axis, served.kinds.index("load_kernel:squeeze_excite")).any(), name


def test_every_tensor_with_an_entry_a_kind_is_mapped():
    few, many = (TamiyoPolicy(CONFIG.model_copy(update={"blueprints": names})) for names in (("a",), ("a", "b")))
    shapes = {name: value.shape for name, value in few.state_dict().items()}
    assert {n for n, value in many.state_dict().items() if value.shape != shapes[n]} == set(KIND_AXIS)


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return CheckpointStore(f"file://{tmp_path}/deep/er" if request.param == "local" else f"memory://{tmp_path}")


def test_the_store_keeps_files_by_version(store):
    assert store.versions() == []
    assert store.write(12, b"twelve") == "policy-000012.safetensors"
    store.write(3, b"three")
    with pytest.raises(FileExistsError):
        store.write(12, b"twelve again")
    assert store.versions() == [3, 12]
    assert store.read("policy-000012.safetensors") == b"twelve"
    store.delete(3)
    store.delete(3)
    assert store.versions() == [12]


@pytest.mark.parametrize(
    "name", ["../policy-000012.safetensors", "/etc/passwd", "policy-12.safetensors", "policy-000012.safetensors\n", ""]
)
def test_no_other_file_is_opened(store, name):
    store.write(12, b"twelve")
    with pytest.raises(PolicyError, match="expected the name of a checkpoint"):
        store.read(name)


def test_a_missing_file_is_explained(store):
    with pytest.raises(PolicyError, match="share this store"):
        store.read("policy-000001.safetensors")


def test_of_many_who_write_a_version_at_once_one_succeeds(tmp_path):
    store = CheckpointStore(str(tmp_path))

    def attempt(number):
        try:
            store.write(7, bytes([number]) * 100_000)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        written = [number for number in pool.map(attempt, range(8)) if number is not None]
    assert len(written) == 1
    assert store.read("policy-000007.safetensors") == bytes(written) * 100_000
    assert store.versions() == [7]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    store = CheckpointStore(str(tmp_path))
    store.write(1, b"good")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write(2, b"bad")
    assert store.read("policy-000001.safetensors") == b"good"
    assert [path.name for path in tmp_path.iterdir()] == ["policy-000001.safetensors"]


# How a version came to be released

RELEASE = ReleaseRecord(
    gates=(GateResult(gate="golden", verdict=Verdict.PASSED, reason="4 decisions"),),
    refused=(GateResult(gate="divergence", verdict=Verdict.FAILED, reason="KL 2.0"),),
    rolled_back=(3, 4),
    reference_version=2,
)


def texts(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["tamiyo"])


def test_a_release_is_recorded_where_earlier_programs_do_not_read():
    """They refuse a header with fields that they do not know, so the record stands beside it."""
    policy = TamiyoPolicy(CONFIG)
    header = CheckpointHeader.of(policy, version=5, release=RELEASE)
    data = save(policy, None, header)
    assert load(data)[1] == header
    assert "release" not in json.loads(texts(data)["header"])
    assert "release" not in texts(save(policy, None, CheckpointHeader.of(policy, version=5)))


def test_a_header_is_read_without_the_weights(tmp_path, monkeypatch):
    store, policy = CheckpointStore(f"file://{tmp_path}"), TamiyoPolicy(CONFIG)
    header = CheckpointHeader.of(policy, version=5, release=RELEASE)
    data = save(policy, None, header)
    store.write(5, data)
    taken = []
    real = CheckpointStore.read_range

    def count(self, file, start, end):
        taken.append(end - start)
        return real(self, file, start, end)

    monkeypatch.setattr(CheckpointStore, "read_range", count)
    assert read_header(store, 5) == header
    assert sum(taken) < len(data) / 2


@pytest.mark.parametrize("damage", ["truncated", "header", "version", "empty"])
def test_a_damaged_header_is_corrupt(tmp_path, damage):
    store, policy = CheckpointStore(f"file://{tmp_path}"), TamiyoPolicy(CONFIG)
    data = save(policy, None, CheckpointHeader.of(policy, version=6 if damage == "version" else 5))
    damaged = {"truncated": data[:-1], "header": data[:100], "version": data, "empty": b""}
    store.write(5, damaged[damage])
    with pytest.raises(CheckpointCorrupt, match="policy-000005"):
        read_header(store, 5)


def test_a_missing_version_has_no_header(tmp_path):
    with pytest.raises(PolicyError, match=r"there is no policy-000005\.safetensors"):
        read_header(CheckpointStore(f"file://{tmp_path}"), 5)
