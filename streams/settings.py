"""Every setting of the Kafka side, read from the environment (`TAMIYO_<PART>_<FIELD>`) when an object is made.

Settings are made in `main` and passed down; nothing reads the environment at import. The broker's and the topic
prefix's are in `tamiyo.schemas.kafka`, since a host needs them too.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tamiyo.models.hyperparameters import LearningSettings
from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES


class StoreSettings(BaseSettings):
    """Where kernels and checkpoints are kept: an fsspec URL that every process of an installation can reach."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_STORE_", extra="ignore")

    url: str = Field("file://./tamiyo-store", description="fsspec URL; kernels/ and checkpoints/ go below it")

    @property
    def kernels(self) -> str:
        """Return the URL of the kernel store."""
        return f"{self.url.rstrip('/')}/kernels"

    @property
    def checkpoints(self) -> str:
        """Return the URL of the checkpoint store."""
        return f"{self.url.rstrip('/')}/checkpoints"


def kernel_store_url() -> str:
    """Return the installation's kernel store, as the environment has it."""
    return StoreSettings().kernels


def checkpoint_store_url() -> str:
    """Return the installation's checkpoint store, as the environment has it."""
    return StoreSettings().checkpoints


class CommandSettings(BaseSettings):
    """Commands that do their work and end."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_COMMAND_", extra="ignore")

    patience_s: float = Field(10.0, ge=0, description="How long a broker that does not answer is waited for")


class SupervisorSettings(BaseSettings):
    """How `tamiyo worker` and `tamiyo learner` are started again."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_SUPERVISOR_", extra="ignore")

    enabled: bool = Field(True, description="Run the work in a child process, and start it again when it fails")
    first_backoff_s: float = Field(1.0, ge=0, description="Wait before the first restart; doubled with each further")
    last_backoff_s: float = Field(
        30.0, ge=0, description="The longest wait; below what a liveness probe of the platform takes to lose patience"
    )
    reset_after_s: float = Field(120.0, ge=0, description="A process that ran for so long begins with the first wait")
    stop_timeout_s: float = Field(
        15.0, gt=0, description="A process told to stop is killed after this; above the worker's own shutdown timeout"
    )


class WatchdogSettings(BaseSettings):
    """When a process that does not get on is ended, for its supervisor to start it again."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_WATCHDOG_", extra="ignore")

    progress_s: float = Field(
        120.0, gt=0, description="Records wait, and nothing was read, delivered or acknowledged for this long"
    )
    loop_s: float = Field(30.0, ge=1, description="The event loop did not turn for this long; it turns twice a second")
    coordination_s: float = Field(
        10.0, gt=0, description="The group has refused the consumer again and again for about this long"
    )


class WorkerSettings(BaseSettings):
    """The process that hosts stages, and how it behaves in its consumer groups."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_WORKER_", extra="ignore")

    max_batch: int = Field(100, ge=1, description="Records fed at once; never waited for")
    tick_ms: int = Field(50, ge=1, description="How often a stage may do what only time can trigger, ms")
    view_timeout_s: float = Field(60.0, gt=0, description="How long compacted topics may take to be read whole")
    delivery_timeout_s: float = Field(30.0, gt=0, description="How long a delivery may take before it is a failure")
    startup_timeout_s: float = Field(60.0, gt=0, description="How long an unreachable broker is waited for")
    shutdown_timeout_s: float = Field(10.0, gt=0, description="How long a graceful stop may take")
    session_timeout_s: float = Field(6.0, gt=0, description="A silent worker's partitions move after this")
    heartbeat_interval_s: float = Field(1.0, gt=0, description="At most a third of the session timeout")
    request_timeout_s: float = Field(20.0, gt=0, description="Of one request to a broker; above the session timeout")
    commit_interval_s: float = Field(1.0, gt=0, description="How often acknowledged offsets are committed")
    max_poll_records: int = Field(500, ge=1, description="Records fetched at once: memory and the largest batch")
    max_fetch_bytes: int = Field(
        1_048_576, ge=1024, description="Fetched ahead of one partition, as compressed on the log: bounds memory"
    )
    fetch_wait_ms: int = Field(500, ge=1, description="How long a broker may hold a fetch that finds nothing, ms")
    linger_ms: int = Field(0, ge=0, description="How long the producer gathers a batch, ms")
    max_message_bytes: int = Field(
        MAX_MESSAGE_BYTES, ge=1024, description="Largest record published; a broker's limit may be lower"
    )
    http_host: str = Field("127.0.0.1", description="Where /metrics, /healthz and /readyz listen")
    http_port: int = Field(0, ge=0, le=65535, description="0: any free port, named in the log")
    state_dir: str = Field(
        "./tamiyo-state", description="Where records that ended the process are remembered; on a disk that outlives it"
    )
    poison_attempts: int = Field(
        3, ge=1, description="A record that has ended the process so often, fed alone, goes to the dead letters"
    )
    watchdog: WatchdogSettings = Field(default_factory=WatchdogSettings, description="Read from TAMIYO_WATCHDOG_*")
    replay: bool = Field(False, description="Heed the marks with which a replay ends its topics; never on live ones")


class IntakeSettings(BaseSettings):
    """Validation, scoring, filtering and shedding of telemetry."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_INTAKE_", extra="ignore")

    future_tolerance_s: float = Field(
        86_400.0, ge=0, description="A frame whose event time lies further beyond its arrival is refused"
    )
    max_step: int = Field(10**9, ge=1, description="A frame of a later step is refused: no training is that long")
    buffer_signals: int = Field(50_000, ge=1, description="Layer-signals waiting; beyond it the least telling are shed")
    batch_signals: int = Field(1_000, ge=0, description="A batch of no more layer-signals is never shed")
    deviation_frames: int = Field(64, ge=4, description="Frames of a run and layer that say what is ordinary")
    deviation_minimum: int = Field(8, ge=2, description="Frames below which nothing is called unusual")
    deviation_cells: int = Field(32_000_000, ge=1, description="Values remembered for it, 4 bytes each; oldest runs go")
    max_runs: int = Field(10_000, ge=1, description="Runs remembered, a partition; the longest silent are forgotten")
    max_remembered: int = Field(2_048, ge=1, description="Frames of a run remembered to drop repeats")
    idle_timeout_s: float = Field(
        1800, gt=0, description="A run silent for this long is forgotten; what it sends then is as a new run's"
    )
    minimum_priority: float = Field(0.0, ge=0, description="The filter drops layer-signals below; 0 keeps everything")
    ignored_layers: list[str] = Field([], description='The filter drops layers that match, e.g. ["encoder.*"]')


class WindowSettings(BaseSettings):
    """Event-time windows."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_WINDOW_", extra="ignore")

    clock: Literal["step", "time"] = Field("step", description="A run's clock: training steps, or event time in ms")
    width: int = Field(50, ge=1, description="Of a window, in the clock's unit")
    delay: int = Field(0, ge=0, description="How far the watermark stays behind the newest record")
    grace: int = Field(0, ge=0, description="How long past its end a window still takes records")
    idle_timeout_s: float = Field(
        300.0,
        ge=0,
        description="A run silent for this long has its windows closed, so that a killed one holds nothing up; above "
        "the longest pause between two sampled steps. 0: never, as in a replay",
    )
    max_open_signals: int = Field(
        1_000_000,
        ge=1,
        description="Layer-signals held, a partition, about 100 bytes each; beyond it the fullest "
        "run's oldest window closes early",
    )
    max_open_runs: int = Field(
        10_000, ge=1, description="Runs with open windows, a partition; the longest silent close"
    )


class GraphSettings(BaseSettings):
    """The join of windows and topologies."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_GRAPH_", extra="ignore")

    topology_timeout_s: float = Field(60.0, gt=0, description="How long windows wait for their run's topology")
    max_held: int = Field(2_000, ge=1, description="Windows that wait for a topology, a partition; the oldest go")
    history_stretch: int = Field(
        10_000, ge=1, description="Offsets a window stays part of its run's history: what a restart reads again"
    )


class DecisionSettings(BaseSettings):
    """Policy inference and safety."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_DECISION_", extra="ignore")

    checkpoint_url: str = Field(default_factory=checkpoint_store_url, description="fsspec URL of the checkpoints")
    policy: str = Field("tamiyo", description="Name of the policy served, the key of its announcements")
    min_signals_for_decision: int = Field(
        3, ge=0, description="Layer-signals a window must hold for an adaptation; by default, a frame of three layers"
    )
    decision_interval: int = Field(1, ge=1, description="Every n-th window of a run may bring an adaptation")
    max_decision_uncertainty: float = Field(0.8, ge=0, le=1, description="Above it an adaptation is not executed")
    cooldown_steps: int = Field(0, ge=0, description="Least steps between two adaptations, beside the run's own")
    in_flight_steps: int = Field(
        300, ge=0, description="Steps a decided adaptation is waited for before another may be decided"
    )
    max_adaptations: int = Field(20, ge=0, description="Adaptations of a run within rate_steps")
    rate_steps: int = Field(1000, ge=1, description="Stretch of training in which max_adaptations are counted, steps")
    protected_layers: tuple[str, ...] = Field((), description="Layers of no run that may be adapted")
    heed_outcomes: bool = Field(
        False,
        description="A refusal by the host ends the wait for it at once. Off, decisions follow from graphs alone, and "
        "a replay repeats them whatever the order in which topics are read",
    )
    max_waiting: int = Field(5000, ge=1, description="Graphs held until there is a policy; more go to the dead letters")
    idle_timeout_s: float = Field(1800, gt=0, description="A run silent for this long is forgotten")
    recorded: str | None = Field(
        None, description="Folder of a recording: decide under the policies and orders in force there, as a replay does"
    )
    recorded_version: int | None = Field(
        None, ge=0, description="With `recorded`: the one policy version that decides, instead of those that did"
    )


class KernelSettings(BaseSettings):
    """Compilation of kernels."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_KERNEL_", extra="ignore")

    store_url: str = Field(default_factory=kernel_store_url, description="fsspec URL of the kernels")
    topology_timeout_s: float = Field(30, ge=0, description="How long a decision waits for its run's topology")
    max_waiting: int = Field(1000, ge=1, description="Decisions that may wait for a topology; more are refused")


class RewardSettings(BaseSettings):
    """Spans, weights and attribution."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_REWARD_", extra="ignore")

    span_steps: tuple[int, int, int, int] = Field(
        (150, 600, 1500, 3000), description="Ends of the spans after an adaptation, in steps (runs clocked by step)"
    )
    span_minutes: tuple[float, float, float, float] = Field(
        (5, 30, 120, 240), description="The same in minutes (runs clocked by time)"
    )
    baseline_windows: int = Field(12, ge=3, le=1000, description="Windows that a baseline is fitted to")
    outcome_timeout_s: float = Field(
        60, gt=0, description="How long the host's answer is waited for after the run has ended"
    )
    outcome_windows: int = Field(40, ge=1, description="Windows after which a host that did not answer never will")
    idle_timeout_s: float = Field(1800, gt=0, description="A run silent for this long has ended; its spans close early")
    join_timeout_s: float = Field(
        3600, gt=0, description="How long a decision waits for its graph, an outcome or graph for its decision"
    )
    max_held: int = Field(5000, ge=10, description="Windows, graphs, decisions and outcomes each held for one run")

    @field_validator("span_steps", "span_minutes")
    @classmethod
    def _increasing(cls, ends: tuple[float, ...]) -> tuple[float, ...]:
        if ends[0] <= 0 or any(after <= before for before, after in pairwise(ends)):
            raise ValueError(f"span ends must increase from above 0, got {ends}")
        return ends


class LearnerSettings(BaseSettings, LearningSettings):
    """PPO updates and checkpoints; the numbers of the algorithm itself are those of LearningSettings."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_LEARNER_", extra="ignore")

    checkpoint_url: str = Field(default_factory=checkpoint_store_url, description="fsspec URL of the checkpoints")
    policy: str = Field(
        "tamiyo", pattern=r"^\w[\w.:/\-]*$", description="Name of the policy, the key it is announced by"
    )
    max_wait_s: float = Field(30.0, gt=0, description="Fresh experiences wait no longer for a whole batch")
    refill: int = Field(
        2_000, ge=0, description="Messages of each partition before the checkpoint's offset, read again into replay"
    )
    keep_checkpoints: int = Field(
        2_000,
        ge=2,
        description="Newest checkpoint files kept, 6 MB each; a decision can be recomputed while its policy is kept",
    )
    startup_timeout_s: float = Field(60.0, gt=0, description="How long an unreachable broker is waited for")
    delivery_timeout_s: float = Field(30.0, gt=0, description="How long a delivery may take before it is a failure")
    stall_timeout_s: float = Field(
        120.0,
        gt=0,
        description="A loop that does not come round for this long is unhealthy and ends the process, and so does lag "
        "without progress; an update takes seconds",
    )
    http_host: str = Field(
        default_factory=lambda: WorkerSettings().http_host, description="As the workers', unless set"
    )
    http_port: int = Field(
        default_factory=lambda: WorkerSettings().http_port, ge=0, le=65535, description="As the workers', unless set"
    )
