"""How a decision ended, as far as its reward depends on it."""

from enum import StrEnum


class RewardStatus(StrEnum):
    """The status of a reward; the values are those of `RewardAnalysis.status` on the wire."""

    EXECUTED = "executed"
    REFUSED = "refused"
    """The host's own limits forbade it."""
    FAILED = "failed"
    """The host tried and could not, or reported no outcome in time."""
    VETOED = "vetoed"
    """The decisions stage replaced it by no_op."""
    DRY_RUN = "dry_run"
    """Recorded only, by order of an operator."""
    NONE = "none"
    """The policy chose no_op."""
