"""How to reach Kafka: one set of settings for all clients of Tamiyo."""

import re
import ssl
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.settings import Settings

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.%a-z]{2,64}\]")


class KafkaSettings(Settings):
    """Connection settings, read from `TAMIYO_KAFKA_*`. Secrets never appear in `repr` or errors.

    All clients check the settings in the same way, before they connect.

    Raises:
        ConfigurationError: Security settings are incomplete, have no effect with the protocol, or name unusable files.

    Example:
        >>> settings = KafkaSettings(
        ...     bootstrap_servers="kafka:9093", security_protocol="SASL_SSL",
        ...     sasl_mechanism="SCRAM-SHA-512", sasl_username="tamiyo", sasl_password="secret",
        ... )
        >>> settings.sasl_password
        SecretStr('**********')
        >>> settings.librdkafka()["sasl.mechanism"]
        'SCRAM-SHA-512'
    """

    model_config = SettingsConfigDict(env_prefix="TAMIYO_KAFKA_")

    bootstrap_servers: str = Field(
        "127.0.0.1:9092", description="host:port, several separated by commas", examples=["kafka-1:9092,kafka-2:9092"]
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Encryption (SSL) and login (SASL) of the broker's listener"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="How the user logs in; for SASL", examples=["SCRAM-SHA-512"]
    )
    sasl_username: str | None = Field(None, description="User that logs in; for SASL", examples=["tamiyo"])
    sasl_password: SecretStr | None = Field(None, description="That user's password; for SASL")
    ssl_ca_file: str | None = Field(
        None,
        description="PEM file of the certificate authorities to trust; unset: the system's",
        examples=["/etc/tamiyo/ca.pem"],
    )
    ssl_cert_file: str | None = Field(
        None, description="PEM file of the client's certificate", examples=["/etc/tamiyo/client.pem"]
    )
    ssl_key_file: str | None = Field(
        None,
        description="PEM file of the client's key; unset: in the certificate's file",
        examples=["/etc/tamiyo/client-key.pem"],
    )
    ssl_key_password: SecretStr | None = Field(None, description="Password of the client's key, if it is encrypted")

    @field_validator("bootstrap_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        for server in value.split(","):
            host, _, port = server.strip().rpartition(":")
            if not _HOST.fullmatch(host) or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
                raise ValueError(f"expected host:port, several separated by commas, found {printable(server)!r}")
        return value

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def sasl(self) -> tuple[str, str, str] | None:
        """Mechanism, user and password; None without SASL."""
        if not (self.security_protocol.startswith("SASL") and self.sasl_mechanism and self.sasl_username):
            return None
        return self.sasl_mechanism, self.sasl_username, _plain(self.sasl_password) or ""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        protocol = f"TAMIYO_KAFKA_SECURITY_PROTOCOL={self.security_protocol}"
        login = {
            "SASL_MECHANISM": self.sasl_mechanism,
            "SASL_USERNAME": self.sasl_username,
            "SASL_PASSWORD": _plain(self.sasl_password),
        }
        files = {
            "SSL_CA_FILE": self.ssl_ca_file,
            "SSL_CERT_FILE": self.ssl_cert_file,
            "SSL_KEY_FILE": self.ssl_key_file,
        }
        if self.security_protocol.startswith("SASL"):
            missing = [f"TAMIYO_KAFKA_{name}" for name, value in login.items() if not value]
            if missing:
                raise ConfigurationError(f"{protocol} needs {' and '.join(missing)}")
            useless = {} if self.tls else files
        else:
            useless = login if self.tls else {**login, **files}
        if any(useless.values()):
            named = " and ".join(f"TAMIYO_KAFKA_{name}" for name, value in useless.items() if value)
            raise ConfigurationError(f"{protocol} does not use {named}: change the protocol, or unset them")
        if self.ssl_key_file and not self.ssl_cert_file:
            raise ConfigurationError("TAMIYO_KAFKA_SSL_KEY_FILE needs TAMIYO_KAFKA_SSL_CERT_FILE")
        self.ssl_context()
        return self

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the TLS context for asyncio clients, which verifies host names; None for plain connections.

        Raises:
            ConfigurationError: A file cannot be read, or is not a certificate or key.
        """
        if not self.tls:
            return None
        setting = f"TAMIYO_KAFKA_SSL_CA_FILE={self.ssl_ca_file}"
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca_file)
            if self.ssl_cert_file:
                key = f" with TAMIYO_KAFKA_SSL_KEY_FILE={self.ssl_key_file}" if self.ssl_key_file else ""
                setting = f"TAMIYO_KAFKA_SSL_CERT_FILE={self.ssl_cert_file}{key}"
                # The password as a function: without it, ssl would prompt for that of an encrypted key on the terminal.
                context.load_cert_chain(
                    self.ssl_cert_file, self.ssl_key_file, lambda: _plain(self.ssl_key_password) or ""
                )
        except OSError as error:
            raise ConfigurationError(f"{setting} cannot be used: {error}") from error
        return context

    def librdkafka(self, **extra: Any) -> dict[str, Any]:
        """Return the configuration of a confluent-kafka client.

        Args:
            **extra: More of librdkafka's settings; a setting of None is left out.
        """
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": _plain(self.sasl_password),
            "ssl.ca.location": self.ssl_ca_file,
            "ssl.certificate.location": self.ssl_cert_file,
            "ssl.key.location": self.ssl_key_file or self.ssl_cert_file,
            "ssl.key.password": _plain(self.ssl_key_password),
            "log_level": 3,
            **extra,
        }
        return {name: value for name, value in config.items() if value is not None}


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Largest message that hosts and stages publish and readers decode, before compression; other sizes follow from it."""
HEADERS_BYTES = 64 * 1024
"""What a dead letter, its redrive and a replay may add to a message: all its headers, whose longest has 16 kB."""
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES + 1024 * 1024
"""Largest batch that a topic must accept: the largest message, its headers, and what librdkafka adds to its batch."""

PRODUCER = {
    "partitioner": "murmur2_random",
    "enable.idempotence": True,
    "linger.ms": 5,
    "compression.type": "lz4",
    "message.max.bytes": MAX_MESSAGE_BYTES,
}
"""Settings of every librdkafka producer: order without repeats within a session, and the partitioner (murmur2) of Java
and aiokafka producers, so that a run's key maps to the same partition number of every topic with every producer."""


class TopicNames(Settings):
    """An installation's topic names: the catalogue's names after an optional prefix (`TAMIYO_TOPIC_PREFIX`)."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_TOPIC_")

    prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,100}$", description="Prefix of all topic names")

    def full(self, name: str) -> str:
        """Return a topic's name on the broker; `name` is that of the catalogue."""
        return f"{self.prefix}{name}"

    def bare(self, name: str) -> str:
        """Return a topic's name in the catalogue; `name` is that on the broker."""
        return name.removeprefix(self.prefix)
