"""Requests to a registry: what is sent, which failures are temporary, and that no secret leaks."""

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tamiyo.schemas.client.registry import MAX_RESPONSE_BYTES, Registry, RegistrySettings
from tamiyo.schemas.errors import ConfigurationError, RegistryError
from tests.support.registry_server import RegistryServer

SECRET = "s3cret"


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


def client(server: RegistryServer, **settings: object) -> Registry:
    return Registry(RegistrySettings(url=server.url, **settings))  # type: ignore[arg-type]


def test_finds_what_was_registered(server: RegistryServer) -> None:
    registry = client(server)
    assert registry.find("a/b-value", "{}") is None
    assert registry.version_numbers("a/b-value") == []
    number = registry.register("a/b-value", "{}")
    assert registry.find("a/b-value", "{}") == number
    assert registry.version_numbers("a/b-value") == [1]
    assert registry.schema(number) == "{}"
    assert registry.schema(number + 1) is None
    assert registry.compatibility("a/b-value") is None
    registry.set_compatibility("a/b-value", "FULL")
    assert registry.compatibility("a/b-value") == "FULL"
    assert "POST /subjects/a%2Fb-value/versions" in server.requests  # a name never becomes a path


def test_credentials_are_sent_and_shown_nowhere(server: RegistryServer) -> None:
    settings = RegistrySettings(url=server.url, username="me", password=SECRET)  # type: ignore[arg-type]
    Registry(settings).find("s", "{}")
    assert server.authorization == "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert SECRET not in repr(settings)
    for status in (401, 403, 500):
        server.failure = (status, b"no")
        with pytest.raises(RegistryError) as refused:
            Registry(settings).find("s", "{}")
        assert SECRET not in str(refused.value)
        assert ("TAMIYO_REGISTRY_PASSWORD" in str(refused.value)) == (status != 500)


def test_a_redirect_is_not_followed_with_the_credentials(server: RegistryServer) -> None:
    with RegistryServer() as elsewhere:
        server.failure, server.location = (302, b""), f"{elsewhere.url}/subjects/s"
        with pytest.raises(RegistryError, match="302"):
            client(server, username="me", password=SECRET).version_numbers("s")
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("status", "body", "temporary"),
    [
        (500, b"oh", True),
        (429, b"slower", True),
        (401, b"", False),
        (409, b"incompatible", False),
        (422, b"invalid schema", False),
        (200, b"<html>", True),
        (200, b"[1]", True),
        (200, b"[" * 100_000, True),
        (200, b" " * (MAX_RESPONSE_BYTES + 1), True),
        (200, b"{}", False),
        (200, b'{"id": "seven"}', False),
    ],
)
def test_temporary_failures_are_distinguished_from_lasting_ones(
    server: RegistryServer, status: int, body: bytes, temporary: bool
) -> None:
    server.failure = (status, body)
    with pytest.raises(RegistryError) as refused:
        client(server).register("s", "{}")
    assert refused.value.temporary is temporary
    assert server.url in str(refused.value) or "expected id in" in str(refused.value)


def test_a_registry_that_is_unavailable_is_named() -> None:
    with RegistryServer() as gone:
        registry = client(gone)
    with pytest.raises(RegistryError, match=gone.url) as refused:
        registry.find("s", "{}")
    assert refused.value.temporary


def test_each_of_several_urls_is_tried_and_the_one_that_responds_is_kept() -> None:
    with RegistryServer() as gone, RegistryServer() as first, RegistryServer() as second:
        registry = Registry(RegistrySettings(url=f"{gone.url}/, {first.url},{second.url}"))
        gone.__exit__(None, None, None)
        assert registry.find("s", "{}") is None
        first.failure = (503, b"starting")
        assert [registry.version_numbers("s") for _ in range(2)] == [[], []]
        assert (len(first.requests), len(second.requests)) == (2, 2)  # the failed one is not asked again
        second.failure = (401, b"no")
        with pytest.raises(RegistryError, match=f"registry at {second.url} refuses access"):
            registry.find("s", "{}")
        assert len(first.requests) == 2  # a refusal is final: another server of the registry refuses too


def test_of_several_urls_the_last_failure_is_reported_where_none_responds() -> None:
    with RegistryServer() as first, RegistryServer() as second:
        registry = Registry(RegistrySettings(url=f"{first.url},{second.url}"))
        first.failure = second.failure = (503, b"starting")
        with pytest.raises(RegistryError, match=f"returned 503 for POST {second.url}") as refused:
            registry.find("s", "{}")
        assert refused.value.temporary


def test_only_a_trusted_certificate_is_used(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    trusted, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(str(trusted))
    trustme.CA().cert_pem.write_to_path(str(other))
    with RegistryServer(tls=tls) as server:
        assert client(server, ssl_ca_file=str(trusted)).find("s", "{}") is None
        for settings in ({"ssl_ca_file": str(other)}, {}):
            with pytest.raises(RegistryError, match="TAMIYO_REGISTRY_SSL_CA_FILE") as refused:
                client(server, **settings).find("s", "{}")
            assert not refused.value.temporary
        assert len(server.requests) == 1
    with pytest.raises(ConfigurationError, match="TAMIYO_REGISTRY_SSL_"):
        client(server, ssl_ca_file=str(tmp_path / "absent.pem"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "registry:8081"}, "http:// or https://"),
        ({"url": "file:///etc/passwd"}, "http:// or https://"),
        ({"url": f"http://me:{SECRET}@registry"}, "must not contain credentials"),
        ({"url": "http://registry", "username": "me"}, "or neither"),
        ({"url": "http://a,b:8081"}, "several are separated by commas"),
        ({"url": "http://a,"}, "several are separated by commas"),
        ({"url": "http://a:many"}, "url=http://a:many is wrong"),
        ({"url": "http://ü"}, "name a host"),
        ({"url": "http://a http://b"}, "several are separated by commas"),
        ({"url": "http://registry", "timeout_s": 0}, "timeout_s=0 is wrong: expected float, > 0"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RegistrySettings(**settings)  # type: ignore[arg-type]


def test_without_a_url_there_is_no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_REGISTRY_URL", "")
    assert RegistrySettings().url is None
    with pytest.raises(ConfigurationError, match="set TAMIYO_REGISTRY_URL"):
        Registry(RegistrySettings())
