"""Explains why a client cannot connect to a broker, and names the setting to check.

librdkafka reports connection errors by callback, with one message for an expired certificate, an unknown authority and
a wrong host name. If TLS fails, a handshake by Python's own ssl module distinguishes them.
"""

import socket
import ssl
import time
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from tamiyo.schemas.errors import BrokerError, BrokerRefused
from tamiyo.schemas.kafka import KafkaSettings

REPORT_S = 0.2  # by when librdkafka reports why a connection failed, after a request has failed by it
FIRST_TRY_S = 0.5  # doubled with every attempt, so that a slow broker gets enough time in the end
ALERT_S = 0.3  # in TLS 1.3 a broker rejects the client's certificate only after the handshake
LOGIN = "see TAMIYO_KAFKA_SASL_MECHANISM, TAMIYO_KAFKA_SASL_USERNAME and TAMIYO_KAFKA_SASL_PASSWORD"
REFUSED = "the broker does not accept the token: see TAMIYO_KAFKA_OAUTH_SCOPE and the broker's own settings"
UNREACHED = ("Connect to ", "Failed to resolve ")
HINTS = (
    ("expired", "renew the broker's certificate"),
    ("not yet valid", "compare this machine's clock with that of the certificate's issuer"),
    ("mismatch", "TAMIYO_KAFKA_BOOTSTRAP_SERVERS must use the host names of the certificate"),
    ("", "TAMIYO_KAFKA_SSL_CA_FILE must contain the authority that signed the broker's certificate"),
)


@dataclass(frozen=True, slots=True)
class ConnectionFailure:
    """The reason for a failed connection."""

    reason: str
    final: bool
    """Whether the settings are wrong, so that another attempt cannot succeed."""
    token: bool = False
    """Whether there is no token of OAUTHBEARER, so that the broker was not asked."""

    def error(self, servers: str) -> BrokerError:
        """Return the failure as an error to raise; `servers` are the bootstrap servers, for the message."""
        if self.token:
            return (BrokerRefused if self.final else BrokerError)(f"no token for {servers}: {self.reason}")
        if self.final:
            return BrokerRefused(f"{servers} refuses the connection: {self.reason}")
        return BrokerError(
            f"no broker is reachable at {servers}: {self.reason}; start one or set TAMIYO_KAFKA_BOOTSTRAP_SERVERS"
        )


class Connection:
    """An admin client with the errors that librdkafka reports about its connection."""

    def __init__(self, kafka: KafkaSettings) -> None:
        """Make a client; it connects in the background.

        Args:
            kafka: How to reach the broker.
        """
        self._kafka = kafka
        self._errors: list[KafkaError] = []
        self._reported: list[KafkaError] = []
        """The errors of the last attempt that had any: librdkafka does not repeat those that last."""
        self.admin = AdminClient(kafka.librdkafka(log_level=0, error_cb=self._errors.append))
        self.admin.poll(0)  # librdkafka asks for a token of OAUTHBEARER in a poll only

    def probe(self, timeout_s: float) -> ConnectionFailure | None:
        """Try to reach the broker.

        Args:
            timeout_s: Seconds until it gives up; it returns earlier if the settings are wrong.

        Returns:
            Why it failed, or None if the broker responds.
        """
        self._errors.clear()
        deadline = time.monotonic() + timeout_s
        attempt_s = FIRST_TRY_S
        while True:
            try:
                if self._kafka.oauth is not None:
                    self._kafka.oauth.token()
                    self.admin.poll(0)
                self.admin.list_topics(timeout=max(0.05, min(attempt_s, deadline - time.monotonic())))
            except BrokerError as error:
                if isinstance(error, BrokerRefused) or time.monotonic() >= deadline:
                    return ConnectionFailure(str(error), isinstance(error, BrokerRefused), token=True)
                time.sleep(min(attempt_s, max(0.0, deadline - time.monotonic())))
            except KafkaException as error:
                self.admin.poll(0)  # calls error_cb
                if not self._errors and error.args[0].code() == KafkaError._TRANSPORT:
                    self.admin.poll(REPORT_S)
                found = self._explain(error.args[0])
                if found.final or time.monotonic() >= deadline:
                    return found
                attempt_s *= 2
            else:
                return None

    def _explain(self, error: KafkaError) -> ConnectionFailure:
        reported = [e for e in self._errors if e.code() != KafkaError._ALL_BROKERS_DOWN] or self._reported
        self._reported = reported
        refused = [each for each in reported if each.code() == KafkaError._AUTHENTICATION]
        if refused:
            return ConnectionFailure(f"{_message(refused[0])}; {LOGIN if self._kafka.oauth is None else REFUSED}", True)
        found = _handshake(self._kafka) if self._kafka.tls and reported else None
        if found is not None:
            return found
        reason = _message(reported[-1]) if reported else error.str()
        unreached = reported and all(any(word in each.str() for word in UNREACHED) for each in reported)
        if not unreached:  # the connection was made and then closed, for which librdkafka has many messages
            reason += (
                f"; does TAMIYO_KAFKA_SECURITY_PROTOCOL={self._kafka.security_protocol} fit the broker's listener?"
            )
        return ConnectionFailure(reason, False)


def _message(error: KafkaError) -> str:
    """Return librdkafka's message without its internal state, as in `Connect failed (after 0ms in state CONNECT)`."""
    return str(error.str()).split(" (after ", 1)[0]


def _handshake(kafka: KafkaSettings) -> ConnectionFailure | None:
    """Perform a TLS handshake with each bootstrap server; return the first failure, or None."""
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
            message = error.verify_message
            hint = next(hint for word, hint in HINTS if word in message)
            return ConnectionFailure(f"the certificate of {server} is not valid: {message}; {hint}", True)
        except ssl.SSLError as error:
            if "alert" in str(error).lower():
                rejected = f"{server} rejects this client's certificate, or requires one ({error.reason})"
                return ConnectionFailure(
                    f"{rejected}: see TAMIYO_KAFKA_SSL_CERT_FILE and TAMIYO_KAFKA_SSL_KEY_FILE", True
                )
        except (OSError, ValueError):
            continue  # librdkafka reports it
    return None


def explain(kafka: KafkaSettings, timeout_s: float = 5.0) -> BrokerError | None:
    """Connect once.

    Args:
        kafka: How to reach the broker.
        timeout_s: Seconds until it gives up.

    Returns:
        The error to raise, or None if the broker responds.
    """
    failure = Connection(kafka).probe(timeout_s)
    return None if failure is None else failure.error(kafka.bootstrap_servers)
