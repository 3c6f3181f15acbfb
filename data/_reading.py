"""Reads topics into Arrow tables in memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from tamiyo.data import _joined
from tamiyo.data._decoding import Counts, decoded
from tamiyo.data._joined import DecisionJoin
from tamiyo.data._names import find
from tamiyo.data._sources import Choice, RecordingSource, Source, TopicSource
from tamiyo.data._tables import all_tables, batches
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS, Topic

Time = datetime | timedelta | str
"""A time (without a zone: UTC), a duration back from now, or a time in ISO 8601."""


class UndecodableWarning(UserWarning):
    """Messages are missing from a table, since their bytes are not the topic's record."""


def read(
    topic: str,
    *,
    recording: str | Path | None = None,
    kafka: KafkaSettings | None = None,
    bootstrap_servers: str | None = None,
    prefix: str | None = None,
    run: str | Sequence[str] | None = None,
    since: Time | None = None,
    until: Time | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Return a topic as a table with the columns that `tamiyo export` writes.

    Messages that are no such record are left out, with an UndecodableWarning.

    Args:
        topic: Name of a table, or its last words: "decisions", "health.windows", "windows.model".
        recording: A recording's folder, to read instead of topics.
        kafka: Settings of the broker; by default the environment's, `TAMIYO_KAFKA_*`.
        bootstrap_servers: The broker as host:port, with the environment's other settings.
        prefix: The installation's prefix of topics; by default `TAMIYO_TOPIC_PREFIX`.
        run: Only these runs.
        since: Messages from this Kafka time on; a timedelta counts back from now.
        until: Messages before this Kafka time.
        columns: Only these columns, in this order; others use no memory.

    Raises:
        ConfigurationError: There is no such topic, column or time.
        BrokerError: The broker does not respond, or lacks the topic.
        RecordingError: The folder is no recording, or lacks the topic.

    Example:
        >>> read("decisions", recording="tests/data/recording-0.1.0", columns=["run_id", "step"]).num_rows
        25
    """
    with _source(recording, kafka, bootstrap_servers, prefix) as source:
        table = all_tables()[find(topic, all_tables(), _names(prefix).prefix)]
        kept = _checked(columns, table.schema.names, table.name)
        plan = source.plan([table.topic], _choice(run, since, until))[table.topic]
        counts = Counts()
        messages = decoded(plan.messages(lambda: False), table.topic, counts)
        found = [table.batch(each).select(kept) for each in batches(messages, table.topic.record)]
        _warn(table.topic, counts)
        return _whole(found, table.schema, kept)


def decisions(
    *,
    recording: str | Path | None = None,
    kafka: KafkaSettings | None = None,
    bootstrap_servers: str | None = None,
    prefix: str | None = None,
    run: str | Sequence[str] | None = None,
    since: Time | None = None,
    until: Time | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Return the joined table: one row a decision, with its kernel, outcome, reward and policy.

    A recording without one of their topics has null in its columns. The arguments are those of `read`; `until` bounds
    the decisions only, since their outcomes and rewards come later.

    Args:
        recording: A recording's folder, to read instead of topics.
        kafka: Settings of the broker.
        bootstrap_servers: The broker as host:port.
        prefix: The installation's prefix of topics.
        run: Only these runs.
        since: Messages from this Kafka time on.
        until: Decisions before this Kafka time.
        columns: Only these columns.

    Raises:
        ConfigurationError: As `read`.
        BrokerError: As `read`.
        RecordingError: As `read`.

    Example:
        >>> table = decisions(recording="tests/data/recording-0.1.0", columns=["type", "reward"])
        >>> table.num_rows, table.column_names
        (25, ['type', 'reward'])
    """
    with _source(recording, kafka, bootstrap_servers, prefix) as source:
        kept = _checked(columns, _joined.SCHEMA.names, _joined.NAME)
        choice = _choice(run, since, until)
        plans = source.plan([DECISIONS], choice)
        others = [each for each in _joined.OTHERS if source.has(each)]
        later = source.plan(others, Choice(choice.runs, choice.since_ms))
        join = DecisionJoin()
        for topic, plan in later.items():
            counts = Counts()
            join.add(topic, decoded(plan.messages(lambda: False), topic, counts))
            _warn(topic, counts)
        counts = Counts()
        messages = join.new(decoded(plans[DECISIONS].messages(lambda: False), DECISIONS, counts))
        found = [join.batch(each).select(kept) for each in batches(messages, DECISIONS.record)]
        _warn(DECISIONS, counts)
        return _whole(found, _joined.SCHEMA, kept)


def schema(table: str) -> pa.Schema:
    """Return the columns of a table, without reading anything; each field's metadata has its description.

    Args:
        table: As `read` takes it, or "joined": the table that `decisions` returns.

    Raises:
        ConfigurationError: There is no such table.

    Example:
        >>> schema("rewards").field("worth_half_width").metadata[b"description"].decode()
        'Half of the 90 % interval of the worth, nats; null: not estimated.'
    """
    if table == "joined":
        return _joined.SCHEMA
    return all_tables()[find(table, all_tables(), _names(None).prefix)].schema


@contextmanager
def _source(
    recording: str | Path | None, kafka: KafkaSettings | None, servers: str | None, prefix: str | None
) -> Iterator[Source]:
    given = {"recording": recording, "kafka": kafka, "bootstrap_servers": servers}
    named = [name for name, each in given.items() if each is not None]
    if len(named) > 1:
        raise ConfigurationError(f"{' and '.join(named)} exclude each other: name one source")
    names = _names(prefix)
    if os.environ.get("TAMIYO_REGISTRY_URL"):
        from tamiyo.schemas.client.registry import Registry, RegistrySettings
        from tamiyo.schemas.client.subjects import Subjects
        from tamiyo.schemas.codec import use_registry

        use_registry(Subjects(Registry(RegistrySettings()), names))
    source: Source
    if recording is not None:
        source = RecordingSource(Path(recording))
    else:
        settings = KafkaSettings() if servers is None else KafkaSettings(bootstrap_servers=servers)
        source = TopicSource(kafka or settings, names)
    try:
        yield source
    finally:
        source.close()


def _names(prefix: str | None) -> TopicNames:
    return TopicNames() if prefix is None else TopicNames(prefix=prefix)


def _choice(run: str | Sequence[str] | None, since: Time | None, until: Time | None) -> Choice:
    runs = (run,) if isinstance(run, str) else tuple(run or ())
    return Choice(runs, _time_ms("since", since), _time_ms("until", until))


def _time_ms(name: str, time: Time | None) -> int | None:
    if time is None:
        return None
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError as error:
            expected = "a datetime, a timedelta back from now, or a text like 2026-05-01T10:00"
            raise ConfigurationError(f"{name}={time!r}: expected {expected}") from error
    if isinstance(time, timedelta):
        time = datetime.now(UTC) - time
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _checked(columns: Sequence[str] | None, known: list[str], table: str) -> list[str]:
    if columns is None:
        return known
    missing = [name for name in columns if name not in known]
    if missing:
        raise ConfigurationError(f"{table} has no column {', '.join(missing)}; it has {', '.join(known)}")
    return [*columns]


def _whole(found: Sequence[Any], schema: pa.Schema, kept: list[str]) -> pa.Table:
    fields = pa.schema([schema.field(name) for name in kept], metadata=schema.metadata)
    return pa.Table.from_batches(found, schema=fields)


def _warn(topic: Topic, counts: Counts) -> None:
    if counts.undecodable:
        warnings.warn(
            f"{counts.undecodable} of {counts.messages} messages of {topic.name} are no {topic.record.__name__} and "
            f"are left out; the first: {counts.first_problem}",
            UndecodableWarning,
            stacklevel=3,
        )
