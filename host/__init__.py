"""The SDK of the training side: attach a model, and let decisions adapt it while it trains.

The public names are those of `__all__`, and `tamiyo.host.testing` for tests of your own. The SDK logs to the standard
library's `tamiyo.host` loggers and prints nothing by itself, except one line per run on whether it is connected.
"""

import logging
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tamiyo.host._attachment import attach
    from tamiyo.host._client.kafka_transport import KafkaTransport
    from tamiyo.host._client.transport import Transport
    from tamiyo.host._common.settings import HostSettings
    from tamiyo.host._handle import Handle, HandleStats
    from tamiyo.host._history.events import AdaptationEvent, EventKind, FrameScalars
    from tamiyo.host._history.history import History
    from tamiyo.host._layers.export import export
    from tamiyo.host._layers.grown_kernels import without_kernels
    from tamiyo.host.blueprints import Blueprint, Kernel, register
    from tamiyo.host.blueprints._layer_spec import LayerSpec

__all__ = [
    "AdaptationEvent",
    "Blueprint",
    "EventKind",
    "FrameScalars",
    "Handle",
    "HandleStats",
    "History",
    "HostSettings",
    "KafkaTransport",
    "Kernel",
    "LayerSpec",
    "Transport",
    "attach",
    "export",
    "register",
    "without_kernels",
]

try:
    __version__ = version("esper-tamiyo")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

# Where the public names are. Each is imported when it is used: the pipeline reads the SDK's settings in processes that
# have no use for torch.
_PLACES = {
    "AdaptationEvent": "_history.events",
    "Blueprint": "blueprints",
    "EventKind": "_history.events",
    "FrameScalars": "_history.events",
    "Handle": "_handle",
    "HandleStats": "_handle",
    "History": "_history.history",
    "HostSettings": "_common.settings",
    "KafkaTransport": "_client.kafka_transport",
    "Kernel": "blueprints",
    "LayerSpec": "blueprints._layer_spec",
    "Transport": "_client.transport",
    "attach": "_attachment",
    "export": "_layers.export",
    "register": "blueprints",
    "without_kernels": "_layers.grown_kernels",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


logging.getLogger(__name__).addHandler(logging.NullHandler())
