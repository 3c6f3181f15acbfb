"""The guide names the columns that the joined table has, and the tables that are unpacked."""

import re
from pathlib import Path

from tamiyo.data._joined import SCHEMA
from tamiyo.data._tables import all_tables

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "export.md").read_text(encoding="utf-8")


def cells(heading: str) -> list[str]:
    """Return the code in the first cells of the first table under a heading."""
    section = GUIDE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_the_guide_lists_the_columns_of_the_joined_table() -> None:
    assert cells("The joined table") == SCHEMA.names


def test_the_guide_names_the_tables_that_are_unpacked() -> None:
    named = cells("The files")
    assert [name for name, table in all_tables().items() if table.unpack is not None and name not in named] == []
    assert "decisions" in named
