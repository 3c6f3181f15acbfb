"""What the programs that measure an installation on a real Kafka do before anything else."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from tamiyo.evaluation.common.installation import end_by_signal
from tamiyo.evaluation.common.report import prepare_report
from tamiyo.streams.admin.brokers import required_kafka_home


def begin(report: Path | None) -> tuple[Console, Path]:
    """Prepare the process: SIGTERM ends it like Ctrl-C, and torch leaves the cores to what is measured.

    Args:
        report: The file that will receive the report, if any.

    Returns:
        The console, and the folder of the Kafka release that KAFKA_HOME names.

    Raises:
        BadParameter: The folder of the report does not exist.
        ConfigurationError: KAFKA_HOME is not set.
    """
    prepare_report(report)
    home = required_kafka_home()
    end_by_signal()
    torch.set_num_threads(1)
    return Console(), home
