"""The Faust app of a stage."""

import asyncio
from pathlib import Path

import pytest

from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.runtime.faust.app import StageProducer, create_app
from tamiyo.streams.runtime.faust.clients import aiokafka_settings
from tamiyo.streams.settings import WorkerSettings


def test_the_settings_that_keep_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = create_app("x.tamiyo_health_collectors", KafkaSettings(bootstrap_servers="a:1, b:2"), WorkerSettings())
    conf = app.conf
    assert conf.id == "x.tamiyo_health_collectors"
    assert [str(url) for url in conf.broker] == ["kafka://a:1", "kafka://b:2"]
    assert (conf.stream_wait_empty, conf.topic_disable_leader, conf.topic_allow_declare) == (False, True, False)
    assert (conf.broker_session_timeout, conf.broker_heartbeat_interval, conf.broker_request_timeout) == (6, 1, 20)
    assert conf.consumer_auto_offset_reset == "earliest"
    assert conf.consumer_metadata_max_age_ms == conf.producer_metadata_max_age_ms <= 10_000
    assert (conf.web_enabled, conf.worker_redirect_stdouts) == (False, False)
    app._create_directories()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"heartbeat_interval_s": 3.0}, "HEARTBEAT_INTERVAL_S=3.0 contradicts .*at most a third"),
        ({"session_timeout_s": 30.0}, "SESSION_TIMEOUT_S=30.0 contradicts .*REQUEST_TIMEOUT_S=20.0"),
    ],
)
def test_timeouts_that_contradict_each_other(settings: dict[str, float], what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        WorkerSettings(**settings)


def test_security_reaches_faust_and_aiokafka() -> None:
    plain = KafkaSettings()
    assert aiokafka_settings(plain)["security_protocol"] == "PLAINTEXT"
    assert create_app("g", plain, WorkerSettings()).conf.broker_credentials is None
    sasl = KafkaSettings(
        security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-256", sasl_username="me", sasl_password="hunter2"
    )
    settings = aiokafka_settings(sasl)
    assert (settings["sasl_mechanism"], settings["sasl_plain_password"]) == ("SCRAM-SHA-256", "hunter2")
    assert settings["ssl_context"] is not None
    credentials = create_app("g", sasl, WorkerSettings()).conf.broker_credentials
    assert (credentials.protocol.value, credentials.username) == ("SASL_SSL", "me")
    assert "hunter2" not in repr(sasl)

    oauth = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_mechanism="OAUTHBEARER",
        oauth_token_provider="tests.support.token_server:user_token",
        oauth_extensions="pool=p",
    )
    credentials = create_app("g", oauth, WorkerSettings()).conf.broker_credentials
    assert (credentials.protocol.value, credentials.mechanism.value) == ("SASL_SSL", "OAUTHBEARER")
    assert credentials.oauth_cb.extensions() == {"pool": "p"}
    settings = aiokafka_settings(oauth)
    assert (settings["sasl_mechanism"], settings["sasl_oauth_token_provider"].extensions()) == (
        "OAUTHBEARER",
        {"pool": "p"},
    )

    with pytest.raises(ConfigurationError, match="SASL_USERNAME"):
        aiokafka_settings(KafkaSettings(security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN"))
    with pytest.raises(ConfigurationError, match="SSL_"):
        aiokafka_settings(KafkaSettings(security_protocol="SSL", ssl_ca_file="/nowhere"))


def test_records_are_sent_in_order_in_as_few_batches_as_their_size_allows(
    kafka: KafkaSettings, names: TopicNames
) -> None:
    topic = names.full("batches")
    small = [(b"run", f"{number}".encode(), [("h", b"1")]) for number in range(100)]
    large = [(b"run", bytes([number]) * 100_000, []) for number in range(6)]

    async def scene() -> None:
        app = create_app(names.full("sender"), kafka, WorkerSettings(max_message_bytes=400_000))
        producer = StageProducer(app.transport)
        await producer.start()
        try:
            sent = await producer.send_records(topic, 0, small)
            assert [count for _, count in sent] == [100]
            parts = await producer.send_records(topic, 0, large)
            assert sum(count for _, count in parts) == 6
            assert 1 < len(parts) < 6
            for delivery, _ in (*sent, *parts):
                await delivery
        finally:
            await producer.stop()

    asyncio.run(scene())
    with PartitionReader(kafka) as reader:
        found = list(reader.read(reader.ranges(topic)))
    assert [(each.key(), each.value()) for each in found] == [(key, value) for key, value, _ in (*small, *large)]
    assert found[0].headers() == [("h", b"1")]
