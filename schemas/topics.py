"""The topic catalogue: every topic with its record, its writer and readers, and how long it is kept.

Example:
    >>> DECISIONS.name, DECISIONS.record.__name__, DECISIONS.dead_letters
    ('tamiyo.adaptation.decisions', 'AdaptationDecision', 'tamiyo.adaptation.decisions.dlq')
    >>> [topic.name for topic in CATALOGUE if topic.writer == "learner"]
    ['tamiyo.policy.checkpoints']
"""

from dataclasses import dataclass
from typing import Literal

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, CompiledKernel, ControlCommand
from tamiyo.schemas.analysis import HealthSignals, HealthWindow, ModelGraph
from tamiyo.schemas.learning import Experience, PolicyCheckpoint, RewardAnalysis
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import (
    CacheHitRates,
    ErrorRecoveryEvent,
    KernelPerformance,
    LayerHealth,
    ModelPerformance,
    ModelTopology,
)

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic and its contract."""

    name: str
    """Without the installation's prefix."""
    record: type[Record]
    """Type of its values."""
    writer: str
    """The program that produces to it."""
    readers: tuple[str, ...]
    """The programs that consume it."""
    cleanup: Literal["delete", "compact"] = "delete"
    """Kafka's cleanup.policy."""
    retention_ms: int = 7 * DAY_MS
    """Kafka's retention.ms; it has no effect on a compacted topic."""
    description: str = ""
    periodic: bool = False
    """Whether the host publishes a frame for every sampled step, so that watermarks wait for it."""

    @property
    def dead_letters(self) -> str:
        """Name of the topic for unusable messages, which keep their bytes."""
        return f"{self.name}.dlq"

    @property
    def late(self) -> str:
        """Name of the topic for messages that arrived after their window was final."""
        return f"{self.name}.late"


KERNEL_PERFORMANCE = Topic(
    "telemetry.execution.kernel_performance",
    KernelPerformance,
    "host",
    ("intake",),
    description="Latency, errors and activations of every layer.",
    periodic=True,
)
CACHE_HIT_RATES = Topic(
    "telemetry.cache.hit_rates",
    CacheHitRates,
    "host",
    ("intake",),
    description="Hits, misses and size of the host's kernel cache.",
)
ERROR_RECOVERY = Topic(
    "telemetry.error_recovery.events",
    ErrorRecoveryEvent,
    "host",
    ("intake",),
    description="Errors of kernels, and the host's recovery.",
)
LAYER_HEALTH = Topic(
    "telemetry.layer.health_signals",
    LayerHealth,
    "host",
    ("intake",),
    description="Gradients, growth scores and seeds of every layer.",
    periodic=True,
)
MODEL_PERFORMANCE = Topic(
    "telemetry.model.performance_metrics",
    ModelPerformance,
    "host",
    ("intake",),
    description="Losses, accuracy, throughput, size.",
    periodic=True,
)
TOPOLOGY = Topic(
    "tamiyo.model.topology",
    ModelTopology,
    "host",
    ("graphs", "kernels"),
    cleanup="compact",
    description="The network at the start of a run.",
)
SIGNALS = Topic(
    "tamiyo.health.signals",
    HealthSignals,
    "intake",
    ("windows",),
    description="Validated, scored and filtered telemetry.",
)
WINDOWS = Topic(
    "tamiyo.health.windows",
    HealthWindow,
    "windows",
    ("graphs", "rewards"),
    description="Final event-time windows of a run.",
)
GRAPHS = Topic(
    "tamiyo.model.graphs",
    ModelGraph,
    "graphs",
    ("decisions", "rewards"),
    description="The network as a graph: the input of the policy.",
)
DECISIONS = Topic(
    "tamiyo.adaptation.decisions",
    AdaptationDecision,
    "decisions",
    ("host", "kernels", "rewards", "anyone"),
    retention_ms=90 * DAY_MS,
    description="One decision per graph, no_op included.",
)
KERNELS = Topic(
    "tamiyo.kernels",
    CompiledKernel,
    "kernels",
    ("host",),
    cleanup="compact",
    description="Kernels compiled for decisions, or why one was refused.",
)
OUTCOMES = Topic(
    "tamiyo.adaptation.outcomes",
    AdaptationOutcome,
    "host",
    ("rewards", "decisions"),
    retention_ms=90 * DAY_MS,
    description="How the host handled a decision.",
)
REWARDS = Topic(
    "tamiyo.rewards",
    RewardAnalysis,
    "rewards",
    ("anyone",),
    retention_ms=90 * DAY_MS,
    description="Reward of a decision, per time span.",
)
EXPERIENCE = Topic(
    "tamiyo.experience",
    Experience,
    "rewards",
    ("learner",),
    retention_ms=90 * DAY_MS,
    description="Graph, action, propensities, reward.",
)
CHECKPOINTS = Topic(
    "tamiyo.policy.checkpoints",
    PolicyCheckpoint,
    "learner",
    ("decisions", "anyone"),
    cleanup="compact",
    description="Released policies, and operators' orders about them.",
)
CONTROL = Topic(
    "tamiyo.control",
    ControlCommand,
    "an operator",
    ("decisions", "host"),
    cleanup="compact",
    description="Standing orders: pause, dry run, protected layers.",
)

CATALOGUE: tuple[Topic, ...] = (
    KERNEL_PERFORMANCE,
    CACHE_HIT_RATES,
    ERROR_RECOVERY,
    LAYER_HEALTH,
    MODEL_PERFORMANCE,
    TOPOLOGY,
    SIGNALS,
    WINDOWS,
    GRAPHS,
    DECISIONS,
    KERNELS,
    OUTCOMES,
    REWARDS,
    EXPERIENCE,
    CHECKPOINTS,
    CONTROL,
)
TELEMETRY: tuple[Topic, ...] = CATALOGUE[:5]
PERIODIC: tuple[Topic, ...] = tuple(topic for topic in TELEMETRY if topic.periodic)
"""The telemetry topics that a watermark waits for."""
PERIODIC_NAMES: frozenset[str] = frozenset(topic.name for topic in PERIODIC)
BY_NAME: dict[str, Topic] = {topic.name: topic for topic in CATALOGUE}
"""The catalogue by name, without the installation's prefix."""
