"""What an installation has done, over time: everything that the views show, in bounded memory.

`History` takes records in any order and keeps each with its time, so that a view can be made as of a past time. It
knows neither Kafka nor HTTP.
"""

from tamiyo.streams.watch.history.history import History
from tamiyo.streams.watch.history.observed import Observed
from tamiyo.streams.watch.history.source import Source

__all__ = ["History", "Observed", "Source"]
