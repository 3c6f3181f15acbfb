"""Tokens of OAUTHBEARER: what a token endpoint may respond, and when a token is renewed."""

import logging
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from tamiyo.schemas import oauth
from tamiyo.schemas.errors import BrokerError, BrokerRefused, ConfigurationError
from tamiyo.schemas.oauth import TokenEndpoint, TokenSource, load_provider, parse_extensions, token_source
from tests.support.token_server import TokenServer

SECRET = "hunter2"


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer(SECRET) as running:
        yield running


def ask(url: str, **changes: object) -> tuple[str, float]:
    settings = {"url": url, "client_id": "me", "client_secret": SecretStr(SECRET)}
    return TokenEndpoint(**{**settings, **changes})()  # type: ignore[arg-type]


def test_a_token_is_asked_for_by_client_credentials(server: TokenServer) -> None:
    before = time.time()
    token, expires_at = ask(server.url, scope="kafka")
    assert token.count(".") == 2
    assert before + 3600 <= expires_at <= time.time() + 3600
    assert server.requests == [{"grant_type": "client_credentials", "scope": "kafka", "client": "me"}]


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (
            400,
            b'{"error": "invalid_scope"}',
            BrokerRefused,
            'status 400: {"error": "invalid_scope"}; see TAMIYO_KAFKA_',
        ),
        (401, f"no client with {SECRET}".encode(), BrokerRefused, "no client with \\*\\*\\*"),
        (404, b"", BrokerRefused, "status 404: Not Found"),
        (302, b"", BrokerRefused, "status 302"),
        (429, b"slowly", BrokerError, "status 429: slowly"),
        (503, b"\xff later\n" + b"x" * 5000, BrokerError, "status 503: \ufffd later x{292}$"),
        (200, b"<html>", BrokerRefused, "did not return a JSON object"),
        (200, b"[1]", BrokerRefused, "did not return a JSON object"),
        (200, b'{"token": "x"}', BrokerRefused, "no access_token, but \\['token'\\]"),
        (200, b'{"access_token": 5}', BrokerRefused, "no access_token"),
        (200, b'{"access_token": "x", "expires_in": "soon"}', BrokerRefused, "expires_in='soon': expected seconds"),
    ],
)
def test_what_is_not_a_token_is_explained(
    server: TokenServer, status: int, body: bytes, kind: type[BrokerError], words: str
) -> None:
    server.failure = (status, body)
    with pytest.raises(BrokerError, match=words) as failed:
        ask(server.url)
    assert type(failed.value) is kind
    assert SECRET not in str(failed.value)


def test_a_lifetime_may_be_missing_or_a_text(server: TokenServer) -> None:
    server.failure = (200, b'{"access_token": "x"}')
    assert ask(server.url)[1] == pytest.approx(time.time() + oauth.DEFAULT_LIFETIME_S, abs=60)
    server.failure = (200, b'{"access_token": "x", "expires_in": "7200"}')
    assert ask(server.url)[1] == pytest.approx(time.time() + 7200, abs=60)


def test_an_endpoint_that_is_away_is_temporary(server: TokenServer) -> None:
    with pytest.raises(BrokerError, match=r"http://127.0.0.1:9/ cannot be reached") as failed:
        ask("http://127.0.0.1:9/")
    assert not isinstance(failed.value, BrokerRefused)


def test_the_endpoints_certificate_is_verified(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with TokenServer(SECRET, tls=context) as server:
        assert ask(server.url, ca_file=str(tmp_path / "ca.pem"))
        with pytest.raises(BrokerRefused, match="TAMIYO_KAFKA_OAUTH_CA_FILE"):
            ask(server.url)
    with pytest.raises(ConfigurationError, match="TAMIYO_KAFKA_OAUTH_CA_FILE=/nowhere"):
        ask(server.url, ca_file="/nowhere")


class Clock:
    """The time, and what a provider returns at that time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.asked = 0
        self.error: Exception | None = None
        monkeypatch.setattr(oauth.time, "time", lambda: self.now)

    def __call__(self) -> tuple[str, float]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return f"token-{self.asked}", self.now + 100


def test_a_token_is_kept_and_renewed_before_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    source = TokenSource("PROVIDER", clock)
    assert source.token().value == "token-1"
    clock.now += 79
    assert source.token().value == "token-1"
    clock.now += 1
    assert source.librdkafka("") == ("token-2", 1180.0, "", {})


def test_a_token_that_cannot_be_renewed_is_used_until_it_expires(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    source = TokenSource("PROVIDER", clock)
    source.token()
    clock.error = BrokerError("away")
    clock.now += 90
    assert source.token().value == "token-1"
    assert "was not renewed, and expires in 10 s: away" in caplog.text
    clock.now += 1
    assert source.token().value == "token-1"
    assert clock.asked == 2  # not with every connection
    clock.now += oauth.RETRY_S
    assert source.token().value == "token-1"
    assert clock.asked == 3
    clock.now += 5
    with pytest.raises(BrokerError, match="away"):
        source.token()
    clock.error = None
    assert source.token().value == "token-5"


def test_threads_share_one_request() -> None:
    asked: list[int] = []

    def slow() -> tuple[str, float]:
        asked.append(1)
        time.sleep(0.05)
        return "token", time.time() + 100

    source = TokenSource("PROVIDER", slow)
    threads = [threading.Thread(target=source.token) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


def test_librdkafka_without_a_token_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    source = TokenSource("PROVIDER", clock)
    clock.error = BrokerRefused("wrong secret")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(BrokerRefused):
                source.librdkafka("")
    assert caplog.text.count("no token for Kafka: wrong secret") == 1


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, r"returned a NoneType: expected \(token, expiry in seconds since the epoch\)"),
        ("abc", "returned a str: expected"),
        (("token",), "returned a tuple: expected"),
        (("token", "tomorrow"), "returned a tuple: expected"),
        ((b"token", 1e10), "a token of type bytes: expected a text"),
        (("", 1e10), "a token of type str: expected a text"),
        (("token", 1e12), "expires at 1000000000000: expected seconds since the epoch"),
        (("token", 5.0), "expires at 5: expected seconds since the epoch, after now"),
        (("token", float("nan")), "expires at nan: expected seconds"),
    ],
)
def test_what_a_provider_must_not_return(found: object, words: str) -> None:
    with pytest.raises(BrokerRefused, match=f"PROVIDER.*{words}"):
        TokenSource("PROVIDER", lambda: found).token()  # type: ignore[arg-type, return-value]


def test_a_provider_that_raises_may_succeed_later() -> None:
    def fails() -> tuple[str, float]:
        raise KeyError("AWS_REGION")

    with pytest.raises(BrokerError, match="PROVIDER failed: KeyError: 'AWS_REGION'") as failed:
        TokenSource("PROVIDER", fails).token()
    assert not isinstance(failed.value, BrokerRefused)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("tests.support.token_server", "expected module:function"),
        ("no.such.module:token", "cannot be imported: ModuleNotFoundError"),
        ("tests.support.token_server:missing", "cannot be imported: AttributeError"),
        ("tests.support.token_server:__name__", "is a str: expected a function"),
    ],
)
def test_a_provider_must_exist(place: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"TAMIYO_KAFKA_OAUTH_TOKEN_PROVIDER={place}.*{words}"):
        load_provider(place)


@pytest.mark.parametrize("text", ["a", "=b", "a=", "a1=b", "auth=x", "a=b,,c=d", "a=b\x01auth=Bearer y", "a=ü"])
def test_extensions_have_the_form_of_the_standard(text: str) -> None:
    with pytest.raises(ConfigurationError, match="TAMIYO_KAFKA_OAUTH_EXTENSIONS"):
        parse_extensions(text)


def test_a_process_has_one_source_of_the_same_tokens() -> None:
    def endpoint(scope: str) -> TokenEndpoint:
        return TokenEndpoint("https://login/token", "me", SecretStr(SECRET), scope)

    assert token_source(endpoint("a")) is token_source(endpoint("a"))
    assert token_source(endpoint("a")) is not token_source(endpoint("b"))
    assert SECRET not in repr(endpoint("a"))
