"""Foreign text for a terminal: nothing that controls it, and no secret."""

from hypothesis import given
from hypothesis import strategies as st

from tamiyo.schemas.display import printable, without_secrets


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
