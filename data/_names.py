"""Finds topics and tables by the names that people type: whole, with the installation's prefix, or the last words."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, Topic

ALL = "all"


def find(text: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the one name that a text stands for.

    Args:
        text: A name, with or without the prefix, or the last words of one name.
        names: The names to choose from, words separated by dots.
        prefix: The installation's prefix of topics.

    Raises:
        ConfigurationError: No name ends so, or several do.

    Example:
        >>> find("decisions", ["tamiyo.adaptation.decisions", "tamiyo.rewards"])
        'tamiyo.adaptation.decisions'
    """
    known = [*names]
    bare = text.removeprefix(prefix)
    if bare in known:
        return bare
    found = [name for name in known if name.endswith(f".{bare}")] if bare else []
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigurationError(f"{printable(text)!r} may be {' or '.join(found)}; name one of them")
    if bare.endswith((".dlq", ".late")):
        raise ConfigurationError(
            f"{printable(text)}: rejected messages have no type, so they cannot be exported as a table; "
            "`tamiyo dlq show` prints them, `tamiyo tail` follows them"
        )
    shorter = {name.rpartition(".")[2]: name for name in known}
    close = get_close_matches(bare, [*known, *shorter], n=1, cutoff=0.6)
    hint = f"; did you mean {shorter.get(close[0], close[0])}?" if close else ""
    raise ConfigurationError(f"no topic {printable(text)!r} in the catalogue; `tamiyo topics list` names them{hint}")


def find_topics(texts: Iterable[str], prefix: str = "") -> tuple[Topic, ...]:
    """Return the topics that texts stand for, without repeats, in the order of the catalogue; `all`: every topic.

    Args:
        texts: As `find` takes them.
        prefix: The installation's prefix of topics.

    Raises:
        ConfigurationError: A text stands for no topic, or for several.
    """
    given = [*texts]
    if ALL in given:
        return CATALOGUE
    wanted = {find(each, BY_NAME, prefix) for each in given}
    return tuple(topic for topic in CATALOGUE if topic.name in wanted)
