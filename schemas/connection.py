"""Why a broker does not let a client in, in words, with the setting to look at.

librdkafka tells it by callback, and says the same of an expired certificate, a foreign authority and a wrong host name.
So where TLS fails, one handshake by Python's own ssl finds out which it was.
"""

import socket
import ssl
import time
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from tamiyo.schemas.errors import BrokerError, BrokerRefused
from tamiyo.schemas.kafka import KafkaSettings

FIRST_TRY_S = 0.5  # tries grow, so that a slow broker still gets the time it needs
ALERT_S = 0.3  # TLS 1.3: a broker refuses the client's certificate after the handshake
LOGIN = "see TAMIYO_KAFKA_SASL_MECHANISM, TAMIYO_KAFKA_SASL_USERNAME and TAMIYO_KAFKA_SASL_PASSWORD"
UNREACHED = ("Connect to ", "Failed to resolve ")
HINTS = (
    ("expired", "the broker's certificate has to be renewed"),
    ("not yet valid", "compare the clocks of this machine and of who made the certificate"),
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
        """Return it as the error to raise."""
        if self.final:
            return BrokerRefused(f"{servers} refuses the connection: {self.reason}")
        return BrokerError(f"no broker answers at {servers}: {self.reason}")


class Connection:
    """An admin client, and what librdkafka told about its connection."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._told: list[KafkaError] = []
        self.admin = AdminClient(kafka.librdkafka(log_level=0, error_cb=self._told.append))

    def probe(self, timeout_s: float) -> ConnectionFailure | None:
        """Return why the broker does not answer, or None if it does; returns early where settings are wrong."""
        self._told.clear()
        deadline = time.monotonic() + timeout_s
        patience = FIRST_TRY_S
        while True:
            try:
                self.admin.list_topics(timeout=max(0.05, min(patience, deadline - time.monotonic())))
            except KafkaException as error:
                self.admin.poll(0)  # the callback is served here
                found = self._explain(error.args[0])
                if found.final or time.monotonic() >= deadline:
                    return found
                patience *= 2
            else:
                return None

    def _explain(self, error: KafkaError) -> ConnectionFailure:
        told = [each for each in self._told if each.code() != KafkaError._ALL_BROKERS_DOWN]
        refused = [each for each in told if each.code() == KafkaError._AUTHENTICATION]
        if refused:
            return ConnectionFailure(f"{_words(refused[0])}; {LOGIN}", True)
        found = _handshake(self._kafka) if self._kafka.tls and told else None
        if found is not None:
            return found
        reason = _words(told[-1]) if told else error.str()
        unreached = told and all(any(word in each.str() for word in UNREACHED) for each in told)
        if not unreached:  # somebody was there, and broke off: librdkafka has many words for that
            reason += (
                f"; does TAMIYO_KAFKA_SECURITY_PROTOCOL={self._kafka.security_protocol} fit the broker's listener?"
            )
        return ConnectionFailure(reason, False)


def _words(error: KafkaError) -> str:
    """Leave out the state machine's notes: `ssl://host:9093/bootstrap: Connect failed (after 0ms in state CONNECT)`."""
    return str(error.str()).split(" (after ", 1)[0]


def _handshake(kafka: KafkaSettings) -> ConnectionFailure | None:
    """Shake hands with each bootstrap server; return what TLS has against the first that has something."""
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
            said = error.verify_message
            hint = next(hint for word, hint in HINTS if word in said)
            return ConnectionFailure(f"the certificate of {server} does not hold: {said}; {hint}", True)
        except ssl.SSLError as error:
            if "alert" in str(error).lower():
                what = f"{server} does not take this client's certificate, or wants one ({error.reason})"
                return ConnectionFailure(f"{what}: see TAMIYO_KAFKA_SSL_CERT_FILE and TAMIYO_KAFKA_SSL_KEY_FILE", True)
        except (OSError, ValueError):
            continue  # librdkafka has words for it
    return None


def explain(kafka: KafkaSettings, timeout_s: float = 5.0) -> BrokerError | None:
    """Connect once, and return as an error why that fails; None where it works."""
    trouble = Connection(kafka).probe(timeout_s)
    return None if trouble is None else trouble.error(kafka.bootstrap_servers)


def of_the_group(error: KafkaError) -> bool:
    """Return whether an error is only about the group of a consumer that has none but in name.

    librdkafka looks for its coordinator even where partitions are assigned by hand. To be refused that costs nothing.
    """
    return bool(error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED)
