"""Copies of the released schemas, which older programs still write and older topics still contain."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tamiyo.schemas.record import Record

FOLDER = Path(__file__).parent / "avro" / "released"
"""One folder per version with its `.avsc` files, which never change again."""


@cache
def released(record: type[Record]) -> dict[str, Any]:
    """Return the released schemas of `record` as JSON values, by version; empty for a new record."""
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.glob(f"*/{record.__name__}.avsc"))
    }
