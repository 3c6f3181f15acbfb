"""Kafka settings: complete, without effectless ones, and translated for each client."""

import pytest

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings

LOGIN = {"sasl_mechanism": "PLAIN", "sasl_username": "me", "sasl_password": "hunter2"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs TAMIYO_KAFKA_SASL_MECHANISM and TAMIYO_KAFKA_SASL_USERNAME and"),
        ({"security_protocol": "SASL_PLAINTEXT", **LOGIN, "sasl_password": None}, "needs TAMIYO_KAFKA_SASL_PASSWORD"),
        ({**LOGIN, "sasl_mechanism": None, "sasl_password": None}, "does not use TAMIYO_KAFKA_SASL_USERNAME"),
        ({"security_protocol": "SSL", "sasl_password": "hunter2"}, "does not use TAMIYO_KAFKA_SASL_PASSWORD"),
        ({"ssl_ca_file": "ca.pem"}, "does not use TAMIYO_KAFKA_SSL_CA_FILE"),
        ({"security_protocol": "SASL_PLAINTEXT", **LOGIN, "ssl_ca_file": "ca.pem"}, "does not use TAMIYO_KAFKA_SSL_CA"),
        ({"security_protocol": "SSL", "ssl_key_file": "key.pem"}, "SSL_KEY_FILE needs TAMIYO_KAFKA_SSL_CERT_FILE"),
        ({"security_protocol": "SSL", "ssl_ca_file": "/nowhere/ca.pem"}, "SSL_CA_FILE=/nowhere/ca.pem cannot be used"),
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
