"""The topic catalogue: every topic, its record, who writes and reads it, and how long it is kept."""

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
    """One topic: its name without the installation's prefix, and its contract."""

    name: str
    record: type[Record]
    writer: str
    readers: tuple[str, ...]
    cleanup: Literal["delete", "compact"] = "delete"
    retention_ms: int = 7 * DAY_MS
    description: str = ""
    periodic: bool = False
    """Whether the host sends a frame for every sampled step, so that watermarks wait for it."""

    @property
    def dead_letters(self) -> str:
        """Where messages that cannot be used go, as they came."""
        return f"{self.name}.dlq"

    @property
    def late(self) -> str:
        """Where messages go that came after their window was final."""
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
    "telemetry.cache.hit_rates", CacheHitRates, "host", ("intake",), description="The host's kernel cache."
)
ERROR_RECOVERY = Topic(
    "telemetry.error_recovery.events",
    ErrorRecoveryEvent,
    "host",
    ("intake",),
    description="Kernels that failed, and what was done.",
)
LAYER_HEALTH = Topic(
    "telemetry.layer.health_signals",
    LayerHealth,
    "host",
    ("intake",),
    description="How each layer learns; growth scores; seeds.",
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
    description="The network as a run began.",
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
    description="The network as the policy sees it.",
)
DECISIONS = Topic(
    "tamiyo.adaptation.decisions",
    AdaptationDecision,
    "decisions",
    ("host", "kernels", "rewards", "anyone"),
    retention_ms=90 * DAY_MS,
    description="One decision a graph, no_op included.",
)
KERNELS = Topic(
    "tamiyo.kernels",
    CompiledKernel,
    "kernels",
    ("host",),
    cleanup="compact",
    description="Kernels compiled for decisions, or why not.",
)
OUTCOMES = Topic(
    "tamiyo.adaptation.outcomes",
    AdaptationOutcome,
    "host",
    ("rewards", "decisions"),
    retention_ms=90 * DAY_MS,
    description="What the host did with a decision.",
)
REWARDS = Topic(
    "tamiyo.rewards",
    RewardAnalysis,
    "rewards",
    ("anyone",),
    retention_ms=90 * DAY_MS,
    description="What a decision was worth, span by span.",
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
    description="Policies that may act.",
)
CONTROL = Topic(
    "tamiyo.control",
    ControlCommand,
    "an operator",
    ("decisions", "host"),
    cleanup="compact",
    description="Pause, dry-run, protected layers.",
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
"""The telemetry that a watermark waits for."""
PERIODIC_NAMES: frozenset[str] = frozenset(topic.name for topic in PERIODIC)
BY_NAME: dict[str, Topic] = {topic.name: topic for topic in CATALOGUE}
