"""The view of the policies: their versions, how they learned, and what their decisions earned."""

from collections.abc import Mapping
from typing import Any

from tamiyo.schemas.learning import PolicyCheckpoint
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.history.decisions import Totals
from tamiyo.streams.watch.history.policies import PolicyVersions, newest
from tamiyo.streams.watch.views.document import Document, document, number, since

NAMELESS = ""
"""The policy of decisions whose versions were never announced on the topic that is read."""


def policy(history: History, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return the policies with their versions, or the versions that changed after a revision.

    Args:
        history: The installation's history.
        at_ms: The past time that the document is made as of, ms since the epoch; None: now.
        after: Revision of a document whose changes are wanted; it has no effect with `at_ms`.
    """
    after = since(at_ms, after)
    with history.lock:
        totals = history.policies.totals if at_ms is None else _totals(history, at_ms)
        policies = dict(history.policies.policies) or ({NAMELESS: PolicyVersions()} if totals else {})
        only = len(policies) == 1
        found = [_policy(name, each, totals, at_ms, after, only=only) for name, each in policies.items()]
        known = [each for each in found if at_ms is None or each["versions"] or each["orders"]]
        return {**document(history, "policy", at_ms=at_ms, whole=after == 0), "policies": known}


def _policy(
    name: str, found: PolicyVersions, totals: Mapping[int, Totals], at_ms: int | None, after: int, *, only: bool
) -> dict[str, Any]:
    orders = newest(found.orders, at_ms)
    numbers = {*found.versions, *(totals if only else ())}
    versions = []
    for version in sorted(numbers):
        announced, counted = found.versions.get(version), totals.get(version, Totals())
        if max(announced.revision if announced is not None else 0, counted.revision) > after or after == 0:
            record = None if announced is None else announced.at(at_ms)
            if record is not None or counted.decisions:
                versions.append(_version(version, record, counted))
    return {
        "name": name,
        "orders": None
        if orders is None
        else {
            "pinned_version": orders.version if orders.pinned else None,
            "frozen": orders.frozen,
            "issued_by": orders.issued_by,
            "reason": orders.reason,
        },
        "versions": versions,
    }


def _version(version: int, record: PolicyCheckpoint | None, totals: Totals) -> dict[str, Any]:
    metrics = {} if record is None else record.metrics
    return {
        "version": version,
        "parent_version": record.parent_version if record else None,
        "time_ms": record.time_ms if record else None,
        "status": record.status.value if record else None,
        "fallback_version": record.fallback_version if record else None,
        "experiences": record.experiences if record else None,
        "updates": record.updates if record else None,
        "size_bytes": record.size_bytes if record else None,
        "reason": record.reason if record else "",
        "issued_by": record.issued_by if record else "",
        "losses": _group(metrics, "losses"),
        "charts": _group(metrics, "charts"),
        "gates": {
            "passed": [name for name, passed in _group(metrics, "gates").items() if passed == 1],
            "failed": {name: int(count) for name, count in _group(metrics, "gates_failed").items()},
        },
        "decisions": totals.decisions,
        "executed": totals.executed,
        "mean_reward": number(totals.mean_reward),
        "reward_half_width": number(totals.reward_half_width),
        "mean_worth": number(totals.mean_worth),
        "mean_confidence": number(totals.mean_confidence),
    }


def _group(metrics: Mapping[str, float], group: str) -> dict[str, float]:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _totals(history: History, at_ms: int) -> dict[int, Totals]:
    """Return the sums by version as of a past time, over the decisions that are kept."""
    found: dict[int, Totals] = {}
    for run in history.runs.values():
        for each in run.decisions.values():
            share = each.share_at(at_ms)
            if share.decisions:
                found.setdefault(share.version, Totals()).add(share)
    return found
