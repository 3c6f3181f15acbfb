"""How to reach Kafka: one set of settings for every client Tamiyo uses."""

import ssl
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tamiyo.schemas.errors import ConfigurationError


class KafkaSettings(BaseSettings):
    """Read from `TAMIYO_KAFKA_*`; secrets never show in `repr` or errors.

    Raises ConfigurationError where security settings are incomplete, would not be used, or name files that are not
    what they should be: every client is told the same, before one of them tries.
    """

    # Without it a ValidationError would print all that was given, passwords included.
    model_config = SettingsConfigDict(env_prefix="TAMIYO_KAFKA_", extra="ignore", hide_input_in_errors=True)

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port, several separated by commas")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Whether connections are encrypted, and whether a user logs in"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="How the user logs in; required with SASL"
    )
    sasl_username: str | None = Field(None, description="Required with SASL")
    sasl_password: SecretStr | None = Field(None, description="Required with SASL")
    ssl_ca_file: str | None = Field(None, description="PEM file of the authorities to trust; unset: the system's")
    ssl_cert_file: str | None = Field(None, description="PEM file of the client's certificate")
    ssl_key_file: str | None = Field(None, description="PEM file of the client's key; unset: in the certificate's")
    ssl_key_password: SecretStr | None = Field(None, description="Of the client's key, where it is encrypted")

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def sasl(self) -> tuple[str, str, str] | None:
        """Mechanism, user and password, or None where no user logs in."""
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
            raise ConfigurationError(f"{protocol} does not use {named}: set the protocol, or leave them unset")
        if self.ssl_key_file and not self.ssl_cert_file:
            raise ConfigurationError("TAMIYO_KAFKA_SSL_KEY_FILE needs TAMIYO_KAFKA_SSL_CERT_FILE")
        self.ssl_context()
        return self

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the TLS context that asyncio clients need, host names checked; None where connections are plain.

        Raises ConfigurationError where a file cannot be read, or is not what it should be.
        """
        if not self.tls:
            return None
        what = f"TAMIYO_KAFKA_SSL_CA_FILE={self.ssl_ca_file}"
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca_file)
            if self.ssl_cert_file:
                key = f" with TAMIYO_KAFKA_SSL_KEY_FILE={self.ssl_key_file}" if self.ssl_key_file else ""
                what = f"TAMIYO_KAFKA_SSL_CERT_FILE={self.ssl_cert_file}{key}"
                # The password as a function: without one, an encrypted key would be asked for on the terminal.
                context.load_cert_chain(
                    self.ssl_cert_file, self.ssl_key_file, lambda: _plain(self.ssl_key_password) or ""
                )
        except OSError as error:
            raise ConfigurationError(f"{what} cannot be used: {error}") from error
        return context

    def librdkafka(self, **extra: Any) -> dict[str, Any]:
        """Return the configuration of a confluent-kafka client.

        Producers partition as Java's and aiokafka's do (murmur2), so that a run's key lands on the same partition
        number of every topic, whoever writes it.
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
"""The largest message that a producer of ours sends, before compression."""

PRODUCER = {
    "partitioner": "murmur2_random",
    "enable.idempotence": True,
    "linger.ms": 5,
    "compression.type": "lz4",
    "message.max.bytes": MAX_MESSAGE_BYTES,
}
"""What every librdkafka producer of ours adds: order and no repeats within a session, and the common partitioner."""


class TopicNames(BaseSettings):
    """An installation's topic names: the catalogue's behind an optional prefix (`TAMIYO_TOPIC_PREFIX`)."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_TOPIC_", extra="ignore")

    prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,100}$", description="Goes before every topic's name")

    def full(self, name: str) -> str:
        """Return the name on the broker."""
        return f"{self.prefix}{name}"

    def bare(self, name: str) -> str:
        """Return the catalogue name of a topic on the broker."""
        return name.removeprefix(self.prefix)
