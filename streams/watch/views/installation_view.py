"""The view of the installation: its topics, stages, dead letters and standing orders."""

import time
from typing import Any

from tamiyo.schemas.topics import BY_NAME
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.views.document import Document, document
from tamiyo.streams.watch.views.run_view import order


def installation(history: History, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return topics, stages, the share of signals shed, dead letters and orders; always whole.

    Args:
        history: The installation's history.
        at_ms: The past time that the document is made as of, ms since the epoch; None: now.
        after: Revision of a document whose changes are wanted; this document is always whole.
    """
    with history.lock:
        signals, shed, share = history.topics.shedding(at_ms)
        letters = [each for each in history.topics.dead_letters if at_ms is None or each[0] <= at_ms]
        return {
            **document(history, "installation", at_ms=at_ms, whole=True),
            "topics": [_topic(history, name, at_ms) for name in history.topics.topics],
            "stages": list(history.topics.stages),
            "shed": {"signals": signals, "shed": shed, "share": share},
            "dead_letters": [
                {"topic": topic, "time_ms": time_ms, "reason": reason, "run_id": key or None}
                for time_ms, topic, reason, key in sorted(letters, key=lambda each: -each[0])
            ],
            "control": [order(command) for command in history.orders.commands(at_ms)],
        }


def _topic(history: History, name: str, at_ms: int | None) -> dict[str, Any]:
    topic, found = BY_NAME[name], history.topics.topics[name]
    records, newest_ms = found.until(at_ms)
    rated = history.source.live and not history.source.reading and at_ms is None
    return {
        "name": name,
        "description": topic.description,
        "writer": topic.writer,
        "readers": list(topic.readers),
        "partitions": found.partitions,
        "records": records if found.in_log is None or at_ms is not None else found.in_log,
        "rate": found.rate(time.monotonic_ns() // 1_000_000_000) if rated else None,
        "oldest_ms": found.oldest_ms,
        "newest_ms": newest_ms,
        "dead_letters": found.dead_letters,
        "late": found.late,
    }
