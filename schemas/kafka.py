"""How to reach Kafka: one set of settings for every client Tamiyo uses."""

from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class KafkaSettings(BaseSettings):
    """Read from `TAMIYO_KAFKA_*`; secrets never show in `repr`."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_KAFKA_", extra="ignore")

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port, several separated by commas")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_file: str | None = Field(None, description="PEM file of the certificate authorities to trust")
    ssl_cert_file: str | None = Field(None, description="PEM file of the client's certificate")
    ssl_key_file: str | None = Field(None, description="PEM file of the client's key")

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
            "sasl.password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl.ca.location": self.ssl_ca_file,
            "ssl.certificate.location": self.ssl_cert_file,
            "ssl.key.location": self.ssl_key_file,
            "log_level": 3,
            **extra,
        }
        return {name: value for name, value in config.items() if value is not None}


PRODUCER = {"partitioner": "murmur2_random", "enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4"}
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
