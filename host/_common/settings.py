"""The settings of the training side, read from the environment (`TAMIYO_HOST_<FIELD>`) when an object is made."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tamiyo.schemas.settings import LONGEST_S, Settings


class _Store(Settings):
    # One environment variable names the installation's store, for stages and hosts alike.
    model_config = SettingsConfigDict(env_prefix="TAMIYO_STORE_")

    url: str = Field("file://./tamiyo-store", min_length=1, description="fsspec URL of the store")


def _kernel_store() -> str:
    return f"{_Store().url.rstrip('/')}/kernels"


class HostSettings(Settings):
    """How often an attached run is measured, how much that may cost, and which adaptations are allowed.

    Each field is read from `TAMIYO_HOST_<FIELD>` unless it is given.
    """

    model_config = SettingsConfigDict(env_prefix="TAMIYO_HOST_")

    sample_interval: int = Field(
        25,
        ge=1,
        description="Steps between two telemetry frames; at most half of a window's width, so that a window has two",
    )
    growth_interval: int = Field(100, ge=1, description="Steps between two growth scores")
    contribution_interval: int = Field(
        50, ge=1, description="Steps between two measurements of what the kernels contribute"
    )
    cache_interval: int = Field(100, ge=1, description="Steps between two frames on the kernel cache")
    overhead_budget: float = Field(
        0.02,
        gt=0,
        description="Overhead (SDK time / training time) above which measurements become rarer, at steps of 5 ms and "
        "more; it rises to .06 as steps become shorter",
    )
    exchange_interval: int = Field(
        10, ge=1, description="Steps between two exchanges of decisions among the ranks of a distributed run"
    )
    exchange_timeout_s: float = Field(
        1800.0,
        gt=0,
        le=LONGEST_S,
        description="Seconds that a rank of a distributed run waits for the others at an exchange; then no decision is "
        "executed any more",
    )
    twin_budget: float = Field(
        0.0, ge=0, description="Share of the training time that shadow twins of adaptations may take; 0: none"
    )
    twin_steps: int = Field(300, ge=1, description="Optimiser steps over which a shadow twin is trained")

    ramp_steps: int = Field(50, ge=0, description="Steps over which a kernel's share of the output rises or falls")
    parameter_budget: int | None = Field(
        None,
        ge=0,
        le=2**53,
        examples=[1_000_000],
        description="Parameters that kernels may add; unset: parameter_budget_ratio applies",
    )
    parameter_budget_ratio: float = Field(
        8.0, ge=0, description="The parameter budget as a multiple of the network's own parameters"
    )
    cooldown_steps: int = Field(100, ge=0, description="Smallest number of steps between two adaptations")
    max_kernels: int | None = Field(
        None, ge=0, description="Largest number of kernels at once; unset: one per seed", examples=[4]
    )
    protected_layers: list[str] = Field(
        [], description="Layers that are never adapted (JSON list of names)", examples=[["head"]]
    )
    learning_rate_factor: float = Field(
        0.5, gt=0, lt=1, description="Factor by which optimize_parameters multiplies a layer's rate"
    )
    learning_rate_floor: float = Field(1 / 16, gt=0, le=1, description="Smallest learning rate scale of a layer")

    store_url: str = Field(
        default_factory=_kernel_store,
        min_length=1,
        description="fsspec URL of the kernel store",
        examples=["file:///var/lib/tamiyo/kernels"],
    )
    cache_capacity: int = Field(64, ge=1, description="Kernels kept in memory")

    announce: bool = Field(
        True,
        description="Print one line on standard error at attach (connection, layers watched), unless a handler of "
        "the program's own logging takes it",
    )
    queue_capacity: int = Field(
        10_000, ge=1, description="Records that may wait for publication; further ones are dropped"
    )
    connect_timeout_s: float = Field(2.0, ge=0, le=LONGEST_S, description="Seconds that attach waits for a broker")
    compile_timeout_s: float = Field(
        10.0, gt=0, description="Seconds that a decision waits for its kernel before it fails"
    )
    drain_s: float = Field(5.0, ge=0, description="Seconds that close waits for decisions still under way")
    flush_timeout_s: float = Field(5.0, ge=0, description="Seconds that close waits for deliveries")
