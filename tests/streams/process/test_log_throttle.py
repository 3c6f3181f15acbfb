"""Repeats of libraries are counted, ours are not touched."""

import logging

from tamiyo.streams.process.log_throttle import EVERY_S, MAX_KINDS, Repeats


class Heard:
    """A log's lines as they would be told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.filter = Repeats(["aiokafka"], clock=lambda: self.now)

    def say(self, name: str, words: str, *values: object, level: int = logging.ERROR) -> str | None:
        record = logging.LogRecord(name, level, __file__, 1, words, values, None)
        return record.getMessage() if self.filter.filter(record) else None


def test_a_library_is_heard_once_in_a_while_and_the_rest_is_counted() -> None:
    heard = Heard()
    assert heard.say("aiokafka.conn", "cannot reach %s", 1) == "cannot reach 1"
    for _ in range(5):
        assert heard.say("aiokafka.conn", "cannot reach %s", 2) is None
    assert heard.say("aiokafka.conn", "cannot reach %s", 2, level=logging.WARNING) == "cannot reach 2"
    assert heard.say("aiokafka.conn", "lost %s", 1) == "lost 1"
    heard.now = EVERY_S
    assert heard.say("aiokafka.conn", "cannot reach %s", 3) == "cannot reach 3 (and 5 times more in 10 s)"
    assert heard.say("aiokafka.conn", "lost %s", 1) == "lost 1"


def test_ours_always_pass() -> None:
    heard = Heard()
    assert [heard.say("tamiyo.streams.runtime.stage_runner", "again") for _ in range(3)] == ["again"] * 3
    assert heard.say("aiokafkaesque", "again") == heard.say("aiokafkaesque", "again") == "again"


def test_what_is_remembered_is_bounded() -> None:
    heard = Heard()
    for number in range(MAX_KINDS + 5):
        heard.say("aiokafka", f"of my own making {number}")
    assert len(heard.filter._kinds) == MAX_KINDS
