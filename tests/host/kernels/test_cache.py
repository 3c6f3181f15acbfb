"""The kernel cache: what it counts, what it forgets, what it will not hand out."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tamiyo.host._kernels.cache import KernelCache, check_compatible
from tamiyo.host._kernels.store import KernelStore, StoredKernel
from tamiyo.schemas.errors import KernelCorrupt, KernelError, KernelIncompatible
from tests.support.layers import kernel, spec_of, train

SPEC = spec_of("conv1d", "stem")


@pytest.fixture
def store(tmp_path: Path) -> KernelStore:
    return KernelStore(str(tmp_path))


def put(store: KernelStore, number: int) -> StoredKernel:
    return store.put(f"{number:08x}", kernel(SPEC, seed=number), SPEC, "bottleneck")


def counts(cache: KernelCache) -> tuple[int, int, int, int]:
    stats = cache.stats()
    return stats.hits, stats.misses, stats.evictions, stats.entries


def get(cache: KernelCache, receipt: StoredKernel) -> None:
    cache.get(receipt.kernel_id, receipt.checksum)


def test_hits_misses_and_the_rate(store: KernelStore) -> None:
    cache, receipt = KernelCache(store), put(store, 1)
    assert cache.stats().hit_rate == 1.0
    for _ in range(4):
        get(cache, receipt)
    assert counts(cache) == (3, 1, 0, 1)
    assert cache.stats().hit_rate == 0.75
    assert cache.stats().size_bytes == 214 * 4


def test_the_least_recently_used_goes_first(store: KernelStore) -> None:
    cache = KernelCache(store, capacity=2)
    one, two, three = (put(store, n) for n in (1, 2, 3))
    for receipt in (one, two, one, three):  # two is the oldest use now
        get(cache, receipt)
    assert counts(cache) == (1, 3, 1, 2)
    get(cache, one)
    assert counts(cache) == (2, 3, 1, 2)
    get(cache, two)
    assert counts(cache) == (2, 4, 2, 2)
    assert cache.stats().size_bytes == 2 * 214 * 4


def test_bytes_are_bounded_too_but_the_newest_is_kept(store: KernelStore) -> None:
    cache = KernelCache(store, max_bytes=214 * 4 * 2)
    for number in (1, 2, 3):
        get(cache, put(store, number))
    assert counts(cache) == (0, 3, 1, 2)
    tiny = KernelCache(store, max_bytes=1)
    get(tiny, put(store, 1))
    assert counts(tiny) == (0, 1, 0, 1)
    with pytest.raises(KernelError, match="must be at least 1, got 0"):
        KernelCache(store, capacity=0)


def test_every_caller_gets_its_own_copy(store: KernelStore) -> None:
    cache, receipt = KernelCache(store), put(store, 1)
    first, _ = cache.get(receipt.kernel_id, receipt.checksum)
    train(first)
    second, _ = cache.get(receipt.kernel_id, receipt.checksum)
    assert not bool(second.get_parameter("last.weight").any())
    pristine = cache.pristine(receipt.kernel_id)
    assert not bool(pristine["last.weight"].any())
    pristine["last.weight"].fill_(7.0)
    assert not bool(cache.pristine(receipt.kernel_id)["last.weight"].any())


def test_a_cached_kernel_with_another_checksum_is_read_again(store: KernelStore) -> None:
    cache, old = KernelCache(store), put(store, 1)
    get(cache, old)
    new = store.put(old.kernel_id, kernel(SPEC, seed=9), SPEC, "bottleneck")
    got, _ = cache.get(new.kernel_id, new.checksum)
    assert torch.equal(got.get_parameter("first.weight"), kernel(SPEC, seed=9).get_parameter("first.weight"))
    assert counts(cache) == (0, 2, 0, 1)
    with pytest.raises(KernelCorrupt):
        get(cache, old)
    get(cache, new)
    assert counts(cache) == (1, 3, 0, 1)


def test_a_kernel_that_the_store_refuses_is_not_cached(store: KernelStore) -> None:
    cache = KernelCache(store)
    with pytest.raises(KernelError, match="is not in"):
        cache.get("00000001", "0" * 64)
    with pytest.raises(KernelError, match="hex digits"):
        cache.get("../../x", "0" * 64)
    assert counts(cache) == (0, 2, 0, 0)
    with pytest.raises(KernelError, match="not in the cache"):
        cache.pristine("00000001")


def test_a_prefetch_makes_the_next_lookup_a_hit(store: KernelStore) -> None:
    cache, receipt = KernelCache(store), put(store, 1)
    cache.prefetch(receipt.kernel_id, receipt.checksum)
    cache.prefetch(receipt.kernel_id, receipt.checksum)
    assert counts(cache) == (0, 1, 0, 1)
    store.delete(receipt.kernel_id)  # memory is enough
    get(cache, receipt)
    assert counts(cache) == (1, 1, 0, 1)


def test_an_invalidated_kernel_is_read_again(store: KernelStore) -> None:
    cache, receipt = KernelCache(store), put(store, 1)
    get(cache, receipt)
    cache.invalidate(receipt.kernel_id)
    cache.invalidate("ffffffff")
    assert (counts(cache), cache.stats().size_bytes) == ((0, 1, 0, 0), 0)
    get(cache, receipt)
    assert counts(cache) == (0, 2, 0, 1)


def test_a_kernel_is_checked_against_its_layer(store: KernelStore) -> None:
    cache, receipt = KernelCache(store), put(store, 1)
    cache.get(receipt.kernel_id, receipt.checksum, layer=SPEC)
    with pytest.raises(KernelIncompatible, match=r"does not fit layer 'head': stride is \(1,\)"):
        cache.get(receipt.kernel_id, receipt.checksum, layer=spec_of("conv1d_stride", "head"))
    with pytest.raises(KernelIncompatible, match="dtype is 'float32', the layer's is 'float64'"):
        check_compatible(receipt.metadata, replace(SPEC, dtype="float64"))
    with pytest.raises(KernelIncompatible, match="version is 3, the blueprint's is 1"):
        check_compatible(replace(receipt.metadata, version=3), SPEC)
    with pytest.raises(KernelIncompatible, match="low_rank does not support a conv1d"):
        check_compatible(replace(receipt.metadata, blueprint="low_rank"), SPEC)


def test_threads_may_share_it(store: KernelStore) -> None:
    cache = KernelCache(store, capacity=2)
    receipts = [put(store, number) for number in range(4)]
    failures: list[Exception] = []

    def work(offset: int) -> None:
        try:
            for turn in range(12):
                receipt = receipts[(turn + offset) % 4]
                _, metadata = cache.get(receipt.kernel_id, receipt.checksum)
                assert metadata.kernel_id == receipt.kernel_id
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    stats = cache.stats()
    assert stats.hits + stats.misses == 48
    assert (stats.entries, stats.size_bytes) == (2, 2 * 214 * 4)
