"""Explains why a client cannot connect to a broker, and names the setting to correct.

librdkafka reports failures by callback, with the same text for an expired certificate, an unknown authority and a wrong
host name. Where TLS fails, a handshake with Python's own ssl module finds the cause.
"""

import socket
import ssl
import time
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from tamiyo.schemas.errors import BrokerError, BrokerRefused
from tamiyo.schemas.kafka import KafkaSettings

FIRST_TRY_S = 0.5  # each attempt is twice as long, so that a slow broker still gets the time it needs
ALERT_S = 0.3  # TLS 1.3: a broker refuses the client's certificate after the handshake
LOGIN = "see TAMIYO_KAFKA_SASL_MECHANISM, TAMIYO_KAFKA_SASL_USERNAME and TAMIYO_KAFKA_SASL_PASSWORD"
UNREACHED = ("Connect to ", "Failed to resolve ")
HINTS = (
    ("expired", "the broker's certificate has to be renewed"),
    ("not yet valid", "compare the clocks of this machine and of the one that made the certificate"),
    ("mismatch", "TAMIYO_KAFKA_BOOTSTRAP_SERVERS must name hosts as the certificate does"),
    ("", "TAMIYO_KAFKA_SSL_CA_FILE must hold the authority that signed the broker's certificate"),
)


@dataclass(frozen=True, slots=True)
class ConnectionFailure:
    """Why there is no connection."""

    reason: str
    final: bool
    """Whether the settings are wrong, so that another try cannot help."""

    def error(self, servers: str) -> BrokerError:
        """Return the error to raise."""
        if self.final:
            return BrokerRefused(f"{servers} refuses the connection: {self.reason}")
        return BrokerError(f"cannot connect to Kafka at {servers}: {self.reason}")


class Connection:
    """An admin client, and the errors that librdkafka reported about its connection."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._reported: list[KafkaError] = []
        self.admin = AdminClient(kafka.librdkafka(log_level=0, error_cb=self._reported.append))

    def probe(self, timeout_s: float) -> ConnectionFailure | None:
        """Return why there is no connection within `timeout_s`, or None; returns at once where settings are wrong."""
        self._reported.clear()
        deadline = time.monotonic() + timeout_s
        try_s = FIRST_TRY_S
        while True:
            try:
                self.admin.list_topics(timeout=max(0.05, min(try_s, deadline - time.monotonic())))
            except KafkaException as error:
                self.admin.poll(0)  # the callback is served here
                found = self._explain(error.args[0])
                if found.final or time.monotonic() >= deadline:
                    return found
                try_s *= 2
            else:
                return None

    def _explain(self, error: KafkaError) -> ConnectionFailure:
        reported = [each for each in self._reported if each.code() != KafkaError._ALL_BROKERS_DOWN]
        refused = [each for each in reported if each.code() == KafkaError._AUTHENTICATION]
        if refused:
            return ConnectionFailure(f"{_words(refused[0])}; {LOGIN}", True)
        found = _handshake(self._kafka) if self._kafka.tls and reported else None
        if found is not None:
            return found
        reason = _words(reported[-1]) if reported else error.str()
        unreached = reported and all(any(word in each.str() for word in UNREACHED) for each in reported)
        if not unreached:  # the broker closed the connection, for which librdkafka has many texts
            reason += (
                f"; does TAMIYO_KAFKA_SECURITY_PROTOCOL={self._kafka.security_protocol} fit the broker's listener?"
            )
        return ConnectionFailure(reason, False)


def _words(error: KafkaError) -> str:
    """Drop librdkafka's internal state: `ssl://host:9093/bootstrap: Connect failed (after 0ms in state CONNECT)`."""
    return str(error.str()).split(" (after ", 1)[0]


def _handshake(kafka: KafkaSettings) -> ConnectionFailure | None:
    """Make a TLS handshake with each bootstrap server; return why the first one fails that does."""
    context = kafka.ssl_context()
    assert context is not None
    for server in kafka.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            with (
                socket.create_connection((host.strip("[]"), int(port)), timeout=2.0) as plain,
                context.wrap_socket(plain, server_hostname=host.strip("[]")) as secure,
            ):
                secure.settimeout(ALERT_S)
                secure.recv(1)
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message
            hint = next(hint for word, hint in HINTS if word in reason)
            return ConnectionFailure(f"the certificate of {server} is not valid: {reason}; {hint}", True)
        except ssl.SSLError as error:
            if "alert" in str(error).lower():
                what = f"{server} rejects this client's certificate, or requires one ({error.reason})"
                return ConnectionFailure(f"{what}: see TAMIYO_KAFKA_SSL_CERT_FILE and TAMIYO_KAFKA_SSL_KEY_FILE", True)
        except (OSError, ValueError):
            continue  # librdkafka reports it
    return None


def explain(kafka: KafkaSettings, timeout_s: float = 5.0) -> BrokerError | None:
    """Connect once; return the error if that fails, None if it works."""
    failure = Connection(kafka).probe(timeout_s)
    return None if failure is None else failure.error(kafka.bootstrap_servers)
