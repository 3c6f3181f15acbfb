"""The kernel store: stored kernels are read back, and everything else is refused."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors import safe_open
from safetensors import torch as safetensors

from tamiyo.host._kernels.store import KernelMetadata, KernelStore, StoredKernel
from tamiyo.host.blueprints import CATALOGUE, for_layer
from tamiyo.schemas.errors import ConfigurationError, KernelCorrupt, KernelError, KernelIncompatible
from tests.support.layers import ALL, kernel, spec_of

ID = "0123456789abcdef"
SPEC = spec_of("conv1d", "stem")


@pytest.fixture
def store(tmp_path: Path) -> KernelStore:
    return KernelStore(str(tmp_path / "kernels"))


def put(store: KernelStore, kernel_id: str = ID, name: str = "bottleneck") -> StoredKernel:
    return store.put(kernel_id, kernel(SPEC, name, trained=True), SPEC, name)


def path_of(store: KernelStore, kernel_id: str = ID) -> Path:
    return Path(store.url) / f"{kernel_id}.safetensors"


def rewrite(store: KernelStore, data: bytes) -> str:
    """Other bytes under the same id, with a checksum that fits them."""
    path_of(store).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("geometry", ALL)
@pytest.mark.parametrize("url", ["folder", "memory"])
def test_a_stored_kernel_is_read_back(geometry: str, url: str, tmp_path: Path) -> None:
    store = KernelStore(str(tmp_path / "deep" / "folder") if url == "folder" else "memory://kernels/here")
    spec = spec_of(geometry)
    for name in for_layer(spec):
        built = kernel(spec, name, trained=True)
        receipt = store.put(ID, built, spec, name)
        back, metadata = store.get(ID, receipt.checksum)
        assert {k: v.tolist() for k, v in back.state_dict().items()} == {
            k: v.tolist() for k, v in built.state_dict().items()
        }
        x, y = spec.sample(2)
        assert torch.equal(back(x, y), built(x, y))
        assert metadata == receipt.metadata
        assert metadata.spec == spec
        assert receipt.parameters == CATALOGUE[name].parameters(spec) == metadata.parameters
        assert metadata.flops == CATALOGUE[name].flops(spec)


def test_a_file_is_plain_safetensors_named_by_its_id(store: KernelStore) -> None:
    receipt = put(store)
    path = path_of(store)
    data = path.read_bytes()
    assert receipt.checksum == hashlib.sha256(data).hexdigest()
    assert receipt.size_bytes == len(data)
    with safe_open(path, "pt") as file:
        assert KernelMetadata.from_dict(json.loads(file.metadata()["tamiyo"])) == receipt.metadata
    assert os.listdir(store.url) == [path.name]  # nothing partial is left


def test_the_same_kernel_gives_the_same_bytes(store: KernelStore) -> None:
    assert put(store) == put(store)


def test_a_second_put_replaces_the_first(store: KernelStore) -> None:
    first, second = put(store), put(store, name="squeeze_excite")
    with pytest.raises(KernelCorrupt, match="expected " + first.checksum):
        store.get(ID, first.checksum)
    assert store.get(ID, second.checksum)[1].blueprint == "squeeze_excite"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_kernel(
    call: str, store: KernelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = put(store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(KernelError, match=r"cannot be written .* No space left"):
        put(store, name="squeeze_excite")
    assert store.get(ID, receipt.checksum)[1].blueprint == "bottleneck"
    assert len(os.listdir(store.url)) == 1


@pytest.mark.parametrize(
    "kernel_id",
    [
        "",
        "abc",
        "../../../etc/passwd",
        "/etc/passwd",
        "ABCDEF0123",
        "a" * 65,
        "abcdef01/..",
        "abcdef01\n",
        "s3://x",
        "\uff41bcdef01",
    ],
)
def test_hostile_ids_never_reach_a_path(store: KernelStore, kernel_id: str) -> None:
    for call in (
        lambda: put(store, kernel_id),
        lambda: store.get(kernel_id, "0" * 64),
        lambda: store.exists(kernel_id),
        lambda: store.delete(kernel_id),
    ):
        with pytest.raises(KernelError, match="8 to 64 hex digits"):
            call()
    assert not Path(store.url).exists()


def test_an_absent_kernel_is_an_error(store: KernelStore) -> None:
    with pytest.raises(KernelError, match=f"kernel {ID} is not in"):
        store.get(ID, "0" * 64)
    assert not store.exists(ID)
    store.delete(ID)
    receipt = put(store)
    assert store.exists(ID)
    store.delete(ID)
    with pytest.raises(KernelError, match="is not in"):
        store.get(ID, receipt.checksum)


def test_a_flipped_bit_is_found(store: KernelStore) -> None:
    receipt = put(store)
    data = bytearray(path_of(store).read_bytes())
    data[-1] ^= 1
    path_of(store).write_bytes(data)
    with pytest.raises(KernelCorrupt, match="has checksum"):
        store.get(ID, receipt.checksum)


@pytest.mark.parametrize("checksum", ["", "abc", "A" * 64, "0" * 63 + "\n"])
def test_a_malformed_checksum_is_refused(store: KernelStore, checksum: str) -> None:
    put(store)
    with pytest.raises(KernelError, match="SHA-256 in 64 hex digits"):
        store.get(ID, checksum)


def test_the_size_limit_applies_to_put_and_get(store: KernelStore) -> None:
    receipt = put(store)
    small = KernelStore(store.url, max_bytes=receipt.size_bytes - 1)
    with pytest.raises(KernelError, match=f"has {receipt.size_bytes} bytes, the limit is"):
        small.get(ID, receipt.checksum)
    with pytest.raises(KernelError, match=f"has {receipt.size_bytes} bytes, the limit is"):
        put(small)
    assert KernelStore(store.url, max_bytes=receipt.size_bytes).get(ID, receipt.checksum)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 7, b"\xff" * 64, b"not a kernel at all", (2**40).to_bytes(8, "little") + b"{}"],
    ids=["empty", "short", "ones", "text", "long_header"],
)
def test_other_bytes_are_refused(store: KernelStore, data: bytes) -> None:
    put(store)
    with pytest.raises(KernelCorrupt, match="is not a kernel file"):
        store.get(ID, rewrite(store, data))


def test_a_truncated_file_is_refused(store: KernelStore) -> None:
    put(store)
    with pytest.raises(KernelCorrupt, match="is not a kernel file"):
        store.get(ID, rewrite(store, path_of(store).read_bytes()[:-4]))


def forge(store: KernelStore, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> str:
    """A well-formed file whose contents were edited; returns its true checksum."""
    receipt = put(store)
    metadata, tensors = receipt.metadata.to_dict(), safetensors.load_file(path_of(store))
    edit(metadata, tensors)
    return rewrite(store, safetensors.save(tensors, {"tamiyo": json.dumps(metadata)}))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda m, t: m.update(kernel_id="f" * 16), KernelCorrupt, "the file is of kernel 'ffff"),
        (lambda m, t: m.update(blueprint="rootkit"), KernelError, "there is no blueprint 'rootkit'"),
        (lambda m, t: m.update(blueprint="low_rank"), KernelIncompatible, "low_rank does not support a conv1d"),
        (lambda m, t: m.update(blueprint="squeeze_excite"), KernelCorrupt, "its blueprint 58"),
        (lambda m, t: m.update(version=2), KernelIncompatible, "version 2, expected 1"),
        (lambda m, t: m.update(format=9), KernelIncompatible, "format 1, got 9"),
        (lambda m, t: m.update(parameters=1), KernelCorrupt, "its metadata lists 1"),
        (lambda m, t: m.update(parameters="many"), KernelCorrupt, "malformed"),
        (lambda m, t: m.update(spec=None), KernelCorrupt, "malformed"),
        (lambda m, t: m.pop("shapes"), KernelCorrupt, "malformed: KeyError: 'shapes'"),
        (lambda m, t: m["spec"].update(out_features=2**22), KernelIncompatible, "do not fit this conv1d"),
        (
            lambda m, t: m["spec"].update(out_features=2**22, sample_output_shape=[2**22, 1]),
            KernelCorrupt,
            "contains 214 parameters",
        ),
        (lambda m, t: t.pop("last.bias"), KernelCorrupt, "contains tensors"),
        (lambda m, t: t.update({"extra": torch.zeros(1)}), KernelCorrupt, "contains tensors"),
        (lambda m, t: t.update({"last.bias": torch.zeros(6).double()}), KernelCorrupt, "are not float32"),
        (lambda m, t: t["last.bias"].fill_(torch.nan), KernelCorrupt, "not finite"),
    ],
)
def test_contents_that_contradict_each_other_are_refused(
    store: KernelStore, edit: Callable[..., object], error: type[Exception], message: str
) -> None:
    checksum = forge(store, edit)
    with pytest.raises(error, match=message):
        store.get(ID, checksum)


def test_tensors_of_other_names_are_refused(store: KernelStore) -> None:
    def rename(metadata: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["lost.bias"] = tensors.pop("last.bias")
        metadata["shapes"]["lost.bias"] = metadata["shapes"].pop("last.bias")

    with pytest.raises(KernelCorrupt, match=r"does not fill blueprint bottleneck: (.|\n)*lost\.bias"):
        store.get(ID, forge(store, rename))


def test_tensors_of_other_shapes_are_refused(store: KernelStore) -> None:
    def reshape(metadata: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["last.bias"] = tensors["last.bias"].reshape(2, 3)
        metadata["shapes"]["last.bias"] = [2, 3]

    with pytest.raises(KernelCorrupt, match="does not fill blueprint bottleneck"):
        store.get(ID, forge(store, reshape))


def test_a_file_without_our_header_is_refused(store: KernelStore) -> None:
    put(store)
    with pytest.raises(KernelCorrupt, match="__metadata__"):
        store.get(ID, rewrite(store, safetensors.save({"x": torch.zeros(2)})))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not the URL of a store"):
        KernelStore("gopher3://kernels")


def test_an_unreadable_store_is_a_kernel_error(store: KernelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = put(store)

    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "cat_file", refuse)
    with pytest.raises(KernelError, match=r"cannot be read from .* Permission denied"):
        store.get(ID, receipt.checksum)
