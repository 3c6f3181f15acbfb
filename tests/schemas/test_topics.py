"""The catalogue is whole and consistent."""

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, PERIODIC, TELEMETRY

STAGES = {"host", "intake", "windows", "graphs", "decisions", "kernels", "rewards", "learner", "an operator", "anyone"}


def test_names_are_unique_and_writers_known() -> None:
    assert len(BY_NAME) == len(CATALOGUE) == 16
    assert {topic.writer for topic in CATALOGUE} | {r for topic in CATALOGUE for r in topic.readers} == STAGES
    assert [topic.writer for topic in TELEMETRY] == ["host"] * 5


def test_watermarks_wait_for_the_telemetry_of_every_step() -> None:
    assert [topic.record.__name__ for topic in PERIODIC] == ["KernelPerformance", "LayerHealth", "ModelPerformance"]


def test_state_topics_are_compacted_and_events_are_not() -> None:
    compacted = {topic.name for topic in CATALOGUE if topic.cleanup == "compact"}
    assert compacted == {"tamiyo.model.topology", "tamiyo.kernels", "tamiyo.policy.checkpoints", "tamiyo.control"}


def test_the_prefix_comes_and_goes() -> None:
    names = TopicNames(prefix="replay-1.")
    assert names.full("tamiyo.kernels") == "replay-1.tamiyo.kernels"
    assert names.bare("replay-1.tamiyo.kernels") == "tamiyo.kernels"


def test_secrets_do_not_show() -> None:
    settings = KafkaSettings(
        security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN", sasl_username="me", sasl_password="hunter2"
    )
    assert "hunter2" not in repr(settings)
    assert settings.librdkafka()["sasl.password"] == "hunter2"
