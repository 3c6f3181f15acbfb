"""Foreign text for a terminal: nothing that controls it, and no secret."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamiyo.schemas.display import printable, without_secrets, write_json


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
def test_text_is_printable_and_printable_text_is_unchanged(text: str) -> None:
    found = printable(text)
    assert found.isprintable()
    assert printable(found) == found


def test_escapes_are_readable() -> None:
    assert printable("a\x1b[2J\u202eb") == "a\\x1b[2J\\u202eb"


def test_neither_the_login_nor_the_query_of_a_url_is_shown() -> None:
    assert without_secrets("s3://key:secret@bucket/path?token=secret&x=1") == "s3://***@bucket/path?token=***&x=***"
    assert without_secrets("file:///var/tamiyo") == "file:///var/tamiyo"


def test_numbers_that_are_not_finite_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"a": [float("nan"), 1.0], "b": {"c": float("inf")}, "d": ("x", None)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": {"c": None}, "d": ["x", None]}
