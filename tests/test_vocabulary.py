"""Words that were retired: the field has a term for each, and readers should meet one term for one thing."""

import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("schemas", "models", "streams", "host", "integrations", "data", "evaluation", "scripts", "examples", "tests")

EVERYWHERE = {
    "blame": "record failure",
    "closings": "finalized windows",
    "condemned": "poison",
    "curtain": "stop early",
    "desk": "harness",
    "distrust": "reject",
    "endings": "end tracker",
    "heard": "received",
    "heed": "follow",
    "judgement": "estimate, verdict",
    "recall": "restore",
    "recalled": "restored",
    "said": "published, recorded, previous",
    "says": "states, contains, publishes",
    "stillness": "stall",
    "stretch": "range",
    "stretches": "ranges",
    "tells": "states, reports",
    "tenure": "partition task",
    "tenures": "partition tasks",
    "theatre": "session",
    "told": "reported, given, requested",
    "trouble": "failure",
}
"""Retired as identifiers and in comments, docstrings and texts: each with what replaces it."""

IDENTIFIERS = {
    **EVERYWHERE,
    "anchor": "effective at",
    "aside": "rejected",
    "facts": "summary",
    "hear": "record",
    "holds": "blocking vetoes",
    "look": "check",
    "looked": "checked",
    "patience": "timeout",
    "readings": "frame metrics",
    "say": "publish, print",
    "shell": "runner",
    "shells": "runners",
    "suspects": "poison tracker",
    "tell": "report",
    "unusable": "failure",
}
"""Retired as identifiers only: they have a plain meaning in prose."""

PHRASES = {
    "all the same": "still, or nothing",
    "asked for": "requested",
    "came of": "the result, the outcome",
    "in vain": "timed out",
    "not yet there": "missing",
    "set aside": "rejected",
}
"""Retired in comments, docstrings and texts."""

KEPT = {
    "heed_outcomes": "TAMIYO_DECISION_HEED_OUTCOMES",
    "history_stretch": "TAMIYO_GRAPH_HISTORY_STRETCH",
    "patience_s": "TAMIYO_COMMAND_PATIENCE_S",
    "bbox_to_anchor": "an argument of matplotlib's legend",
}
"""Identifiers that stay: settings that users set by these names, and names of other packages."""

EXCEPTIONS: dict[str, set[str]] = {
    "evaluation/hostile/__main__.py": {"said"},  # a key of its report
    "evaluation/soak/trends.py": {"stretches"},  # a key of its report
    "tests/evaluation/soak/test_trends.py": {"stretches"},
    "tests/test_vocabulary.py": {*IDENTIFIERS, *PHRASES},
}
"""File to the words that it may use."""

TEXT = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
PHRASE = re.compile(r"\b(" + "|".join(map(re.escape, PHRASES)) + r")\b")


@functools.cache
def identifier_words(name: str) -> list[str]:
    """Split an identifier at underscores and at capitals."""
    return [word.lower() for part in name.split("_") for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)]


def retired_words(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, word or phrase) of every use of a retired word in Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string not in KEPT:
            found = [word for word in identifier_words(token.string) if word in IDENTIFIERS]
            yield from ((token.start[0], word) for word in found)
        elif token.type in TEXT:
            for number, text in enumerate(token.string.lower().splitlines(), start=token.start[0]):
                found = [word for word in re.findall(r"\b[a-z]+\b", text) if word in EVERYWHERE]
                yield from ((number, word) for word in [*found, *PHRASE.findall(text)])


@pytest.mark.parametrize("folder", FOLDERS)
def test_retired_words_are_not_used(folder: str) -> None:
    offenders = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        allowed = EXCEPTIONS.get(name, set())
        for line, word in retired_words(path.read_text()):
            if word not in allowed:
                offenders.append(f"{name}:{line}: {word} -> {IDENTIFIERS.get(word) or PHRASES[word]}")
    assert not offenders, f"{len(offenders)} uses of retired words\n" + "\n".join(offenders)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def recall(self, toldOnce): ...", [(1, "recall"), (1, "told")]),
        ("class TenureHTTPShell: ...", [(1, "tenure"), (1, "shell")]),
        ('"""The first line.\n\nIt says so all the same."""', [(3, "says"), (3, "all the same")]),
        ("x = 1  # Heard from it", [(1, "heard")]),
        ("heed_outcomes = 'TAMIYO_DECISION_HEED_OUTCOMES'", []),
        ("x = 'a look at the shell, where the law holds'", []),
        ("f'{x} was asked for'", [(1, "asked for")]),
        ("shellfish = recaller = tale = 'retold'", []),
    ],
)
def test_retired_words_are_found(source: str, found: list[tuple[int, str]]) -> None:
    assert list(retired_words(source)) == found


def test_exceptions_name_files_that_exist() -> None:
    assert not [name for name in EXCEPTIONS if not (ROOT / name).is_file()]
