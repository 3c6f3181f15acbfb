"""How to reach Kafka: one set of settings for all clients of Tamiyo."""

import re
import ssl
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.oauth import TokenEndpoint, TokenSource, parse_extensions, token_source
from tamiyo.schemas.settings import Settings

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.%a-z]{2,64}\]")

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PASSWORD = ("SASL_USERNAME", "SASL_PASSWORD")
CLIENT = ("OAUTH_TOKEN_URL", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET")
CLIENT_OPTIONS = ("OAUTH_SCOPE", "OAUTH_CA_FILE")
TOKENS = ("OAUTH_EXTENSIONS", "OAUTH_TOKEN_PROVIDER")
FILES = ("SSL_CA_FILE", "SSL_CERT_FILE", "SSL_KEY_FILE")


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
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="How the user logs in; for SASL", examples=["SCRAM-SHA-512"]
    )
    sasl_username: str | None = Field(None, description="User that logs in; for PLAIN and SCRAM", examples=["tamiyo"])
    sasl_password: SecretStr | None = Field(None, description="That user's password; for PLAIN and SCRAM")
    oauth_token_url: str | None = Field(
        None, description="Token endpoint, asked by client credentials; for OAUTHBEARER. https, or http on this machine"
    )
    oauth_client_id: str | None = Field(None, description="Client that the token endpoint knows")
    oauth_client_secret: SecretStr | None = Field(None, description="That client's secret")
    oauth_scope: str | None = Field(None, description="Scope to ask the token endpoint for")
    oauth_ca_file: str | None = Field(
        None, description="PEM file of the authorities to trust at the token endpoint; unset: the system's"
    )
    oauth_extensions: str | None = Field(
        None, description="SASL extensions for the broker: name=value, several separated by commas; for OAUTHBEARER"
    )
    oauth_token_provider: str | None = Field(
        None,
        description="module:function that returns a token and its expiry, in seconds since the epoch, in place of a "
        "token endpoint; for OAUTHBEARER",
    )
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
        """Mechanism, user and password; None without them."""
        if not (self.security_protocol.startswith("SASL") and self.sasl_mechanism and self.sasl_username):
            return None
        return self.sasl_mechanism, self.sasl_username, _plain(self.sasl_password) or ""

    @property
    def oauth(self) -> TokenSource | None:
        """Where the tokens of OAUTHBEARER come from; None for any other mechanism."""
        if not (self.security_protocol.startswith("SASL") and self.sasl_mechanism == "OAUTHBEARER"):
            return None
        extensions = parse_extensions(self.oauth_extensions) if self.oauth_extensions else ()
        return token_source(self.oauth_token_provider or self._token_endpoint(), extensions)

    def _token_endpoint(self) -> TokenEndpoint:
        secret = self.oauth_client_secret or SecretStr("")
        return TokenEndpoint(
            self.oauth_token_url or "", self.oauth_client_id or "", secret, self.oauth_scope, self.oauth_ca_file
        )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        protocol = f"TAMIYO_KAFKA_SECURITY_PROTOCOL={self.security_protocol}"
        self._check(protocol, needed=("SASL_MECHANISM",) if self.security_protocol.startswith("SASL") else ())
        self._check(*self._login())
        self._check(protocol, useless=() if self.tls else FILES)
        if self.ssl_key_file and not self.ssl_cert_file:
            raise ConfigurationError("TAMIYO_KAFKA_SSL_KEY_FILE needs TAMIYO_KAFKA_SSL_CERT_FILE")
        if self.oauth_token_url:
            self._check_token_url(self.oauth_token_url)
        self.ssl_context()
        _ = self.oauth  # finds the function that gives tokens
        return self

    def _login(self) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """Return the setting that decides how this client logs in, what it needs, and what it does not use."""
        if not self.security_protocol.startswith("SASL"):
            protocol = f"TAMIYO_KAFKA_SECURITY_PROTOCOL={self.security_protocol}"
            return protocol, (), ("SASL_MECHANISM", *PASSWORD, *CLIENT, *CLIENT_OPTIONS, *TOKENS)
        mechanism = f"TAMIYO_KAFKA_SASL_MECHANISM={self.sasl_mechanism}"
        if self.sasl_mechanism != "OAUTHBEARER":
            return mechanism, PASSWORD, (*CLIENT, *CLIENT_OPTIONS, *TOKENS)
        if self.oauth_token_provider:
            provider = f"{mechanism} with TAMIYO_KAFKA_OAUTH_TOKEN_PROVIDER={self.oauth_token_provider}"
            return provider, (), (*PASSWORD, *CLIENT, *CLIENT_OPTIONS)
        return f"{mechanism} without TAMIYO_KAFKA_OAUTH_TOKEN_PROVIDER", CLIENT, PASSWORD

    def _check(self, setting: str, needed: tuple[str, ...] = (), useless: tuple[str, ...] = ()) -> None:
        """Raise ConfigurationError if a setting misses others that it needs, or others have no effect with it."""
        missing = [f"TAMIYO_KAFKA_{name}" for name in needed if not getattr(self, name.lower())]
        if missing:
            raise ConfigurationError(f"{setting} needs {' and '.join(missing)}")
        unused = [f"TAMIYO_KAFKA_{name}" for name in useless if getattr(self, name.lower())]
        if unused:
            raise ConfigurationError(f"{setting} does not use {' and '.join(unused)}: change it, or unset them")

    def _check_token_url(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:  # every error message shows the URL
            raise ConfigurationError(
                "TAMIYO_KAFKA_OAUTH_TOKEN_URL must not contain credentials: set TAMIYO_KAFKA_OAUTH_CLIENT_ID and "
                "TAMIYO_KAFKA_OAUTH_CLIENT_SECRET"
            )
        # The secret goes with every request, and whoever has it can be this client for as long as it is valid.
        local = parts.scheme == "http" and parts.hostname in LOOPBACK
        if not parts.hostname or not (parts.scheme == "https" or local):
            raise ConfigurationError(
                f"TAMIYO_KAFKA_OAUTH_TOKEN_URL={url}: expected https:// and a host; http:// is for {LOOPBACK[0]} only, "
                "since the client's secret is sent to it"
            )
        self._token_endpoint().opener()

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

        With OAUTHBEARER a client logs in once it is polled: librdkafka asks for tokens in its `poll`.

        Args:
            **extra: More of librdkafka's settings; a setting of None is left out.
        """
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": _plain(self.sasl_password),
            "oauth_cb": self.oauth and self.oauth.librdkafka,
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
"""Largest message that hosts and stages publish, before compression, unless a worker's setting is another."""
MAX_READ_BYTES = 16 * 1024 * 1024
"""Largest message that readers decode, and a worker's setting may allow: a window of 10,000 layers has 12 MB."""
HEADERS_BYTES = 64 * 1024
"""What a dead letter, its redrive and a replay may add to a message: all its headers, whose longest has 16 kB."""
BATCH_BYTES = 1024 * 1024
"""What a topic must accept beyond the largest message: its headers, and what librdkafka adds to its batch."""

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
