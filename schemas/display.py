"""What came from elsewhere, made fit for a person's terminal: no escape sequences, no secrets."""

import re

# scheme://user:password@host, and what a query says
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=[=])[^&\s]+")


def printable(text: str) -> str:
    """Return `text` with everything that does not print (control, format and separator characters) escaped.

    A terminal obeys what it is sent: an id or an error message must not move the cursor or set a title.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def without_secrets(url: str) -> str:
    """Return a URL without login and query values, for messages: fsspec takes keys and tokens there."""
    base, mark, query = url.partition("?")
    return _LOGIN.sub("***@", base) + mark + _QUERY.sub("***", query)
