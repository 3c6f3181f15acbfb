"""The policies over time: their versions, operators' orders about them, and what their decisions earned."""

from collections import OrderedDict
from dataclasses import dataclass, field

from tamiyo.schemas.learning import PolicyCheckpoint, policy_orders_key
from tamiyo.streams.watch.history.decisions import Share, Totals

MAX_VERSIONS = 2_000
MAX_POLICIES = 100
MAX_ORDERS = 200
MAX_ANNOUNCEMENTS = 20  # of one version: its release, and its rollback


@dataclass(slots=True)
class VersionHistory:
    """The announcements of one version."""

    revision: int = 0
    announcements: list[tuple[int, PolicyCheckpoint]] = field(default_factory=list)
    """(Kafka time, record), in order of time."""

    def at(self, at_ms: int | None) -> PolicyCheckpoint | None:
        """Return the newest announcement up to a time."""
        return newest(self.announcements, at_ms)


@dataclass(slots=True)
class PolicyVersions:
    """One policy."""

    versions: OrderedDict[int, VersionHistory] = field(default_factory=OrderedDict)
    orders: list[tuple[int, PolicyCheckpoint]] = field(default_factory=list)


class PolicyHistory:
    """All policies of the installation."""

    def __init__(self) -> None:
        """Know no policy."""
        self.revision = 0
        self.policies: OrderedDict[str, PolicyVersions] = OrderedDict()
        self.totals: OrderedDict[int, Totals] = OrderedDict()
        """Of decisions, by the version that made them. Decisions do not name their policy."""

    def take(self, record: PolicyCheckpoint, key: str, time_ms: int, revision: int) -> None:
        """Take an announcement, or an operator's orders."""
        self.revision = revision
        policy = self.policies.setdefault(record.name, PolicyVersions())
        while len(self.policies) > MAX_POLICIES:
            self.policies.popitem(last=False)
        if key == policy_orders_key(record.name):
            policy.orders = _with(policy.orders, time_ms, record)[-MAX_ORDERS:]
            return
        version = policy.versions.setdefault(record.version, VersionHistory())
        version.revision = revision
        version.announcements = _with(version.announcements, time_ms, record)[-MAX_ANNOUNCEMENTS:]
        while len(policy.versions) > MAX_VERSIONS:
            del policy.versions[min(policy.versions)]

    def count(self, before: Share, after: Share, revision: int) -> None:
        """Replace a decision's share in the totals of its policy's version."""
        for share, sign in ((before, -1), (after, 1)):
            if share.version >= 0:
                totals = self.totals.setdefault(share.version, Totals())
                totals.add(share, sign)
                totals.revision = revision
        while len(self.totals) > MAX_VERSIONS:
            del self.totals[min(self.totals)]
        self.revision = revision


def newest(records: list[tuple[int, PolicyCheckpoint]], at_ms: int | None) -> PolicyCheckpoint | None:
    """Return the newest of records in order of time, up to a time."""
    return next((record for time_ms, record in reversed(records) if at_ms is None or time_ms <= at_ms), None)


def _with(
    records: list[tuple[int, PolicyCheckpoint]], time_ms: int, record: PolicyCheckpoint
) -> list[tuple[int, PolicyCheckpoint]]:
    if any(known == (time_ms, record) for known in records):
        return records
    return sorted([*records, (time_ms, record)], key=lambda each: each[0])
