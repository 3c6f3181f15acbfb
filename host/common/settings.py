"""Every setting of the training side, read from the environment (`TAMIYO_HOST_<FIELD>`) when an object is made."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class _Store(BaseSettings):
    # The installation's store is named once, for stages and hosts alike.
    model_config = SettingsConfigDict(env_prefix="TAMIYO_STORE_", extra="ignore")

    url: str = "file://./tamiyo-store"


def _kernel_store() -> str:
    return f"{_Store().url.rstrip('/')}/kernels"


class HostSettings(BaseSettings):
    """What `attach` measures, how much that may cost, and what the host lets be done to its network."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_HOST_", extra="ignore")

    sample_interval: int = Field(25, ge=1, description="Steps between two telemetry frames; two or more in a window")
    growth_interval: int = Field(100, ge=1, description="Steps between two growth scores")
    contribution_interval: int = Field(50, ge=1, description="Steps between two counterfactuals of the kernels")
    cache_interval: int = Field(100, ge=1, description="Steps between two frames about the kernel cache")
    overhead_budget: float = Field(
        0.06, gt=0, description="Time in the SDK / time of training above which probes become rarer"
    )

    ramp_steps: int = Field(50, ge=0, description="Steps over which a kernel comes in or goes out")
    parameter_budget: int | None = Field(None, ge=0, description="Parameters that kernels may add; unset: by ratio")
    parameter_budget_ratio: float = Field(8.0, ge=0, description="The same as a multiple of the network's own")
    cooldown_steps: int = Field(100, ge=0, description="Steps the host wants between two adaptations")
    max_kernels: int | None = Field(None, ge=0, description="Kernels in the network at once; unset: one a seed")
    protected_layers: list[str] = Field([], description="Layers that must never be adapted (JSON list)")
    learning_rate_factor: float = Field(0.5, gt=0, lt=1, description="What optimize_parameters does to a layer's rate")
    learning_rate_floor: float = Field(1 / 16, gt=0, le=1, description="Scale below which no layer is slowed")

    store_url: str = Field(default_factory=_kernel_store, description="fsspec URL of the kernels")
    cache_capacity: int = Field(64, ge=1, description="Kernels held in memory")

    queue_capacity: int = Field(10_000, ge=1, description="Records waiting to be published; more are dropped")
    connect_timeout_s: float = Field(2.0, ge=0, description="How long attach waits for a broker before going on alone")
    compile_timeout_s: float = Field(10.0, gt=0, description="How long a decision waits for its kernel")
    drain_s: float = Field(5.0, ge=0, description="How long close waits for decisions still under way")
    flush_timeout_s: float = Field(5.0, ge=0, description="How long close waits for records to be delivered")
