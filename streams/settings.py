"""Settings of the pipeline, read from the environment (`TAMIYO_<PART>_<FIELD>`) and a file when an object is created.

Commands create them and pass them down; nothing reads the environment at import. Those of the broker and of the topic
prefix are in `tamiyo.schemas.kafka`, since a host needs them too; `tamiyo.schemas.settings` has the sources.
"""

from itertools import pairwise
from typing import Literal, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES, MAX_READ_BYTES
from tamiyo.schemas.settings import LONGEST_S, Settings, origin, require, variable

POLICY_NAME = r"^\w[\w.:/\-]*$"


class StoreSettings(Settings):
    """The store of kernels and checkpoints, which every process of an installation can reach."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_STORE_")

    url: str = Field(
        "file://./tamiyo-store",
        min_length=1,
        description="fsspec URL of the store; kernels/ and checkpoints/ are created in it",
    )

    @property
    def kernels(self) -> str:
        """Return the URL of the kernel store."""
        return f"{self.url.rstrip('/')}/kernels"

    @property
    def checkpoints(self) -> str:
        """Return the URL of the checkpoint store."""
        return f"{self.url.rstrip('/')}/checkpoints"


def store_setting(cls: type[Settings], field: str) -> str:
    """Return the variable that names a store: the field's own where it is set, else the installation's."""
    return "TAMIYO_STORE_URL" if origin(cls, field).source == "default" else variable(cls, field)


def kernel_store_url() -> str:
    """Return the URL of the installation's kernel store, from the environment."""
    return StoreSettings().kernels


def checkpoint_store_url() -> str:
    """Return the URL of the installation's checkpoint store, from the environment."""
    return StoreSettings().checkpoints


class LogSettings(Settings):
    """Logs of `tamiyo worker` and `tamiyo learner`, on standard error."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_LOG_")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="Lowest level that is logged"
    )
    format: Literal["auto", "json", "text"] = Field(
        "auto", description="JSON lines, or coloured text; auto: text on a terminal"
    )

    @field_validator("level", "format", mode="before")
    @classmethod
    def _any_case(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        return value.upper() if info.field_name == "level" else value.lower()


class CommandSettings(Settings):
    """Commands that finish by themselves."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_COMMAND_")

    patience_s: float = Field(10.0, ge=0, description="Seconds to wait for an unresponsive broker")


class BuildSettings(Settings):
    """What an image was built from; the image sets it."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_BUILD_")

    commit: str = Field("", description="Commit that the program was built from, shown by tamiyo_build_info")


class SupervisorSettings(Settings):
    """Restarts of `tamiyo worker` and `tamiyo learner`."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_SUPERVISOR_")

    enabled: bool = Field(True, description="Run the work in a child process, and restart it when it fails")
    first_backoff_s: float = Field(
        1.0, ge=0, description="Seconds to wait before the first restart; doubled for each further one"
    )
    last_backoff_s: float = Field(
        30.0,
        ge=0,
        description="Longest wait before a restart, seconds; shorter than the platform's liveness probe tolerates",
    )
    reset_after_s: float = Field(
        120.0, ge=0, description="Seconds that a process must run for the wait to start from the first again"
    )
    stop_timeout_s: float = Field(
        15.0,
        gt=0,
        description="Seconds after which a stopping process is killed; at least 2 s above a worker's shutdown timeout",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require(self, "first_backoff_s", "<=", "last_backoff_s")
        return self


class WatchdogSettings(Settings):
    """When a stalled process is ended, for its supervisor to restart it."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_WATCHDOG_")

    progress_s: float = Field(
        120.0, gt=0, description="Seconds without a record read, delivered or committed, while records wait"
    )
    loop_s: float = Field(
        30.0, ge=1, description="Seconds without a turn of the event loop, which turns twice a second"
    )
    coordination_s: float = Field(
        10.0, gt=0, description="Seconds for which the consumer group has repeatedly refused the consumer"
    )


class WorkerSettings(Settings):
    """A worker process and its consumer groups."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_WORKER_")

    max_batch: int = Field(100, ge=1, description="Most records in one call of a stage; a call never waits to fill it")
    tick_ms: int = Field(50, ge=1, description="Interval of a stage's time-triggered work, ms")
    view_timeout_s: float = Field(60.0, gt=0, description="Seconds to wait for compacted topics to be read whole")
    delivery_timeout_s: float = Field(
        30.0, gt=0, le=LONGEST_S, description="Seconds after which an undelivered message is a failure"
    )
    startup_timeout_s: float = Field(
        60.0, gt=0, le=LONGEST_S, description="Seconds to wait for an unresponsive broker at the start"
    )
    shutdown_timeout_s: float = Field(
        10.0, gt=0, description="Seconds that a graceful stop may take; whoever stops a worker must wait 2 s longer"
    )
    session_timeout_s: float = Field(
        6.0,
        gt=0,
        le=1800,
        description="Seconds without a heartbeat after which a worker's partitions are reassigned; brokers allow 6 to "
        "1800 unless they are configured otherwise",
    )
    heartbeat_interval_s: float = Field(
        1.0, gt=0, description="Seconds between heartbeats; at most a third of the session timeout"
    )
    request_timeout_s: float = Field(
        20.0,
        gt=0,
        le=LONGEST_S,
        description="Seconds that a request to a broker may take; at least the session timeout, above fetch_wait_ms",
    )
    commit_interval_s: float = Field(1.0, gt=0, description="Seconds between commits of offsets")
    max_poll_records: int = Field(500, ge=1, description="Most records fetched at once; bounds memory")
    max_fetch_bytes: int = Field(
        1_048_576, ge=1024, description="Bytes fetched ahead from one partition, compressed; bounds memory"
    )
    fetch_wait_ms: int = Field(500, ge=1, description="Time that a broker may hold a fetch without records, ms")
    linger_ms: int = Field(0, ge=0, description="Time that the producer collects a batch, ms")
    max_message_bytes: int = Field(
        MAX_MESSAGE_BYTES,
        ge=1024,
        le=MAX_READ_BYTES,
        description="Largest published record, bytes; topics must accept 1 MiB more (`tamiyo topics check`)",
    )
    http_host: str = Field("127.0.0.1", min_length=1, description="Address of /metrics, /healthz and /readyz")
    http_port: int = Field(
        0, ge=0, le=65535, description="Port of /metrics, /healthz and /readyz; 0: any free port, named in the log"
    )
    state_dir: str = Field(
        "./tamiyo-state",
        min_length=1,
        description="Folder for the records that crashed a stage; on a disk that outlives the process",
    )
    poison_attempts: int = Field(
        3, ge=1, description="Dead-letter a record after it has crashed the stage this many times when processed alone"
    )
    watchdog: WatchdogSettings = Field(default_factory=WatchdogSettings, description="Read from TAMIYO_WATCHDOG_*")
    replay: bool = Field(False, description="Act on end markers of a replay; never set for live topics")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require(self, "heartbeat_interval_s", "<=", "session_timeout_s", share=1 / 3)
        require(self, "session_timeout_s", "<=", "request_timeout_s")
        require(self, "fetch_wait_ms", "<", "request_timeout_s", share=1000)
        return self


class IntakeSettings(Settings):
    """Validation, scoring, filtering and shedding of telemetry."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_INTAKE_")

    future_tolerance_s: float = Field(
        86_400.0,
        ge=0,
        description="Seconds by which a frame's event time may exceed its arrival time; beyond it is rejected",
    )
    max_step: int = Field(10**9, ge=1, description="Highest training step; frames of later steps are rejected")
    buffer_signals: int = Field(
        50_000, ge=1, description="Waiting layer signals above which those of lowest priority are shed"
    )
    batch_signals: int = Field(1_000, ge=0, description="Layer signals up to which a batch is never shed")
    deviation_frames: int = Field(
        64, ge=4, le=10_000, description="Frames of a run and layer from which usual values are estimated"
    )
    deviation_minimum: int = Field(8, ge=2, description="Frames required before a value counts as unusual")
    deviation_cells: int = Field(
        32_000_000,
        ge=1,
        description="Most values kept for these estimates, 4 bytes each; the oldest runs are dropped first",
    )
    max_runs: int = Field(
        10_000, ge=1, description="Most runs kept for each partition; those idle for longest are dropped first"
    )
    max_remembered: int = Field(2_048, ge=1, description="Frame ids kept for each run to drop repeats")
    idle_timeout_s: float = Field(
        1800, gt=0, description="Seconds after which an idle run is forgotten; its later frames count as a new run's"
    )
    minimum_priority: float = Field(
        0.0, ge=0, description="Priority below which layer signals are dropped; 0 keeps all"
    )
    ignored_layers: list[str] = Field(
        [], description='Patterns of layers to drop, e.g. ["encoder.*"]', examples=[["encoder.*"]]
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require(self, "deviation_minimum", "<=", "deviation_frames")
        return self


class WindowSettings(Settings):
    """Event-time windows."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_WINDOW_")

    clock: Literal["step", "time"] = Field(
        "step", description="Clock of the windows: training steps, or event time in ms"
    )
    width: int = Field(50, ge=1, description="Width of a window, in the clock's unit")
    delay: int = Field(0, ge=0, description="Distance of the watermark behind the newest record, in the clock's unit")
    grace: int = Field(
        0, ge=0, description="Distance past its end for which a window accepts records, in the clock's unit"
    )
    idle_timeout_s: float = Field(
        300.0,
        ge=0,
        description="Seconds after which an idle run's windows are closed, so that a killed run blocks nothing; above "
        "the longest pause between two sampled steps. 0: never, as in a replay",
    )
    max_open_signals: int = Field(
        1_000_000,
        ge=1,
        description="Most layer signals held for each partition, about 100 bytes each; above it the oldest window of "
        "the run with the most closes early",
    )
    max_open_runs: int = Field(
        10_000,
        ge=1,
        description="Most runs with open windows for each partition; those idle for longest are closed first",
    )


class GraphSettings(Settings):
    """The join of windows and topologies."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_GRAPH_")

    topology_timeout_s: float = Field(60.0, gt=0, description="Seconds for which windows wait for their run's topology")
    max_held: int = Field(
        2_000, ge=1, description="Most windows of a partition that wait for a topology; the oldest are rejected first"
    )
    history_stretch: int = Field(
        10_000, ge=1, description="Offsets for which a window stays in its run's history; a restart reads as many again"
    )


class DecisionSettings(Settings):
    """Policy inference and safety limits."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_DECISION_")

    checkpoint_url: str = Field(
        default_factory=checkpoint_store_url,
        min_length=1,
        description="fsspec URL of the checkpoint store",
        examples=["file:///var/lib/tamiyo/checkpoints"],
    )
    policy: str = Field(
        "tamiyo",
        pattern=POLICY_NAME,
        description="Name of the policy that makes decisions, the key of its announcements",
    )
    canary_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of runs, by a hash of their id, that use a new policy before its live test has ended",
    )
    min_signals_for_decision: int = Field(
        3, ge=0, description="Layer signals that a window must hold for an adaptation; 3 is a frame of three layers"
    )
    decision_interval: int = Field(1, ge=1, description="Windows of a run from one possible adaptation to the next")
    max_decision_uncertainty: float = Field(
        0.8, ge=0, le=1, description="Uncertainty above which an adaptation is vetoed"
    )
    cooldown_steps: int = Field(
        0, ge=0, description="Minimum steps between two adaptations, besides the run's own minimum"
    )
    in_flight_steps: int = Field(
        300, ge=0, description="Steps to wait for the outcome of an adaptation before another one is decided"
    )
    max_adaptations: int = Field(20, ge=0, description="Most adaptations of a run within rate_steps")
    rate_steps: int = Field(1000, ge=1, description="Steps over which max_adaptations is counted")
    protected_layers: tuple[str, ...] = Field(
        (), description="Layers that must not be adapted, in all runs", examples=[["head"]]
    )
    heed_outcomes: bool = Field(
        False,
        description="Whether a refusal by the host ends the wait for an adaptation at once. If not, decisions depend "
        "on graphs alone, and a replay repeats them in whatever order topics are read",
    )
    max_waiting: int = Field(
        5000, ge=1, description="Most graphs held until there is a policy; further ones are dead-lettered"
    )
    idle_timeout_s: float = Field(1800, gt=0, description="Seconds after which an idle run is forgotten")
    recorded: str | None = Field(
        None,
        min_length=1,
        description="Folder of a recording whose policies and orders are used, as in a replay",
        examples=["./recording"],
    )
    recorded_version: int | None = Field(
        None, ge=0, description="Policy version that makes all decisions, instead of the recorded ones", examples=[12]
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.recorded_version is not None and self.recorded is None:
            raise ValueError(
                f"TAMIYO_DECISION_RECORDED_VERSION={self.recorded_version} needs TAMIYO_DECISION_RECORDED, the folder "
                "of a recording"
            )
        return self


class KernelSettings(Settings):
    """Compilation of kernels."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_KERNEL_")

    store_url: str = Field(
        default_factory=kernel_store_url,
        min_length=1,
        description="fsspec URL of the kernel store",
        examples=["file:///var/lib/tamiyo/kernels"],
    )
    topology_timeout_s: float = Field(30, ge=0, description="Seconds for which a decision waits for its run's topology")
    max_waiting: int = Field(
        1000, ge=1, description="Most decisions that wait for a topology; further ones are refused"
    )


class RewardSettings(Settings):
    """Spans, weights and attribution."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_REWARD_")

    span_steps: tuple[int, int, int, int] = Field(
        (150, 600, 1500, 3000), description="Ends of the spans after an adaptation, in steps, for windows by step"
    )
    span_minutes: tuple[float, float, float, float] = Field(
        (5, 30, 120, 240), description="Ends of the spans after an adaptation, in minutes, for windows by time"
    )
    baseline_windows: int = Field(12, ge=3, le=1000, description="Windows to which the baseline trend is fitted")
    outcome_timeout_s: float = Field(
        60, gt=0, description="Seconds to wait for the host's outcome after the run has ended"
    )
    outcome_windows: int = Field(40, ge=1, description="Windows to wait for the host's outcome of a decision")
    idle_timeout_s: float = Field(
        1800, gt=0, description="Seconds after which an idle run has ended; its spans close early"
    )
    join_timeout_s: float = Field(
        3600,
        gt=0,
        description="Seconds for which a decision waits for its graph, and an outcome or a graph for its decision",
    )
    estimator: str = Field(
        "builtin",
        min_length=1,
        description="What estimates an adaptation's gain: builtin (fitted to twins, shipped with the package), rule "
        "(projection and counterfactual, without a model), or the fsspec URL of a fitted estimator's file",
    )
    max_held: int = Field(
        5000, ge=10, description="Most windows, graphs, decisions and outcomes, each, held for one run"
    )

    @field_validator("span_steps", "span_minutes")
    @classmethod
    def _increasing(cls, ends: tuple[float, ...]) -> tuple[float, ...]:
        if ends[0] <= 0 or any(after <= before for before, after in pairwise(ends)):
            raise ValueError(f"span ends must increase from above 0, got {ends}")
        return ends


class ReleaseSettings(BaseModel):
    """The gates that a policy must pass before its release, and the test of its live rewards after it."""

    gates: tuple[Literal["divergence", "golden", "off_policy"], ...] = Field(
        ("divergence", "golden", "off_policy"),
        description="Gates of a release, checked in this order after finite, which always is",
    )
    gate_pinned: int = Field(16, ge=1, le=1000, description="Recorded states that candidates are compared on")
    gate_max_kl: float = Field(
        0.2, gt=0, description="Largest mean KL(incumbent || candidate) on the pinned states, nats"
    )
    gate_entropy_share: float = Field(
        0.5, ge=0, le=1, description="Least mean entropy on the pinned states, relative to the incumbent's"
    )
    gate_golden_mass: float = Field(
        0.2, gt=0, le=1, description="Most probability of an obviously wrong action, unless the incumbent's is larger"
    )
    gate_sample: int = Field(64, ge=1, le=10_000, description="Decisions of the off-policy estimate")
    gate_window: int = Field(1024, ge=1, description="Latest rewarded decisions that the sample is drawn from")
    gate_margin: float = Field(
        0.05,
        ge=0,
        description="Return a decision that a candidate may lose to the incumbent, by the lower bound of the estimate",
    )
    gate_min_runs: int = Field(5, ge=2, description="Runs in the sample below which there is no evidence")
    gate_min_support: float = Field(16.0, ge=1, description="Effective sample size below which there is no evidence")
    gate_strict: bool = Field(False, description="Whether a candidate without evidence fails")
    canary_alpha: float = Field(
        0.01, ge=0, lt=1, description="Probability of rolling back a policy that is no worse; 0: no live test"
    )
    canary_min_runs: int = Field(
        3, ge=1, description="Runs with new versions below which nothing is rolled back: one run can go wrong by itself"
    )
    canary_decisions: int = Field(
        512, ge=16, description="Rewarded decisions after which a live test ends, and the next begins"
    )


class LearnerSettings(Settings, LearningSettings, ReleaseSettings):
    """PPO updates, release gates and checkpoints; LearningSettings has the hyper-parameters of the algorithm."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_LEARNER_")

    checkpoint_url: str = Field(
        default_factory=checkpoint_store_url,
        min_length=1,
        description="fsspec URL of the checkpoint store",
        examples=["file:///var/lib/tamiyo/checkpoints"],
    )
    policy: str = Field("tamiyo", pattern=POLICY_NAME, description="Name of the policy, the key of its announcements")
    initial_policy: str = Field(
        "builtin",
        min_length=1,
        description='What a learner without a checkpoint starts from: "builtin", the policy trained in the laboratory; '
        '"heuristic", an untrained policy, which decides as the heuristic does; or the fsspec URL of a checkpoint',
    )
    max_wait_s: float = Field(30.0, gt=0, description="Seconds for which fresh experiences wait for a full batch")
    refill: int = Field(
        2_000,
        ge=0,
        description="Messages of each partition, before the checkpoint's offset, that refill replay at a start",
    )
    keep_checkpoints: int = Field(
        2_000,
        ge=2,
        description="Checkpoint files kept, 6 MB each; a decision can be recomputed while its policy is kept",
    )
    startup_timeout_s: float = Field(
        60.0, gt=0, le=LONGEST_S, description="Seconds to wait for an unresponsive broker at the start"
    )
    delivery_timeout_s: float = Field(
        30.0, gt=0, le=LONGEST_S, description="Seconds after which an undelivered message is a failure"
    )
    stall_timeout_s: float = Field(
        120.0,
        gt=0,
        description="Seconds without a turn of the loop, or with lag and without progress, after which the process "
        "ends; an update takes seconds",
    )
    http_host: str = Field(
        default_factory=lambda: WorkerSettings().http_host,
        min_length=1,
        description="Address of /metrics, /healthz and /readyz; by default the workers'",
        examples=["127.0.0.1"],
    )
    http_port: int = Field(
        default_factory=lambda: WorkerSettings().http_port,
        ge=0,
        le=65535,
        description="Port of /metrics, /healthz and /readyz; by default the workers'",
        examples=[9101],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require(self, "minimum_batch", "<=", "batch_size")
        require(self, "minimum_learning_rate", "<=", "learning_rate")
        require(self, "target_kl", "<=", "max_kl")
        require(self, "gate_sample", "<=", "gate_window")
        require(self, "gate_min_runs", "<=", "gate_sample")
        return self
