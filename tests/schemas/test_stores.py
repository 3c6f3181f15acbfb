"""Opening a store: what is missing is named."""

import sys

import pytest

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.stores import open_store


@pytest.mark.parametrize(
    ("url", "extra", "package"),
    [("s3://b/k", "s3", "s3fs"), ("gs://b/k", "gcs", "gcsfs"), ("abfs://c/k", "azure", "adlfs")],
)
def test_a_file_system_that_is_not_installed_is_named_by_its_extra(
    url: str, extra: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails, installed or not
    with pytest.raises(ConfigurationError, match=rf"the extra \[{extra}\]"):
        open_store(url)


def test_an_unknown_scheme_is_refused_without_its_secrets() -> None:
    with pytest.raises(ConfigurationError, match="not the URL of a store") as raised:
        open_store("gopher3://user:secret@host/kernels")
    assert "secret" not in str(raised.value)


def test_a_folder_is_opened() -> None:
    files, root = open_store("memory://kernels/here")
    assert (files.protocol, root) == ("memory", "/kernels/here")
