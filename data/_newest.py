"""The newest row under each id, kept in Arrow batches: some hundred bytes each, where Python objects take thousands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

CHUNK = 8_192  # rows that are Python objects at a time
RANK_BITS = 40
"""A place is a rank and a row in one integer: of several rows under one id, that of the highest rank counts."""
ROW_MASK = (1 << RANK_BITS) - 1


class NewestRows:
    """Rows by id; of several under one id that of the highest rank, of equal ones the first.

    Example:
        >>> rows = NewestRows(pa.schema([("total", pa.float64())]))
        >>> rows.add("d1", (0.5,), rank=1), rows.add("d1", (0.1,), rank=0)
        (None, None)
        >>> rows.take(["d1", "d2"]).column("total").to_pylist()
        [0.5, None]
    """

    def __init__(self, schema: Any) -> None:
        """Begin without rows.

        Args:
            schema: Arrow schema of a row; every field is nullable.
        """
        self._schema = schema
        self._places: dict[str, int] = {}
        self._pending: list[tuple[Any, ...]] = []
        self._chunks: list[Any] = []
        self._rows = 0

    def __len__(self) -> int:
        """Return how many ids there are."""
        return len(self._places)

    def add(self, key: str, row: tuple[Any, ...], *, rank: int = 0) -> None:
        """Add a row under an id.

        Args:
            key: The id.
            row: Its values, in the schema's order.
            rank: Which of several rows counts.
        """
        known = self._places.get(key)
        if known is not None and known >> RANK_BITS >= rank:
            return
        self._places[key] = rank << RANK_BITS | self._rows
        self._rows += 1
        self._pending.append(row)
        if len(self._pending) >= CHUNK:
            self._store()
            if self._rows > 2 * len(self._places) + CHUNK:
                self._drop_replaced()

    def take(self, keys: Sequence[str]) -> Any:
        """Return a RecordBatch with one row for each id, null where there is none."""
        self._store()
        if len(self._chunks) != 1:  # one chunk, so that the next call copies nothing
            columns = [[each.column(number) for each in self._chunks] for number in range(len(self._schema))]
            whole = [
                pa.concat_arrays(column) if column else pa.array([], field.type)
                for column, field in zip(columns, self._schema, strict=True)
            ]
            self._chunks = [pa.RecordBatch.from_arrays(whole, schema=self._schema)]
        places = [self._places.get(key) for key in keys]
        index = pa.array([None if each is None else each & ROW_MASK for each in places], pa.int64())
        return self._chunks[0].take(index)

    def _store(self) -> None:
        if self._pending:
            columns: Iterable[tuple[Any, ...]] = zip(*self._pending, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._chunks.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._pending = []

    def _drop_replaced(self) -> None:
        """Keep the rows that count, in their order."""
        live = sorted((place & ROW_MASK, key) for key, place in self._places.items())
        whole = pa.Table.from_batches(self._chunks, schema=self._schema)
        kept = whole.take(pa.array(np.fromiter((row for row, _ in live), np.int64, len(live))))
        self._chunks = kept.combine_chunks().to_batches()
        for number, (_, key) in enumerate(live):
            self._places[key] = self._places[key] >> RANK_BITS << RANK_BITS | number
        self._rows = len(live)
