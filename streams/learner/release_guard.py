"""What stands between an updated policy and its release: the gates before it, and the canary after it."""

from collections import Counter
from collections.abc import Iterable

import structlog

from tamiyo.models.checkpoint import GateResult, ReleaseRecord
from tamiyo.models.learning.example import Example
from tamiyo.models.learning.learner import Learner
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.errors import UpdateRejected
from tamiyo.streams.learner import metrics
from tamiyo.streams.learner.canary import Canary, LiveDifference
from tamiyo.streams.learner.gates import ReleaseGates
from tamiyo.streams.settings import ReleaseSettings

log = structlog.get_logger(__name__)

KEPT_REFUSED = 20  # failures of candidates that a release records


class ReleaseGuard:
    """Judges candidates, and the versions released last by their live rewards."""

    def __init__(self, settings: ReleaseSettings, learner: Learner, rolled_back: Iterable[int] = ()) -> None:
        """Guard the updates of a learner.

        Args:
            settings: Gates and canary.
            learner: The learner, with the policy that it starts from.
            rolled_back: Versions that were rolled back before.
        """
        self._gates = ReleaseGates(settings, learner.policy.kinds, learner.return_of)
        self._canary = Canary(settings, rolled_back)
        self._refused: list[GateResult] = []
        self._failures: Counter[str] = Counter()
        """Failures of candidates since the last release, by gate; `_refused` has the last of them only."""
        learner.check = self.check

    @property
    def rolled_back(self) -> tuple[int, ...]:
        """Versions that were rolled back, ascending."""
        return self._canary.rolled_back

    @property
    def reference(self) -> int:
        """Version that live rewards are compared with."""
        return self._canary.reference

    def take(self, example: Example) -> None:
        """Take a rewarded decision."""
        self._gates.record(example)
        self._canary.record(example)

    def check(self, candidate: TamiyoPolicy) -> None:
        """Run the gates; raises UpdateRejected if one fails."""
        try:
            self._gates.check(candidate)
        except UpdateRejected:
            failed = self._gates.results[-1]
            metrics.GATE_FAILURES.labels(failed.gate).inc()
            log.warning("candidate not released", gate=failed.gate, reason=failed.reason)
            self._refused = [*self._refused, failed][-KEPT_REFUSED:]
            self._failures[failed.gate] += 1
            raise

    def release_record(self) -> ReleaseRecord:
        """Return what the checkpoint of the candidate that was checked last records."""
        return ReleaseRecord(
            gates=self._gates.results if self._gates.failed is None else (),
            refused=tuple(self._refused),
            rolled_back=self.rolled_back,
            reference_version=self.reference,
            failures=dict(self._failures),
        )

    def released(self, policy: TamiyoPolicy) -> None:
        """Take a released policy as the incumbent."""
        self._gates.released(policy)
        self._refused = []
        self._failures.clear()

    def begin(self, reference: int, policy: TamiyoPolicy) -> None:
        """Start to compare the live rewards of the versions after `reference` with those up to it."""
        self._canary.begin(reference, policy)
        metrics.REFERENCE.set(reference)

    def exclude(self, versions: Iterable[int]) -> None:
        """Note versions that were rolled back."""
        self._canary.exclude(versions)

    def live_difference(self) -> LiveDifference:
        """Return how the versions after the reference compare with it now."""
        found = self._canary.difference()
        if found.new:
            for bound, value in (("mean", found.mean), ("upper", found.upper)):
                metrics.LIVE_DIFFERENCE.labels(bound).set(value)
        return found

    def worse(self, found: LiveDifference) -> bool:
        """Return whether the versions after the reference must be rolled back."""
        return self._canary.worse(found)

    @property
    def complete(self) -> bool:
        """Whether the running test has lasted long enough: the newest version may become the reference."""
        return self._canary.complete
