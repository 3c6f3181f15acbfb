"""Write a Parquet file whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tamiyo.schemas.files import write_atomically


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table to a file; a reader never finds half of it.

    Args:
        table: The table, with its metadata.
        path: The file, which is replaced.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())
