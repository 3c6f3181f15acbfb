"""What commands print: foreign text without escape sequences and secrets, and JSON."""

import json
import math
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# scheme://user:password@host, and the values of a query
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=[=])[^&\s]+")


def printable(text: str) -> str:
    r"""Return text with its non-printable characters (control, format and separator characters) escaped.

    Otherwise an id or an error message could move a terminal's cursor or set its title.

    Args:
        text: Text from a message or another program.

    Example:
        >>> printable("run\x1b[2J")
        'run\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def without_secrets(url: str) -> str:
    """Return a URL for messages, without its login and query values, where fsspec expects keys and tokens.

    Args:
        url: Any URL or path.

    Example:
        >>> without_secrets("s3://key:secret@bucket/policies?token=abc")
        's3://***@bucket/policies?token=***'
    """
    base, mark, query = url.partition("?")
    return _LOGIN.sub("***@", base) + mark + _QUERY.sub("***", query)


def write_json(value: Any) -> None:
    """Write a value to standard output as JSON, which has no NaN and no infinities: they are null.

    Args:
        value: What `json` can encode.

    Example:
        >>> write_json({"loss": float("nan")})
        {
          "loss": null
        }
    """
    sys.stdout.write(json.dumps(finite(value), indent=2) + "\n")


def narrow(table: "Table") -> "Table":
    """Make a table of rich fit a terminal of 80 columns, as far as its words do: cells break only between words.

    Columns with `overflow="fold"`, those of long names, give way to the others.

    Args:
        table: With its rows; it is changed.

    Returns:
        The table.
    """
    from rich.box import SIMPLE_HEAD
    from rich.text import Text

    table.box, table.show_edge, table.padding = SIMPLE_HEAD, False, 0
    for column in table.columns:
        if column.overflow != "fold":
            cells = (
                Text.from_markup(each) if isinstance(each, str) else each for each in (column.header, *column.cells)
            )
            lines = [line for cell in cells for line in str(cell).splitlines()]
            column.min_width = max((len(word) for line in lines for word in line.split()), default=0)
            # rich takes width from all columns alike that may wrap, also below what their words need.
            column.no_wrap = max(map(len, lines), default=0) <= column.min_width
    return table


def finite(value: Any) -> Any:
    """Return a JSON value with null for each number that is not finite.

    Args:
        value: What `json` can encode.

    Example:
        >>> finite([1.0, float("inf")])
        [1.0, None]
    """
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
