"""Kafka settings: complete, without effectless ones, and translated for each client."""

import time

import pytest

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings

LOGIN = {"sasl_mechanism": "PLAIN", "sasl_username": "me", "sasl_password": "hunter2"}

PROVIDER = "tests.support.token_server:user_token"
FUNCTION = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "OAUTHBEARER",
    "oauth_token_provider": PROVIDER,
}
OAUTH = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "OAUTHBEARER",
    "oauth_token_url": "https://login/token",
    "oauth_client_id": "me",
    "oauth_client_secret": "hunter2",
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"security_protocol": "SASL_SSL"}, "SASL_SSL needs TAMIYO_KAFKA_SASL_MECHANISM$"),
        ({"security_protocol": "SASL_PLAINTEXT", **LOGIN, "sasl_password": None}, "needs TAMIYO_KAFKA_SASL_PASSWORD"),
        ({**LOGIN, "sasl_mechanism": None, "sasl_password": None}, "does not use TAMIYO_KAFKA_SASL_USERNAME"),
        ({"security_protocol": "SSL", "sasl_password": "hunter2"}, "does not use TAMIYO_KAFKA_SASL_PASSWORD"),
        ({"ssl_ca_file": "ca.pem"}, "does not use TAMIYO_KAFKA_SSL_CA_FILE"),
        ({"security_protocol": "SASL_PLAINTEXT", **LOGIN, "ssl_ca_file": "ca.pem"}, "does not use TAMIYO_KAFKA_SSL_CA"),
        ({"security_protocol": "SSL", "ssl_key_file": "key.pem"}, "SSL_KEY_FILE needs TAMIYO_KAFKA_SSL_CERT_FILE"),
        ({"security_protocol": "SSL", "ssl_ca_file": "/nowhere/ca.pem"}, "SSL_CA_FILE=/nowhere/ca.pem cannot be used"),
        (
            {**OAUTH, "oauth_token_url": None, "oauth_client_secret": None},
            "without .*_PROVIDER needs TAMIYO_KAFKA_OAUTH_TOKEN_URL and TAMIYO_KAFKA_OAUTH_CLIENT_SECRET$",
        ),
        ({**OAUTH, "sasl_username": "me"}, "does not use TAMIYO_KAFKA_SASL_USERNAME"),
        ({**OAUTH, "security_protocol": "SSL"}, "does not use TAMIYO_KAFKA_SASL_MECHANISM and TAMIYO_KAFKA_OAUTH_TOK"),
        ({"security_protocol": "SASL_SSL", **LOGIN, "oauth_scope": "x"}, "PLAIN does not use TAMIYO_KAFKA_OAUTH_SCOPE"),
        ({**OAUTH, "oauth_token_provider": PROVIDER}, "PROVIDER=tests.* does not use TAMIYO_KAFKA_OAUTH_TOKEN_URL and"),
        ({**OAUTH, "oauth_token_url": "http://login/token"}, "expected https://.* http:// is for localhost only"),
        ({**OAUTH, "oauth_token_url": "login/token"}, "expected https://"),
        ({**OAUTH, "oauth_token_url": "https://me:hunter2@login/"}, "must not contain credentials: set TAMIYO_KAFKA_"),
        ({**OAUTH, "oauth_ca_file": "/nowhere"}, "TAMIYO_KAFKA_OAUTH_CA_FILE=/nowhere cannot be used"),
        ({**OAUTH, "oauth_extensions": "a"}, "TAMIYO_KAFKA_OAUTH_EXTENSIONS=a: expected name=value"),
        ({**FUNCTION, "oauth_token_provider": "no.such:function"}, "PROVIDER=no.such:function cannot be imported"),
    ],
)
def test_incomplete_and_effectless_settings_are_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        KafkaSettings(**settings)  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)


def test_the_login_is_that_of_a_sasl_protocol() -> None:
    assert KafkaSettings().sasl is None
    settings = KafkaSettings(security_protocol="SASL_PLAINTEXT", **LOGIN)  # type: ignore[arg-type]
    assert settings.sasl == ("PLAIN", "me", "hunter2")
    assert settings.ssl_context() is None


def test_librdkafka_gets_what_is_set() -> None:
    config = KafkaSettings(bootstrap_servers="one:1,two:2").librdkafka(log_level=0, client_id=None)
    assert config == {"bootstrap.servers": "one:1,two:2", "security.protocol": "PLAINTEXT", "log_level": 0}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_token_endpoint_on_this_machine_needs_no_tls(host: str) -> None:
    KafkaSettings(**{**OAUTH, "oauth_token_url": f"http://{host}:8080/token"})  # type: ignore[arg-type]


def test_librdkafka_gets_tokens_with_their_extensions() -> None:
    config = KafkaSettings(**FUNCTION, oauth_extensions="logicalCluster=lkc-1, pool=p").librdkafka()  # type: ignore[arg-type]
    assert config["sasl.mechanism"] == "OAUTHBEARER"
    token, expires_at, principal, extensions = config["oauth_cb"]("")
    assert token.count(".") == 2
    assert time.time() < expires_at
    assert (principal, extensions) == ("", {"logicalCluster": "lkc-1", "pool": "p"})
