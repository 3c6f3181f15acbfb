"""OAUTHBEARER on a real broker: every client logs in with tokens, and goes on when they expire."""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tamiyo.host._client.publisher import KafkaPublisher
from tamiyo.host._client.receiver import KafkaReceiver
from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.client.connection import explain
from tamiyo.schemas.errors import BrokerError, BrokerRefused
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CACHE_HIT_RATES, CONTROL
from tamiyo.streams.admin.acls import grants, missing
from tamiyo.streams.admin.doctor import examine
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.replay.cleanup import groups_under
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import NUMBERS, SUMS, number
from tests.support.secure_broker import PASSWORD, REAUTH_S, LockedKafka
from tests.support.token_server import TokenServer
from tests.support.workers import TOPICS, Process, enough, expected, numbers, sums
from tests.system.security.test_access import CLIENTS, QUICK_S, consume, read_end

pytestmark = pytest.mark.kafka

PROVIDER = "tests.support.token_server:user_token"
SHORT_S = 3.0  # lifetime of a token that expires while a client is connected
Login = Callable[[LockedKafka, TokenServer], KafkaSettings]


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer(PASSWORD) as server:
        yield server


def endpoint(locked: LockedKafka, tokens: TokenServer) -> KafkaSettings:
    return locked.oauth(tokens)


def function(locked: LockedKafka, _tokens: TokenServer) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=locked.node.servers["OAUTH"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="OAUTHBEARER",
        oauth_token_provider=PROVIDER,
    )


LOGINS = pytest.mark.parametrize("login", [endpoint, function])


def environment(kafka: KafkaSettings) -> dict[str, str]:
    """Return the environment variables of `kafka`."""
    plain = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in kafka.model_dump().items()
    }
    return {f"TAMIYO_KAFKA_{name.upper()}": value for name, value in plain.items() if value is not None}


@LOGINS
def test_every_client_connects(
    locked: LockedKafka,
    tokens: TokenServer,
    names: TopicNames,
    login: Login,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kafka = login(locked, tokens)
    assert Topics(kafka, names).create(partitions=1)  # the first request of an admin client
    assert explain(kafka, 10) is None
    assert missing(grants("host", names), kafka) == []
    assert groups_under(kafka, names) == []
    asyncio.run(read_end(kafka))
    assert names.full(CONTROL.name) in asyncio.run(consume(kafka))
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    monkeypatch.setenv("TAMIYO_STORE_URL", f"file://{tmp_path}")
    findings = examine(lambda: kafka)
    assert [each.state for each in findings if each.what == "broker"] == ["ok"]
    assert len(tokens.requests) == (login is endpoint)  # one token serves all of them


@LOGINS
def test_the_host_publishes_and_receives(
    locked: LockedKafka, tokens: TokenServer, names: TopicNames, login: Login
) -> None:
    kafka = login(locked, tokens)
    Topics(kafka, names).create(partitions=1)
    receiver = KafkaReceiver("run", kafka, names, connect_timeout_s=10)
    publisher = KafkaPublisher("run", kafka, names, capacity=10)
    try:
        assert receiver.connected
        publisher.publish(CACHE_HIT_RATES, lambda: number("run", 1, 5))
        publisher.publish(CONTROL, lambda: ControlCommand(run_id="run", time_ms=1, paused=True))
        assert publisher.flush(20)
        assert (publisher.published, publisher.dropped) == (2, 0)
        deadline = time.monotonic() + 20
        while not (arrived := receiver.receive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [each.run_id for each in arrived] == ["run"]
    finally:
        publisher.close(1)
        receiver.close()


def published_for(seconds: float, log: KafkaLog) -> int:
    """Publish numbers for so long, and return how many."""
    ends, last = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        log.publish(NUMBERS, numbers(last, last + 2))
        last += 2
        time.sleep(0.3)
    return last


@pytest.mark.timeout(180)
def test_clients_go_on_when_their_tokens_expire(
    locked: LockedKafka, tokens: TokenServer, names: TopicNames, start: Callable[..., Process]
) -> None:
    tokens.lifetime_s = SHORT_S
    kafka = locked.oauth(tokens)
    Topics(kafka, names, TOPICS).create(partitions=1)
    log = KafkaLog(kafka, names)
    try:
        worker = start(kafka, **environment(kafka))
        worker.wait_until_ready(1)
        wanted = expected(published_for(4 * SHORT_S, log))
        messages = log.wait_for(SUMS.name, enough(len(wanted)))
        assert sums(messages) == wanted
        assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
    finally:
        log.close()
    assert len(tokens.requests) > 4  # here and in the worker
    assert PASSWORD not in worker.log.read_text()


@pytest.mark.timeout(180)
def test_a_worker_goes_on_when_the_broker_ends_its_sessions(
    locked: LockedKafka, tokens: TokenServer, names: TopicNames, start: Callable[..., Process]
) -> None:
    """aiokafka does not log in again on an open connection, which the broker would close; so another one is opened."""
    kafka = locked.oauth(tokens, bootstrap_servers=locked.node.servers["REAUTH"])
    Topics(kafka, names, TOPICS).create(partitions=1)
    log = KafkaLog(locked.oauth(tokens), names)
    try:
        worker = start(kafka, **environment(kafka))
        worker.wait_until_ready(1)
        wanted = expected(published_for(3.5 * REAUTH_S, log))
        messages = log.wait_for(SUMS.name, enough(len(wanted)))
        assert len(messages) == len(wanted)
        assert sums(messages) == wanted
        assert worker.metric("tamiyo_rebalances_total") == 1
        assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
    finally:
        log.close()
    lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
    alarms = [line for line in lines if line["level"] != "info" and line["logger"] != "mode.timers"]
    assert alarms == []


def test_a_wrong_secret_ends_a_worker(
    locked: LockedKafka, tokens: TokenServer, names: TopicNames, start: Callable[..., Process]
) -> None:
    wrong = locked.oauth(tokens, oauth_client_secret="hunter2-MARKED")
    worker = start(wrong, **environment(wrong))
    assert worker.process.wait(60) == 1
    text = worker.log.read_text()
    assert "invalid_client" in text
    assert "TAMIYO_KAFKA_OAUTH_CLIENT_SECRET" in text
    assert "hunter2-MARKED" not in text


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_reports_a_wrong_secret(
    locked: LockedKafka, tokens: TokenServer, names: TopicNames, client: str
) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerRefused, match=r"status 401.*TAMIYO_KAFKA_OAUTH_CLIENT_SECRET") as refused:
        CLIENTS[client](locked.oauth(tokens, oauth_client_secret="wrong"), names)
    assert time.monotonic() - began < QUICK_S
    assert "wrong" not in str(refused.value)


def test_an_endpoint_that_is_away_is_waited_for(locked: LockedKafka, tokens: TokenServer) -> None:
    tokens.failure = (503, b"later")
    kafka = locked.oauth(tokens)
    error = explain(kafka, 0.2)
    assert type(error) is BrokerError
    assert "no token for localhost" in str(error)
    assert "status 503: later" in str(error)
    tokens.failure = None
    assert explain(kafka, 10) is None


def test_a_token_that_the_broker_refuses_is_reported(locked: LockedKafka, tokens: TokenServer) -> None:
    tokens.subject = ""  # Kafka requires one
    error = explain(locked.oauth(tokens), 60)
    assert isinstance(error, BrokerRefused)
    assert "the broker does not accept the token: see TAMIYO_KAFKA_OAUTH_SCOPE" in str(error)


def test_training_continues_without_a_token(
    locked: LockedKafka, tokens: TokenServer, names: TopicNames, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = locked.oauth(tokens, oauth_client_secret="wrong")
    receiver = KafkaReceiver("run", kafka, names, connect_timeout_s=0.2)
    publisher = KafkaPublisher("run", kafka, names, capacity=10)
    try:
        publisher.publish(CACHE_HIT_RATES, lambda: number("run", 1, 5))
        deadline = time.monotonic() + QUICK_S
        while "TAMIYO_KAFKA_OAUTH_CLIENT_SECRET" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "TAMIYO_KAFKA_OAUTH_CLIENT_SECRET" in caplog.text
    finally:
        publisher.close(0.1)
        receiver.close()
    assert not receiver.connected
