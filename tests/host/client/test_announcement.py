"""The one line at attach: where it goes, and what it contains."""

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tamiyo.host import KafkaTransport, attach
from tamiyo.host._client.announcement import announce
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tests.support.runs import RUN, network, run, settings

IN_MEMORY = f"tamiyo: run {RUN} is connected to memory; 3 layers watched\n"


def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test a program that has not configured logging; call it in the test, where pytest's handlers exist."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


@pytest.fixture
def host_level() -> Iterator[logging.Logger]:
    """The SDK's logger; its level is restored."""
    logger = logging.getLogger("tamiyo.host")
    before = logger.level
    yield logger
    logger.setLevel(before)


def attach_over(kafka: KafkaSettings, names: TopicNames) -> None:
    model = network()
    attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        example_input=torch.zeros(2, 2, 8),
        run_id=RUN,
        settings=settings(connect_timeout_s=0.5, flush_timeout_s=0.1),
        transport=KafkaTransport(kafka, names),
    ).close()


def test_a_missing_broker_is_reported_with_what_to_set(
    names: TopicNames, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unconfigured(monkeypatch)
    attach_over(KafkaSettings(bootstrap_servers="127.0.0.1:1"), names)  # no broker there
    captured = capsys.readouterr()
    assert captured.err == (
        f"tamiyo: run {RUN} is NOT connected to Kafka at 127.0.0.1:1 (set TAMIYO_KAFKA_BOOTSTRAP_SERVERS to your "
        "brokers); 3 layers watched; training continues, connecting is retried\n"
    )
    assert captured.out == ""


def test_a_connection_is_reported_with_the_servers(
    kafka: KafkaSettings, names: TopicNames, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unconfigured(monkeypatch)
    Topics(kafka, names).touch()
    attach_over(kafka, names)
    assert capsys.readouterr().err == (
        f"tamiyo: run {RUN} is connected to Kafka at {kafka.bootstrap_servers}; 3 layers watched\n"
    )


def test_without_logging_the_line_is_printed_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unconfigured(monkeypatch)
    run()
    assert capsys.readouterr().err == IN_MEMORY


def test_a_handler_that_takes_the_line_replaces_standard_error(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    run()
    assert capsys.readouterr().err == ""
    assert IN_MEMORY.strip() in caplog.messages


@pytest.mark.parametrize("configure", ["level", "handler"])
def test_logging_that_drops_the_line_does_not_swallow_it(
    configure: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host_level: logging.Logger
) -> None:
    """As after `logging.basicConfig()`, whose level is WARNING, or with a handler for errors only."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR if configure == "handler" else logging.NOTSET)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    host_level.setLevel(logging.WARNING if configure == "level" else logging.DEBUG)
    run()
    assert capsys.readouterr().err == IN_MEMORY


def test_a_setting_silences_standard_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    unconfigured(monkeypatch)
    run(announce=False)
    assert capsys.readouterr().err == ""


def test_the_environment_silences_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unconfigured(monkeypatch)
    monkeypatch.setenv("TAMIYO_HOST_ANNOUNCE", "false")
    model = nn.Sequential(nn.Linear(2, 2))
    attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        example_input=torch.zeros(1, 2),
        transport=MemoryTransport(),
    )
    assert capsys.readouterr().err == ""


def test_layers_left_alone_are_counted_and_their_reasons_logged(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    announce(RUN, MemoryTransport(), watched=1, left_alone={"head": "its weight is tied"}, to_stderr=True)
    assert "1 layer watched, 1 left alone (handle.left_alone has the reasons)" in caplog.text
    assert "layer head is left alone: its weight is tied" in caplog.text
    assert capsys.readouterr().err == ""
