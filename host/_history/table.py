"""A small table for notebooks."""

from collections.abc import Mapping
from html import escape


def html_table(rows: Mapping[str, str]) -> str:
    """Return names and values as an HTML table; both may contain any characters."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"
