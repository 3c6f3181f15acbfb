"""The history of an installation: runs, decisions, policies, topics and stages."""

from collections.abc import Callable, Iterable

from tamiyo.streams.watch.history.observed import Observed
from tamiyo.streams.watch.history.source import Source


class History:
    """Everything that the views show. Thread-safe: a feed writes to it while views are made."""

    def __init__(self) -> None:
        """Know nothing."""
        self.source = Source()
        self.revision = 0

    def take(self, batch: Iterable[Observed]) -> None:
        """Take messages in any order; each change gets the next revision."""
        raise NotImplementedError

    def subscribe(self, on_change: Callable[[], None]) -> Callable[[], None]:
        """Call `on_change`, in the feed's thread, after each batch; return what ends that."""
        raise NotImplementedError
