"""Repeated messages of libraries are counted, and other messages pass."""

import logging

from tamiyo.streams.process.log_throttle import EVERY_S, MAX_KINDS, RepeatFilter


class Log:
    """A log with the filter, on a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.filter = RepeatFilter(["aiokafka"], clock=lambda: self.now)

    def write(self, name: str, text: str, *values: object, level: int = logging.ERROR) -> str | None:
        record = logging.LogRecord(name, level, __file__, 1, text, values, None)
        return record.getMessage() if self.filter.filter(record) else None


def test_a_librarys_repeats_are_suppressed_and_counted() -> None:
    log = Log()
    assert log.write("aiokafka.conn", "cannot reach %s", 1) == "cannot reach 1"
    for _ in range(5):
        assert log.write("aiokafka.conn", "cannot reach %s", 2) is None
    assert log.write("aiokafka.conn", "cannot reach %s", 2, level=logging.WARNING) == "cannot reach 2"
    assert log.write("aiokafka.conn", "lost %s", 1) == "lost 1"
    log.now = EVERY_S
    assert log.write("aiokafka.conn", "cannot reach %s", 3) == "cannot reach 3 (and 5 times more in 10 s)"
    assert log.write("aiokafka.conn", "lost %s", 1) == "lost 1"


def test_a_message_that_never_stops_passes_at_each_interval() -> None:
    log = Log()
    passed = []
    for second in range(31):
        log.now = float(second)
        if log.write("aiokafka.conn", "lost") is not None:
            passed.append(second)
    assert passed == [0, 10, 20, 30]


def test_other_loggers_always_pass() -> None:
    log = Log()
    assert [log.write("tamiyo.streams.runtime.stage_runner", "again") for _ in range(3)] == ["again"] * 3
    assert log.write("aiokafkaesque", "again") == log.write("aiokafkaesque", "again") == "again"


def test_the_number_of_remembered_messages_is_bounded() -> None:
    log = Log()
    for number in range(MAX_KINDS + 5):
        log.write("aiokafka", f"of my own making {number}")
    assert len(log.filter._kinds) == MAX_KINDS
