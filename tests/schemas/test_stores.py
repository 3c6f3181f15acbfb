"""Opening a store: what is missing is named."""

import sys

import pytest
from typer.testing import CliRunner

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.stores import open_store
from tamiyo.streams.cli import app


@pytest.mark.parametrize(
    ("url", "extra", "package"),
    [("s3://b/k", "s3", "s3fs"), ("gs://b/k", "gcs", "gcsfs"), ("abfs://c/k", "azure", "adlfs")],
)
def test_a_file_system_that_is_not_installed_is_named_by_its_extra(
    url: str, extra: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails, installed or not
    with pytest.raises(ConfigurationError, match=f"its extra '{extra}'"):
        open_store(url)


def test_an_unknown_scheme_is_refused_without_its_secrets() -> None:
    with pytest.raises(ConfigurationError, match="not the URL of a store") as raised:
        open_store("gopher3://user:secret@host/_kernels")
    assert "secret" not in str(raised.value)


def test_a_folder_is_opened() -> None:
    files, root = open_store("memory://kernels/here")
    assert (files.protocol, root) == ("memory", "/kernels/here")


def test_the_doctor_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setenv("TAMIYO_STORE_URL", "s3://bucket/tamiyo")
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    printed = CliRunner().invoke(app, ["doctor"])
    assert "its extra 's3'" in printed.output
    assert printed.exit_code == 1
