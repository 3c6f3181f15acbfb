"""The page of `tamiyo demo --watch`: the same server as `tamiyo watch`, on the demo's embedded broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tamiyo.streams.cli.watching.watch import has_screen, open_in_browser, serving
from tamiyo.streams.watch import PORT

if TYPE_CHECKING:
    from rich.console import Console

    from tamiyo.schemas.kafka import KafkaSettings


@dataclass(frozen=True, slots=True)
class DemoPage:
    """A page that is served, and the embedded broker that it shows."""

    kafka: "KafkaSettings"
    url: str

    def serve_until_stopped(self, console: "Console") -> None:
        """Serve until Ctrl-C."""
        from tamiyo.streams.process.interrupts import stoppable

        console.print(f"\nthe page stays on {self.url} until Ctrl-C", highlight=False)
        with stoppable() as stopped:
            stopped.wait()


@contextmanager
def demo_page(console: "Console", port: int | None) -> Iterator[DemoPage]:
    """Start an embedded broker and the page within the block; open the page where there is a screen.

    Args:
        console: Receives the page's address.
        port: Port of the page; None: the default, 0: any free one.

    Raises:
        ConfigurationError: The port is in use.
    """
    from tamiyo.schemas.kafka import KafkaSettings, TopicNames
    from tamiyo.streams.admin.brokers import EmbeddedBroker
    from tamiyo.streams.admin.topics import Topics
    from tamiyo.streams.watch.feeds import TopicFeed
    from tamiyo.streams.watch.history import History

    history = History()
    with (
        serving(history, "127.0.0.1", PORT if port is None else port) as server,
        EmbeddedBroker() as broker,
    ):
        kafka, names = KafkaSettings(bootstrap_servers=broker.bootstrap_servers), TopicNames(prefix="")
        Topics(kafka, names).create()
        with TopicFeed(history, kafka, names):
            console.print(f"watch it on {server.url}", highlight=False)
            if has_screen():
                open_in_browser(server.url)
            yield DemoPage(kafka, server.url)
