"""TLS and SASL on a real broker: right settings work in every client, wrong ones are reported at once."""

import asyncio
import logging
import time
from collections.abc import Callable

import pytest

from tamiyo.host._client.publisher import KafkaPublisher
from tamiyo.host._client.receiver import KafkaReceiver
from tamiyo.schemas.client.broker_wait import wait_for_broker
from tamiyo.schemas.client.connection import explain
from tamiyo.schemas.errors import BrokerError, BrokerRefused, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL
from tamiyo.streams.admin.doctor import examine
from tamiyo.streams.learner.loop import LearnerLoop
from tamiyo.streams.runtime.faust.app import create_app
from tamiyo.streams.runtime.output_log import OutputLogReader
from tamiyo.streams.runtime.views import Views
from tamiyo.streams.runtime.worker import Worker
from tamiyo.streams.settings import LearnerSettings, WorkerSettings
from tests.support.pairs import ENTRY
from tests.support.secure_broker import PASSWORD, LockedKafka

pytestmark = pytest.mark.kafka

QUICK_S = 15.0  # against a startup timeout of 60 s: a refusal is not waited out, on a busy machine neither
Make = Callable[[LockedKafka], KafkaSettings]


def wrong_host(server: str) -> str:
    """Return the same listener by an address that its certificate does not name."""
    return server.replace("localhost", "127.0.0.1")


RIGHT: dict[str, Make] = {
    "PLAIN": lambda k: k.user(mechanism="PLAIN"),
    "SCRAM-SHA-256": lambda k: k.user(mechanism="SCRAM-SHA-256"),
    "SCRAM-SHA-512": lambda k: k.user(mechanism="SCRAM-SHA-512"),
    "unencrypted": lambda k: k.user(
        bootstrap_servers=k.node.servers["SASLPLAIN"], security_protocol="SASL_PLAINTEXT", ssl_ca_file=None
    ),
    "client certificate": lambda k: k.tls(),
}
WRONG: dict[str, tuple[Make, str]] = {
    "PLAIN password": (lambda k: k.user(mechanism="PLAIN", sasl_password="wrong"), "TAMIYO_KAFKA_SASL_PASSWORD"),
    "SCRAM password": (lambda k: k.user(sasl_password="wrong"), "TAMIYO_KAFKA_SASL_PASSWORD"),
    "unknown user": (lambda k: k.user("nobody"), "TAMIYO_KAFKA_SASL_USERNAME"),
    "expired": (
        lambda k: k.tls(bootstrap_servers=k.node.servers["EXPIRED"]),
        "certificate has expired; renew the broker's certificate",
    ),
    "host name": (
        lambda k: k.user(bootstrap_servers=wrong_host(k.node.servers["SASLTLS"])),
        "mismatch.*TAMIYO_KAFKA_BOOTSTRAP_SERVERS must use the host names of the certificate",
    ),
    "authority": (lambda k: k.user(ssl_ca_file=str(k.folder / "other-ca.pem")), "TAMIYO_KAFKA_SSL_CA_FILE"),
    "no client certificate": (lambda k: k.tls(ssl_cert_file=None), "TAMIYO_KAFKA_SSL_CERT_FILE"),
}


def right(name: str) -> object:
    return pytest.param(RIGHT[name], id=name)


def wrong(name: str) -> object:
    return pytest.param(*WRONG[name], id=name)


async def read_end(kafka: KafkaSettings) -> None:
    """Connect as readers of output logs do."""
    async with OutputLogReader(kafka, fetch_wait_ms=50):
        await asyncio.sleep(0.01)  # aiokafka cannot be stopped before its tasks have started


async def consume(kafka: KafkaSettings) -> list[str]:
    """Start Faust's own consumer and return the topics it sees."""
    app = create_app("faust-reads", kafka, WorkerSettings())
    thread = app.consumer_thread
    consumer = thread._create_consumer(loop=asyncio.get_running_loop())
    try:
        await consumer.start()
        return list(await consumer.topics())
    finally:
        await consumer.stop()
        thread.thread_loop.close()  # it was never started, so nothing else closes the loop that it has made


@pytest.mark.parametrize("make", [right(name) for name in RIGHT])
def test_right_settings_connect_every_client(locked: LockedKafka, make: Make) -> None:
    kafka = make(locked)
    assert explain(kafka, 10) is None
    asyncio.run(read_end(kafka))
    asyncio.run(consume(kafka))


@pytest.mark.parametrize(("make", "words"), [wrong(name) for name in WRONG])
def test_wrong_settings_are_reported_at_once(locked: LockedKafka, make: Make, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerRefused, match=words) as refused:
        raise explain(make(locked), 60) or AssertionError("it was let in")
    assert time.monotonic() - began < QUICK_S
    assert PASSWORD not in str(refused.value)


def test_a_listener_of_another_protocol_is_suggested(locked: LockedKafka) -> None:
    error = explain(KafkaSettings(bootstrap_servers=locked.node.servers["SASLPLAIN"]), 1)
    assert error is not None
    assert "does TAMIYO_KAFKA_SECURITY_PROTOCOL=PLAINTEXT fit" in str(error)
    assert not isinstance(error, BrokerRefused)  # a restarting broker fails in the same way


def worker(kafka: KafkaSettings, names: TopicNames) -> None:
    asyncio.run(Worker({"pairs": ENTRY}, WorkerSettings(), kafka, names).run())


def views(kafka: KafkaSettings, names: TopicNames) -> None:
    async def read() -> None:
        reader = Views([CONTROL], kafka, names, fetch_wait_ms=50)
        await reader.start()
        try:
            await reader.wait(60)
        finally:
            await reader.stop()

    asyncio.run(read())


CLIENTS: dict[str, Callable[[KafkaSettings, TopicNames], object]] = {
    "worker": worker,
    "learner": lambda kafka, names: LearnerLoop(LearnerSettings(), kafka, names).run(),
    "commands": lambda kafka, _: wait_for_broker(kafka, 60, report=print),  # what each of them does first
    "ends of topics": lambda kafka, _: asyncio.run(read_end(kafka)),
    "views": views,
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("make", "words"), [wrong("SCRAM password"), wrong("host name")])
def test_every_client_reports_wrong_settings(
    locked: LockedKafka, names: TopicNames, client: str, make: Make, words: str
) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerRefused, match=words):
        CLIENTS[client](make(locked), names)
    assert time.monotonic() - began < QUICK_S


@pytest.mark.parametrize(("make", "words"), [wrong("SCRAM password"), wrong("expired")])
def test_the_doctor_reports_wrong_settings(
    locked: LockedKafka, tmp_path: object, monkeypatch: pytest.MonkeyPatch, make: Make, words: str
) -> None:
    monkeypatch.setenv("TAMIYO_STORE_URL", f"file://{tmp_path}")
    findings = examine(lambda: make(locked))
    (found,) = (finding for finding in findings if finding.what == "broker")
    assert found.state == "problem"
    assert words.split(".*")[-1] in found.detail


def test_training_continues_and_the_log_has_the_reason(
    locked: LockedKafka, names: TopicNames, caplog: pytest.LogCaptureFixture
) -> None:
    make, words = WRONG["expired"]
    with caplog.at_level(logging.WARNING):
        began = time.monotonic()
        receiver = KafkaReceiver("run", make(locked), names, connect_timeout_s=0.2)
        publisher = KafkaPublisher("run", make(locked), names, capacity=10)
        assert time.monotonic() - began < 5
        deadline = time.monotonic() + QUICK_S
        while words not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        publisher.close(0.1)
        receiver.close()
    assert words in caplog.text
    assert not receiver.receive()


CA = "tests/__init__.py"  # a file, but of no authority


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "needs TAMIYO_KAFKA_SASL_USERNAME and"),
        ({"sasl_password": PASSWORD}, "PLAINTEXT does not use TAMIYO_KAFKA_SASL_PASSWORD"),
        ({"ssl_ca_file": CA}, "PLAINTEXT does not use TAMIYO_KAFKA_SSL_CA_FILE"),
        ({"security_protocol": "SSL", "ssl_ca_file": CA}, "TAMIYO_KAFKA_SSL_CA_FILE=.* cannot be used"),
        ({"security_protocol": "SSL", "ssl_cert_file": CA}, "TAMIYO_KAFKA_SSL_CERT_FILE=.* cannot be used"),
        ({"security_protocol": "SSL", "ssl_key_file": CA}, "needs TAMIYO_KAFKA_SSL_CERT_FILE"),
    ],
)
def test_contradictory_settings_are_refused_before_connecting(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as wrong:
        KafkaSettings(**settings)  # type: ignore[arg-type]
    assert PASSWORD not in str(wrong.value)


def test_a_missing_broker_is_not_a_refusal() -> None:
    error = explain(KafkaSettings(bootstrap_servers="127.0.0.1:1"), 0.3)
    assert isinstance(error, BrokerError)
    assert not isinstance(error, BrokerRefused)
    assert "Connection refused" in str(error)
