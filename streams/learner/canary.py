"""The canary: compares the live rewards of newly released policies with those of the version before them, all the time.

Releases come every few experiences, too few to judge each by itself. A test therefore compares all versions after its
reference with the versions up to it. It ends with a rollback to the reference, as soon as the new ones are worse beyond
doubt, or after `canary_decisions` of them without one; then the newest version is the next test's reference.

What is compared is the reward less what the reference expects of its own action at the graph, for both sides: later
windows of a run bring less reward whoever decides, and a newer policy must not be charged with that. The bounds assume
that what is left does not depend on earlier decisions; those of one run do depend a little, so a rollback needs several
runs.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tamiyo.models.batch import combine
from tamiyo.models.behaviour import distributions
from tamiyo.models.confidence_sequence import EmpiricalBernstein
from tamiyo.models.learning.example import Example
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.streams.settings import ReleaseSettings

CHUNK = 32  # graphs of a forward pass
KEPT_ROLLED_BACK = 200  # versions; a decision of an older one is rewarded long before


@dataclass(frozen=True, slots=True)
class LiveDifference:
    """Mean reward of the new versions minus that of the reference, a decision."""

    reference: int
    """Version that the new ones are compared with."""
    mean: float
    upper: float
    """Holds at all times together with probability 1 - canary_alpha."""
    new: int
    """Decisions of the new versions."""
    old: int
    """Decisions of the versions up to the reference."""
    runs: int
    """Runs that the decisions of the new versions are from."""

    def __str__(self) -> str:
        return (
            f"{self.mean:+.3f} reward a decision relative to version {self.reference} and before, at most "
            f"{self.upper:+.3f}, from {self.new} decisions of {self.runs} runs against {self.old}"
        )


class Canary:
    """The running test. Each decision counts once, with the first reward that is known of it."""

    def __init__(self, settings: ReleaseSettings, rolled_back: Iterable[int] = ()) -> None:
        """Make it; `begin` starts the first test.

        Args:
            settings: `canary_alpha` and `canary_decisions`.
            rolled_back: Versions whose decisions count for neither side.
        """
        self._settings = settings
        self._rolled_back = sorted(set(rolled_back))[-KEPT_ROLLED_BACK:]
        self._counted: OrderedDict[str, None] = OrderedDict()
        self._latest: deque[Example] = deque(maxlen=2 * settings.canary_decisions)
        """Oldest first."""
        self._pending: list[Example] = []
        """Those that no side has counted yet."""
        self._runs: set[str] = set()
        """Runs of the new side."""
        self._policy: TamiyoPolicy | None = None
        self.reference = 0
        """Version that the new ones are compared with."""
        self._sides: tuple[EmpiricalBernstein, EmpiricalBernstein]

    @property
    def rolled_back(self) -> tuple[int, ...]:
        """Versions that were rolled back, ascending."""
        return tuple(self._rolled_back)

    def begin(self, reference: int, policy: TamiyoPolicy) -> None:
        """Start a test against `reference`; the latest decisions of both sides count from its start.

        Args:
            reference: The version.
            policy: The version's policy, which is copied.
        """
        self.reference = reference
        if self._policy is None or self._policy.config != policy.config:
            self._policy = TamiyoPolicy(policy.config).eval()
        self._policy.load_state_dict(policy.state_dict())
        alpha = self._settings.canary_alpha / 2  # each side's bound may fail
        self._sides = (_sequence(alpha), _sequence(alpha))
        self._runs = set()
        self._latest = deque(
            (each for each in self._latest if each.policy_version not in self._rolled_back), self._latest.maxlen
        )
        self._pending = list(self._latest)

    def exclude(self, versions: Iterable[int]) -> None:
        """Count the decisions of these versions no longer: they were rolled back."""
        self._rolled_back = sorted({*self._rolled_back, *versions})[-KEPT_ROLLED_BACK:]

    def record(self, example: Example) -> None:
        """Take a rewarded decision; later revisions of its reward are ignored."""
        if not self._settings.canary_alpha or example.experience_id in self._counted:
            return
        self._counted[example.experience_id] = None
        if len(self._counted) > 20 * self._settings.canary_decisions:  # a decision's last revision is no later
            self._counted.popitem(last=False)
        if example.policy_version not in self._rolled_back:
            self._latest.append(example)
            self._pending.append(example)

    def difference(self) -> LiveDifference:
        """Count what came since the last call, and return how the sides compare."""
        pending, self._pending = self._pending[-self._settings.canary_decisions * 2 :], []
        for start in range(0, len(pending), CHUNK):
            chunk = pending[start : start + CHUNK]
            for example, expected in zip(chunk, self._expected(chunk), strict=True):
                is_new = example.policy_version > self.reference
                self._sides[is_new].add(example.reward - min(max(expected, -1.0), 1.0))
                if is_new:
                    self._runs.add(example.run_id)
        old, new = self._sides
        return LiveDifference(
            self.reference, new.mean - old.mean, new.upper - old.lower, new.count, old.count, len(self._runs)
        )

    def worse(self, found: LiveDifference) -> bool:
        """Return whether the new versions earn less beyond doubt, in more than a run or two."""
        return found.upper < 0 and found.runs >= self._settings.canary_min_runs

    @property
    def complete(self) -> bool:
        """Whether the new versions have made as many decisions as a test lasts."""
        return self._sides[1].count >= self._settings.canary_decisions

    def _expected(self, examples: Sequence[Example]) -> list[float]:
        """Return the reward that the reference expects of its own decision at each graph."""
        assert self._policy is not None, "begin() comes first"
        batch = combine([each.graph for each in examples])
        probabilities, predicted, _ = distributions(self._policy, batch)
        return [
            float(probabilities[first:end] @ predicted[first:end]) for first, end in pairwise(batch.offsets.tolist())
        ]


def _sequence(alpha: float) -> EmpiricalBernstein:
    # A difference beyond 1 is rare, and half the range halves the cost of not knowing the distribution.
    return EmpiricalBernstein(alpha or 0.5, low=-1.0, high=1.0)
