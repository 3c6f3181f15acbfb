import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer

from tamiyo.evaluation.common.program import begin
from tamiyo.schemas.errors import ConfigurationError


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore what a program changes in its process."""
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)


@pytest.fixture
def kafka_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "libs").mkdir()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    return tmp_path


def test_a_program_ends_by_sigterm_as_by_ctrl_c_and_computes_in_one_thread(kafka_home: Path) -> None:
    torch.set_num_threads(2)
    _, home = begin(kafka_home / "report.json")
    assert home == kafka_home
    assert torch.get_num_threads() == 1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_missing_report_folder_or_kafka_is_refused(kafka_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(typer.BadParameter, match="there is no folder"):
        begin(kafka_home / "missing" / "report.json")
    monkeypatch.delenv("KAFKA_HOME")
    with pytest.raises(ConfigurationError, match="KAFKA_HOME"):
        begin(None)
