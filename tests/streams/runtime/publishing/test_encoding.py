"""Dead letters as they are published: the rejected message, with Tamiyo's headers beside its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES
from tamiyo.streams.headers import KEPT, OMITTED_HEADER, REASON_HEADER, RESERVED, SOURCE_HEADER, kept, restored
from tamiyo.streams.runtime.encoding import message_of
from tamiyo.streams.stages.base import Incoming, Reject
from tests.support.pairs import NUMBERS

HEADERS = (("trace", b"1"), ("trace", None), ("", b"\xff"), (REASON_HEADER, b"mine"), (f"{KEPT}trace", b"2"))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("key", "value"), [(None, None), (b"", b""), (b"run", None), (None, b"bytes")])
def test_a_dead_letter_is_the_message_and_its_headers(key: bytes | None, value: bytes | None, late: bool) -> None:
    source = Incoming(NUMBERS.name, 1, 7, 0, None, value, key, HEADERS)
    topic, (same_key, same_value, headers) = message_of(Reject(source, "unusable", late=late), "pairs", b"a=1")
    assert topic == (NUMBERS.late if late else NUMBERS.dead_letters)
    assert (same_key, same_value) == (key, value)
    assert restored(headers) == list(HEADERS)
    # A restart reads the first or the last of a name: the stage's own is the only one.
    for name, expected in ((REASON_HEADER, b"unusable"), (SOURCE_HEADER, b"test.numbers:1:7")):
        assert [found for other, found in headers if other == name] == [expected]


@given(
    st.lists(
        st.tuples(st.text() | st.sampled_from([RESERVED, KEPT, REASON_HEADER, f"{KEPT}x"]), st.none() | st.binary())
    )
)
def test_every_header_is_kept_and_comes_back(headers: list[tuple[str, bytes | None]]) -> None:
    assert restored([(SOURCE_HEADER, b"ours"), *kept(headers), (OMITTED_HEADER, b"0")]) == headers
    assert all(name.startswith(KEPT) or not name.startswith(RESERVED) for name, _ in kept(headers))


def test_headers_that_do_not_fit_are_left_out_and_counted() -> None:
    value = bytes(MAX_MESSAGE_BYTES - 100_000)
    source = Incoming(
        NUMBERS.name,
        1,
        7,
        0,
        None,
        value,
        b"run",
        (("a", b"1"), ("b", bytes(100_000)), ("c", bytes(50_000)), ("d", bytes(50_000)), ("e", b"2")),
    )
    _, (key, same, headers) = message_of(Reject(source, "x" * 5_000), "pairs")
    assert [name for name, _ in restored(headers)] == ["a", "c", "e"]
    assert dict(headers)[OMITTED_HEADER] == b"2"
    assert same == value
    assert (
        len(key or b"") + len(value) + sum(len(name) + len(each or b"") + 20 for name, each in headers)
        < MAX_MESSAGE_BYTES
    )
    _, (_, _, headers) = message_of(
        Reject(Incoming(NUMBERS.name, 1, 7, 0, None, headers=(("a", bytes(1_000_000)),)), "x"), "pairs"
    )
    assert OMITTED_HEADER not in dict(headers)
