"""What commands print: foreign text without escape sequences and secrets, and JSON."""

import json
import math
import re
import sys
from typing import Any

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
    sys.stdout.write(json.dumps(_finite(value), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
