"""Prepares foreign text for a terminal: no escape sequences, no secrets."""

import re

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
