"""The stages by name. A stage's module is imported when the stage is loaded: intake needs no torch."""

from dataclasses import dataclass
from importlib import import_module

from pydantic_settings import BaseSettings

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.settings import (
    DecisionSettings,
    GraphSettings,
    IntakeSettings,
    KernelSettings,
    RewardSettings,
    WindowSettings,
)
from tamiyo.streams.stages.base import Stage


@dataclass(frozen=True, slots=True)
class StageEntry:
    """Where a stage's class is, its settings, and the consumer group that shares its partitions."""

    module: str
    cls: str
    settings: type[BaseSettings]
    group: str

    def load(self) -> type[Stage]:
        """Import and return the stage's class."""
        stage: type[Stage] = getattr(import_module(self.module), self.cls)
        return stage


STAGES: dict[str, StageEntry] = {
    # The specification names intake's consumer group.
    "intake": StageEntry(
        "tamiyo.streams.stages.intake.stage", "IntakeStage", IntakeSettings, "tamiyo_health_collectors"
    ),
    "windows": StageEntry("tamiyo.streams.stages.windows.stage", "WindowsStage", WindowSettings, "tamiyo_windows"),
    "graphs": StageEntry("tamiyo.streams.stages.graphs.stage", "GraphsStage", GraphSettings, "tamiyo_graphs"),
    "decisions": StageEntry(
        "tamiyo.streams.stages.decisions.stage", "DecisionsStage", DecisionSettings, "tamiyo_decisions"
    ),
    "kernels": StageEntry("tamiyo.streams.stages.kernels.stage", "KernelsStage", KernelSettings, "tamiyo_kernels"),
    "rewards": StageEntry("tamiyo.streams.stages.rewards.stage", "RewardsStage", RewardSettings, "tamiyo_rewards"),
}
"""In the order of the flow."""


def entry(name: str) -> StageEntry:
    """Return the entry of the stage `name`; raises ConfigurationError with the names that exist."""
    if name not in STAGES:
        raise ConfigurationError(f"there is no stage {name!r}; choose from {', '.join(STAGES)}")
    return STAGES[name]
