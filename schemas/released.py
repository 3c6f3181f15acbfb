"""Copies of the schemas as they were released: what older programs still write, and older topics still hold."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tamiyo.schemas.record import Record

FOLDER = Path(__file__).parent / "avro" / "released"
"""A folder a version, each with that version's `.avsc` files. They never change again."""


@cache
def released(record: type[Record]) -> dict[str, Any]:
    """Return every released schema of `record`, as parsed JSON by version; none for a record that is new."""
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.glob(f"*/{record.__name__}.avsc"))
    }
