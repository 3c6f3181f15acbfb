"""A replay's plan: which stages run, under which prefix, how fast, and with which policy."""

from dataclasses import dataclass

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.replay.flow import ENVIRONMENT, Flow
from tamiyo.streams.settings import StoreSettings


@dataclass(frozen=True)
class Plan:
    """How to replay a recording."""

    flow: Flow
    names: TopicNames
    """Topic names under the replay's prefix."""
    speed: float | None = None
    """Multiple of the recorded speed; None: as fast as possible."""
    workers: int = 1
    """Processes that share the stages; 0: they are started elsewhere."""
    policy_version: int | None = None
    """Policy that makes all decisions; None: the recorded one of each graph."""
    replication: int = 1

    def checkpoint_url(self, recording: Recording) -> str:
        """Return the store of the policies: the recording's, or else the installation's, which is only read."""
        version = self.policy_version
        elsewhere = version is not None and version not in recording.manifest.policy_versions
        return StoreSettings().checkpoints if recording.checkpoints is None or elsewhere else recording.checkpoints

    def environment(self, recording: Recording, kafka: KafkaSettings) -> dict[str, str]:
        """Return the environment variables of a worker for this replay."""
        environment = {
            **ENVIRONMENT,
            "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "TAMIYO_TOPIC_PREFIX": self.names.prefix,
        }
        if "decisions" in self.flow.stages:
            environment["TAMIYO_DECISION_RECORDED"] = str(recording.folder.resolve())
            environment["TAMIYO_DECISION_CHECKPOINT_URL"] = self.checkpoint_url(recording)
            if self.policy_version is not None:
                environment["TAMIYO_DECISION_RECORDED_VERSION"] = str(self.policy_version)
        return environment
