"""Configures structured logs of a pipeline process: JSON lines, or coloured text on a terminal, on standard error."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from tamiyo.schemas.display import printable
from tamiyo.streams.process.log_throttle import RepeatFilter
from tamiyo.streams.settings import LogSettings

NOISY = ("faust", "mode", "aiokafka", "asyncio", "kafka", "aiohttp.access")


def only_critical() -> None:
    """Log nothing below CRITICAL, for programs that feed stages millions of invalid records."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger().setLevel(logging.CRITICAL)


def configure(settings: LogSettings | None = None, verbose: bool = False) -> None:
    """Send the logs of this process and its libraries through structlog to standard error.

    Args:
        settings: level and format; by default the environment's.
        verbose: log libraries from `level` too, not only from WARNING: Faust logs hundreds of lines at each start.
    """
    settings = settings or LogSettings()
    text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer()
    # ConsoleRenderer prints tracebacks itself; JSON needs them as text.
    tail: list[Any] = [_printable] if text else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail, renderer],
        )
    )
    if not verbose:
        handler.addFilter(RepeatFilter(NOISY))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for name in NOISY:
        logging.getLogger(name).setLevel(settings.level if verbose else logging.WARNING)
    # At DEBUG it logs every request, including the one with the password.
    logging.getLogger("aiokafka.conn").setLevel(max(logging.INFO, logging.getLogger("aiokafka").level))


def _printable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters of records for a terminal; JSON escapes them by itself."""
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}
